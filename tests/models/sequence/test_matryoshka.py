"""Prefixes of a Matryoshka encoder's vectors rank by themselves."""

from dataclasses import replace

import numpy as np
import pytest

from feast_embeddings.models import Ragged, evaluate_ranking, inner_products, train
from feast_embeddings.models.errors import DeclarationError


def ndcg(encoder, histories, size: int) -> float:
    """NDCG@10 of each history's last item, by the first ``size`` dimensions."""
    rows = np.flatnonzero(histories.lengths > 2)
    last = histories.offsets[1:][rows] - 1
    kept = np.ones(len(histories.items), bool)
    kept[last] = False
    shorter = replace(
        histories,
        offsets=histories.offsets - np.arange(len(histories) + 1),
        items=histories.items[kept],
        behavior_types=histories.behavior_types[kept],
        times=histories.times[kept],
        values=histories.values[kept],
        as_of=histories.times[last],
    )
    items = encoder.encode_items(encoder.item_ids())[0][:, :size]
    targets = Ragged.single(encoder.items.rows(histories.items[last]) - 1)
    return evaluate_ranking(inner_products(encoder.encode(shorter)[:, :size], items), len(items), targets).ndcg[10]


def test_a_prefix_trained_to_rank_ranks_better_than_one_cut_off(small_config, make_markov, trained):
    """Given an encoder trained on its first 4 dimensions too, then these rank better than those of a plain one."""
    nested = train(replace(small_config, matryoshka=(4,)), make_markov(), behavior_types=["view"], device="cpu")
    unseen = make_markov(seed=5)
    assert ndcg(nested.encoder, unseen, 4) > ndcg(trained.encoder, unseen, 4) + 0.05
    assert ndcg(nested.encoder, unseen, 16) > ndcg(trained.encoder, unseen, 16) - 0.05


@pytest.mark.parametrize("size", [0, 16, 99])
def test_a_prefix_is_shorter_than_the_vector(small_config, make_markov, size):
    with pytest.raises(DeclarationError, match="names prefixes of vectors of 16 dimensions"):
        train(replace(small_config, matryoshka=(size,)), make_markov(), behavior_types=["view"])

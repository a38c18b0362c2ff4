"""Which behaviors made a vector."""

import numpy as np
import pytest
import torch
from encoder_laws import ENCODERS

from feast_embeddings.models import (
    AlignedEncoder,
    Alignment,
    HistoryBatch,
    ItemIndex,
    SequenceConfig,
    SequenceEncoder,
    explain,
)
from feast_embeddings.models.errors import DeclarationError
from feast_embeddings.models.explanation.attribution import without_each
from feast_embeddings.models.explanation.explain import TOLERANCE

METHODS = ("integrated_gradients", "attention", "deletion")


@pytest.fixture(scope="module")
def encoder(trained) -> SequenceEncoder:
    return trained.encoder


@pytest.fixture(scope="module")
def histories(make_markov) -> HistoryBatch:
    """Ten histories of the Markov world, of 1 … 12 behaviors, and an empty one."""
    whole = make_markov(users=11, seed=3)
    mask = np.concatenate([np.arange(12) < length for length in (1, 2, 3, 4, 5, 6, 8, 10, 12, 12, 0)])
    return whole.where(mask)


def owners(histories: HistoryBatch) -> np.ndarray:
    return np.repeat(np.arange(len(histories)), histories.lengths)


def test_integrated_gradients_are_complete(encoder, histories):
    """Given a trained encoder, then attributions sum to what the history adds to the baseline, within the tolerance."""
    found = explain(encoder, histories)
    assert found.method == "integrated_gradients"
    total = np.bincount(owners(found.histories), found.attributions, len(histories))
    expected = found.value - found.baseline
    assert np.abs(total - expected).max() <= TOLERANCE * np.abs(expected).max()
    assert found.complete.all()
    assert np.abs(found.value[:-1]).min() > 0.1
    assert found.value[-1] == 0


def test_what_is_explained_is_the_length_of_the_vector(encoder, histories):
    lengths = np.linalg.norm(encoder.encode(histories), axis=1)
    for method in METHODS:
        assert np.allclose(explain(encoder, histories, method).value, lengths, atol=1e-4)


def test_a_target_makes_it_the_score_of_an_item(encoder, histories):
    item = encoder.encode_items(np.array([1007]))[0][0]
    found = explain(encoder, histories, target=item)
    assert np.allclose(found.value, encoder.encode(histories) @ item, atol=1e-4)
    assert found.complete.mean() > 0.8


def test_attention_is_a_share_of_each_behavior(encoder, histories):
    found = explain(encoder, histories, "attention")
    total = np.bincount(owners(found.histories), found.attributions, len(histories))
    assert np.allclose(total, [1.0] * 10 + [0.0], atol=1e-5)
    assert (found.attributions >= 0).all()


def test_deletion_is_what_the_vector_loses(encoder, histories):
    found = explain(encoder, histories, "deletion")
    cut = found.histories
    for position in (0, 4, 20):
        row = owners(cut)[position]
        mask = np.arange(len(cut.items)) != position
        without = encoder.encode(cut.where(mask))[row] if cut.lengths[row] > 1 else np.zeros(encoder.dim)
        vector = encoder.encode(cut)[row]
        direction = vector / np.linalg.norm(vector)
        assert found.attributions[position] == pytest.approx((vector - without) @ direction, abs=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_the_last_behavior_matters_most_where_it_tells_the_next(encoder, make_markov, method):
    """Given a world in which the last item tells the next one, then every method finds it out."""
    found = explain(encoder, make_markov(users=60, seed=4), method)
    best = np.array([found.top(row, 1)[0] for row in range(60)])
    assert (best == found.histories.offsets[1:] - 1).mean() > 0.5


@pytest.mark.parametrize("method", ["integrated_gradients", "attention"])
def test_layers_are_explained_one_by_one(method, histories):
    torch.manual_seed(0)
    deep = SequenceEncoder(SequenceConfig(dim=16, context=12, blocks=3, heads=2), ("view",), ItemIndex(np.arange(1040)))
    first, second, last = (explain(deep.eval(), histories, method, layer=layer) for layer in (0, 1, 3))
    whole = explain(deep, histories, method)
    assert np.allclose(last.attributions, whole.attributions, atol=1e-5)
    others = np.ones(len(first.attributions), bool)
    others[first.histories.offsets[1:][first.histories.lengths > 0] - 1] = False
    assert np.abs(first.attributions[others]).max() < 1e-6, "before the first block a state knows its own behavior only"
    assert np.abs(second.attributions[others]).max() > 1e-6


def test_only_the_context_is_explained(encoder, make_markov):
    long = make_markov(users=2)
    assert explain(encoder, long, "attention").histories.lengths.tolist() == [encoder.context] * 2


def test_a_wrapped_encoder_is_explained_by_what_it_wraps(encoder, histories):
    turned = AlignedEncoder(encoder, torch.eye(16), Alignment("a", "b", 1, 0.0, 0.0, 1.0, 1.0))
    assert explain(turned, histories).method == "deletion", "its vectors are another encoder's, rotated"
    with pytest.raises(DeclarationError, match="has no attention or layers"):
        explain(turned, histories, layer=1)


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_can_be_explained(name, make_histories):
    """Given any encoder of the laws, then deletion explains its vectors, and finite attributions stand by behaviors."""
    case = ENCODERS[name]
    found = explain(case.make(0), make_histories([0, 1, 7], strings=case.strings), "deletion")
    assert np.isfinite(found.attributions).all()
    assert len(found.attributions) == 8


def test_deleting_each_leaves_histories_one_shorter(make_histories):
    batch = make_histories([3, 0, 2])
    shorter = without_each(batch)
    assert shorter.lengths.tolist() == [2, 2, 2, 1, 1]
    assert shorter.items[:2].tolist() == batch.items[1:3].tolist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "guess"}, "is unknown"),
        ({"layer": 9}, "there is no layer 9"),
        ({"method": "deletion", "layer": 1}, "Deletion explains whole vectors"),
        ({"target": np.zeros(3)}, "vectors have"),
    ],
)
def test_what_cannot_be_asked_is_refused(encoder, histories, arguments, message):
    with pytest.raises(DeclarationError, match=message):
        explain(encoder, histories, **arguments)

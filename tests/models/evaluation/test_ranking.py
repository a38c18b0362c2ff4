"""Ranking measures against a naive reading of them, and the baselines on histories one can follow by eye."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feast_embeddings.models import HistoryBatch, ItemIndex, Ragged, evaluate_ranking
from feast_embeddings.models.evaluation import baselines
from feast_embeddings.models.evaluation import ranking as ranking_module
from feast_embeddings.models.evaluation.baselines import markov_table, popularity, repeat_purchase
from feast_embeddings.models.evaluation.ranking import inner_products, target_ranks

INDEX = ItemIndex(np.arange(10, 16))


def ragged(rows: list[list[int]]) -> Ragged:
    flat = np.array([row for part in rows for row in part], dtype=np.int64)
    return Ragged(np.cumsum([0] + [len(part) for part in rows]), flat)


def histories_of(*histories: list[int]) -> HistoryBatch:
    lengths = [len(history) for history in histories]
    total = sum(lengths)
    times = np.concatenate([np.arange(length, dtype=np.int64) for length in lengths])
    return HistoryBatch(
        offsets=np.cumsum([0, *lengths]),
        items=np.array([item for history in histories for item in history], dtype=np.int64),
        behavior_types=np.zeros(total, np.int32),
        times=times,
        values=np.full(total, np.nan, np.float32),
        as_of=np.array(lengths),
    )


def naive(scores, targets, seen, k):
    """HR, NDCG and recall of one user whose scores are all different."""
    allowed = [item for item in range(len(scores)) if item not in seen or item in targets]
    order = sorted(allowed, key=lambda item: -scores[item])
    gain = sum(1 / np.log2(order.index(item) + 2) for item in targets if order.index(item) < k)
    ideal = sum(1 / np.log2(place + 2) for place in range(min(k, len(targets))))
    found = sum(order.index(item) < k for item in targets)
    return found > 0, gain / ideal, found / len(targets), 1 / min(order.index(item) + 1 for item in targets)


@given(seed=st.integers(0, 10_000), k=st.integers(1, 12), chunk=st.sampled_from([1, 40, 1 << 20]))
def test_measures_are_what_they_say(seed, k, chunk):
    rng = np.random.default_rng(seed)
    scores = rng.permutation(7 * 12).reshape(7, 12).astype(np.float32)
    targets = [rng.choice(12, rng.integers(1, 4), replace=False).tolist() for _ in range(7)]
    seen = [rng.choice(12, rng.integers(0, 8), replace=False).tolist() for _ in range(7)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking_module, "_CHUNK_SCORES", chunk)
        got = evaluate_ranking(lambda users: scores[users], 12, ragged(targets), ragged(seen), ks=(k,))
    expected = np.mean([naive(*row, k) for row in zip(scores, targets, seen, strict=True)], axis=0)
    assert np.allclose([got.hr[k], got.ndcg[k], got.recall[k], got.mrr], expected)


def test_users_without_a_target_are_not_counted():
    scores = np.eye(3, dtype=np.float32)
    got = evaluate_ranking(lambda users: scores[users], 3, ragged([[0], [], [0]]), ks=(1,))
    assert (got.users, got.hr[1]) == (2, 0.5)


def test_a_constant_score_earns_nothing():
    ranks = target_ranks(lambda users: np.zeros((4, 101), np.float32), 101, Ragged.single(np.array([0, 1, 50, 100])))
    assert ranks.tolist() == [51.0] * 4


def test_inner_products_are_the_scores_of_vectors():
    users, items = np.array([[1, 2]], np.float32), np.array([[1, 0], [0, 1]], np.float32)
    assert inner_products(users, items)(slice(0, 1)).tolist() == [[1.0, 2.0]]


def test_popularity_counts_all_time_or_a_recent_window():
    histories = histories_of([10, 10, 11], [12, 10, 11], [99])
    assert popularity(histories, INDEX)(slice(0, 3)).tolist() == [[3, 2, 1, 0, 0, 0]] * 3
    assert popularity(histories, INDEX, since_us=2)(slice(1, 3)).tolist() == [[0, 2, 0, 0, 0, 0]] * 2


def test_repeat_purchase_ranks_own_items_by_count_then_by_recency():
    scores = repeat_purchase(histories_of([10, 11, 12, 11, 13], [14]), INDEX)(slice(0, 2))
    assert np.argsort(-scores[0])[:4].tolist() == [1, 3, 2, 0]
    assert scores[1].tolist() == [0, 0, 0, 0, 1.25, 0]


@pytest.mark.parametrize("dense_items", [0, 100])
def test_a_markov_table_scores_what_followed(dense_items, monkeypatch):
    """Given 10 → 11 → 12 once, then scores are the damped, distance-weighted counts, decayed by age."""
    monkeypatch.setattr(baselines, "_DENSE_ITEMS", dense_items)
    scores = markov_table(histories_of([10, 11, 12], [11, 10]), INDEX)(slice(0, 2))
    row_10, row_11 = [0, 1 / 21.5, 0.5 / 21.5], [1 / 22, 0, 1 / 22]
    first = [0.8**2 * ten + 0.8 * eleven for ten, eleven in zip(row_10, row_11, strict=True)]
    second = [ten + 0.8 * eleven for ten, eleven in zip(row_10, row_11, strict=True)]
    assert np.allclose(scores[:, :3], [first, second])
    assert not scores[:, 3:].any()


def test_a_markov_table_works_for_users_without_known_items():
    scores = markov_table(histories_of([10, 11], [99, 98], []), INDEX)(slice(0, 3))
    assert np.isfinite(scores).all()
    assert not scores[2].any()

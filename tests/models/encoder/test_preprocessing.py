"""Item rows, values and gaps, against plain readings of their definitions."""

import math
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feast_embeddings.models import ItemIndex, ValueNormalizer
from feast_embeddings.models.encoder.preprocessing import GAP_BUCKETS, UNKNOWN_ROW, gap_buckets
from feast_embeddings.models.errors import BehaviorSourceError, DeclarationError


def test_rows_and_ids_are_inverse_and_unknown_is_row_zero():
    index = ItemIndex.of(np.array([30, 10, 20, 10]))
    assert index.ids.tolist() == [10, 20, 30]
    assert index.rows(np.array([20, 99, 10])).tolist() == [2, UNKNOWN_ROW, 1]
    assert len(index) == 3


def test_the_index_does_not_depend_on_the_order_of_behaviors():
    items = np.array(["b", "a", "ü", "c", "a"], dtype=object)
    assert ItemIndex.of(items).ids.tolist() == ItemIndex.of(items[::-1]).ids.tolist() == ["a", "b", "c", "ü"]


def test_rare_items_are_left_out():
    assert ItemIndex.of(np.array([1, 2, 2, 3, 3, 3]), min_count=2).ids.tolist() == [2, 3]


def test_ids_of_another_kind_are_refused_not_unknown():
    with pytest.raises(BehaviorSourceError, match=r"arrive as object.*holds int64.*declare the item column"):
        ItemIndex.of(np.array([1, 2])).rows(np.array(["1", "2"], dtype=object))


def test_no_items_have_no_rows():
    assert ItemIndex.of(np.array([1])).rows(np.array([], dtype=object)).tolist() == []


@pytest.mark.parametrize("kind", ["log1p-zscore", "zscore"])
def test_values_come_out_centered_and_missing_stays_missing(kind):
    values = np.append(np.random.default_rng(0).lognormal(3, 1, 500), [np.nan, np.inf]).astype(np.float32)
    normalized = ValueNormalizer.fit(kind, values).transform(values)
    assert normalized.dtype == np.float32
    assert abs(normalized[:500].mean()) < 1e-4
    assert abs(normalized[:500].std() - 1) < 1e-4
    assert np.isnan(normalized[500:]).all()


@pytest.mark.parametrize("values", [[], [np.nan], [3.0, 3.0]])
def test_values_that_do_not_vary_stay_finite(values):
    values = np.array(values, dtype=np.float32)
    transformed = ValueNormalizer.fit("log1p-zscore", values).transform(np.array([3.0, -3.0], np.float32))
    assert np.isfinite(transformed).all()


def test_an_unknown_normalizer_is_refused():
    with pytest.raises(DeclarationError, match=r"'minmax' is unknown: choose one of log1p-zscore, zscore"):
        ValueNormalizer.fit("minmax", np.ones(3, np.float32))  # type: ignore[arg-type]


@given(st.lists(st.lists(st.integers(0, 2**61), max_size=6), min_size=1, max_size=6), st.integers(0, 2**40))
def test_a_gap_is_the_time_to_the_next_behavior_or_to_now(histories, wait):
    """Given any histories, then each gap is floor(log2(1 + seconds)) to what comes next, at most the last bucket."""
    histories = [sorted(history) for history in histories]
    as_of = [(history[-1] if history else 0) + wait for history in histories]
    expected = [
        min(int(math.log2((after - before) // 1_000_000 + 1) + 1e-12), GAP_BUCKETS - 1)
        for history, now in zip(histories, as_of, strict=True)
        for before, after in zip(history, [*history, now][1:], strict=True)
    ]
    offsets = np.cumsum([0] + [len(history) for history in histories])
    times = np.array([time for history in histories for time in history], dtype=np.int64)
    assert gap_buckets(times, offsets, np.array(as_of)).tolist() == expected


def test_a_clock_that_runs_backward_is_a_gap_of_zero():
    assert gap_buckets(np.array([5_000_000]), np.array([0, 1]), np.array([1_000_000])).tolist() == [0]


def test_threads_that_ask_a_new_index_at_once_get_their_rows():
    rng = np.random.default_rng(0)
    for _ in range(20):
        index = ItemIndex(rng.permutation(60_000))
        barrier, wrong = threading.Barrier(4), []

        def ask(index=index, barrier=barrier, wrong=wrong):
            barrier.wait()
            try:
                assert index.rows(index.ids[:50]).tolist() == list(range(1, 51))
            except Exception as error:
                wrong.append(error)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong

"""Behaviors at one time have no order: training shuffles them, and only them."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from feast_embeddings.models.sequence.tied_times import shuffled_within, tie_groups

HISTORIES = st.lists(st.lists(st.integers(0, 5), max_size=8).map(sorted), min_size=1, max_size=6)


def flat(histories: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    offsets = np.cumsum([0, *map(len, histories)])
    return offsets, np.array([time for history in histories for time in history], np.int64)


@given(HISTORIES, st.integers(0, 2**32 - 1))
def test_a_shuffle_keeps_histories_and_times_in_order(histories: list[list[int]], seed: int) -> None:
    offsets, times = flat(histories)
    groups = tie_groups(offsets, times)
    if groups is None:
        assert all(len(set(history)) == len(history) for history in histories)
        return
    order = shuffled_within(groups, np.random.default_rng(seed))
    owner = np.repeat(np.arange(len(histories)), np.diff(offsets))
    assert sorted(order) == list(range(len(times)))
    np.testing.assert_array_equal(owner[order], owner)
    np.testing.assert_array_equal(times[order], times)


def test_equal_times_of_two_histories_are_no_tie() -> None:
    assert tie_groups(np.array([0, 1, 2]), np.array([7, 7])) is None


def test_every_order_of_a_receipt_turns_up() -> None:
    groups = tie_groups(np.array([0, 4]), np.array([1, 2, 2, 2]))
    assert groups is not None
    generator = np.random.default_rng(0)
    seen = {tuple(shuffled_within(groups, generator)) for _ in range(200)}
    assert len(seen) == 6

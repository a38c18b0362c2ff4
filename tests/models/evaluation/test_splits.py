"""What a task lets be known: never what is to be found, nor anything after it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feast_embeddings.models import HistoryBatch
from feast_embeddings.models.errors import EvaluationError
from feast_embeddings.models.evaluation.splits import leave_one_out, time_split


def histories_of(*histories: list[tuple[int, int]]) -> HistoryBatch:
    """Histories of (item, time)."""
    flat = [behavior for history in histories for behavior in history]
    return HistoryBatch(
        offsets=np.cumsum([0] + [len(history) for history in histories]),
        items=np.array([item for item, _ in flat], np.int64),
        behavior_types=np.zeros(len(flat), np.int32),
        times=np.array([time for _, time in flat], np.int64),
        values=np.full(len(flat), np.nan, np.float32),
        as_of=np.array([history[-1][1] + 1 if history else 0 for history in histories], np.int64),
    )


SHOP = histories_of([(5, 1), (6, 2), (7, 30), (5, 40)], [(6, 3)], [], [(8, 35), (8, 36)])


def test_the_last_behavior_is_found_given_the_others():
    task = leave_one_out(SHOP, filter_seen=True)
    assert task.users.tolist() == [0, 3]
    assert task.histories.items.tolist() == [5, 6, 7, 8]
    assert task.histories.as_of.tolist() == [40, 36]
    assert task.catalogue.ids[task.targets.rows].tolist() == [5, 8]
    assert task.training.items.tolist() == [5, 6, 7, 6, 8]
    assert task.filtered is not None
    assert task.catalogue.ids[task.filtered.rows].tolist() == [5, 6, 7, 8]


def test_after_a_time_each_user_is_asked_once_for_all_that_follows():
    task = time_split(SHOP, 10, filter_seen=False)
    assert task.users.tolist() == [0, 3]
    assert task.histories.items.tolist() == [5, 6]
    assert task.histories.as_of.tolist() == [10, 10]
    assert task.targets.offsets.tolist() == [0, 2, 3]
    assert task.catalogue.ids[task.targets.rows].tolist() == [5, 7, 8]
    assert task.catalogue.ids[task.known].tolist() == [5, 6]


def test_following_asks_before_each_later_behavior():
    task = time_split(SHOP, 10, follow=True, filter_seen=False)
    assert task.users.tolist() == [0, 0, 3, 3]
    assert task.histories.lengths.tolist() == [2, 3, 0, 1]
    assert task.histories.as_of.tolist() == [30, 40, 35, 36]
    assert task.training.items.tolist() == [5, 6, 6]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 500), follow=st.booleans(), sample=st.sampled_from([None, 3]))
def test_nothing_known_is_as_late_as_the_question(seed, follow, sample):
    rng = np.random.default_rng(seed)
    histories = histories_of(
        *([(int(rng.integers(5)), int(time)) for time in np.sort(rng.integers(0, 20, size))] for size in (6, 3, 0, 9))
    )
    try:
        task = time_split(histories, 10, follow=follow, sample=sample, filter_seen=True)
    except EvaluationError:
        assert (histories.times >= 10).all() or (histories.times < 10).all()
        return
    owner = np.repeat(np.arange(len(task)), task.histories.lengths)
    assert (task.histories.times < task.histories.as_of[owner]).all()
    assert (task.training.times < 10).all()
    assert len(task) <= (sample or len(histories.items))


def test_a_split_outside_the_log_is_refused():
    with pytest.raises(EvaluationError, match="leaves 7 behaviors to learn from and 0 to find"):
        time_split(SHOP, 1000, filter_seen=False)
    with pytest.raises(EvaluationError, match="No user has two behaviors"):
        leave_one_out(histories_of([(1, 1)]), filter_seen=False)

"""Histories look strictly backwards, and growing them tick by tick equals reading them at once."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feast_embeddings.models.encoder import HistoryBatch
from feast_embeddings.models.errors import BehaviorSourceError
from feast_embeddings.models.types import Ids
from feast_embeddings.transformations import Behaviors, Histories, empty_histories, extend

STAMP = pa.timestamp("us", tz="UTC")
Row = tuple[int, int, int, int, float | None]
ROWS: st.SearchStrategy[list[Row]] = st.lists(
    st.tuples(
        st.integers(0, 4),
        st.integers(0, 20),
        st.integers(0, 3),
        st.integers(0, 1),
        st.sampled_from([None, 0.1, 1.0, 1.0 + 1e-12]),
    ),
    max_size=40,
)


def named(number: int, strings: bool) -> Any:
    return f"id-{number}" if strings else number


def behaviors_of(rows: list[Row], strings: bool = False) -> Behaviors:
    ids = pa.string() if strings else pa.int64()
    return Behaviors(
        pa.table(
            {
                "entity": pa.array([named(row[0], strings) for row in rows], ids),
                "item": pa.array([named(row[2], strings) for row in rows], ids),
                "behavior_type": pa.array([row[3] for row in rows], pa.int32()),
                "event_time": pa.array([row[1] for row in rows], STAMP),
                "value": pa.array([row[4] for row in rows], pa.float64()),
                "created_time": pa.nulls(len(rows), STAMP),
                "dedup_id": pa.nulls(len(rows), pa.string()),
            }
        )
    )


def ids(numbers: list[int], strings: bool = False) -> Ids:
    return np.array([named(number, strings) for number in numbers], dtype=object if strings else np.int64)


def assert_same(one: HistoryBatch, other: HistoryBatch) -> None:
    assert len(one) == len(other)
    for name in ("offsets", "items", "behavior_types", "times", "values", "as_of"):
        left, right = getattr(one, name), getattr(other, name)
        np.testing.assert_array_equal(left, right, err_msg=name)
        assert len(left) == 0 or left.dtype == right.dtype


def history_by_hand(rows: list[Row], entity: int, as_of: int, length: int, strings: bool) -> list[Any]:
    mine = [row for row in rows if row[0] == entity and row[1] < as_of]
    mine.sort(key=lambda row: (row[1], row[2], row[3], row[4] is None, row[4] or 0))
    return [(row[1], named(row[2], strings), row[3]) for row in mine[-length:]]


@given(
    rows=ROWS,
    pairs=st.lists(st.tuples(st.integers(0, 6), st.integers(-1, 22)), max_size=20),
    length=st.integers(1, 6),
    strings=st.booleans(),
)
def test_a_history_is_the_last_behaviors_strictly_before_its_time(
    rows: list[Row], pairs: list[tuple[int, int]], length: int, strings: bool
) -> None:
    entities = ids([entity for entity, _ in pairs], strings)
    times = np.array([as_of for _, as_of in pairs], dtype=np.int64)
    batch = Histories(behaviors_of(rows, strings)).as_of(entities, times, length)
    assert len(batch) == len(pairs)
    for number, (entity, as_of) in enumerate(pairs):
        span = slice(batch.offsets[number], batch.offsets[number + 1])
        found = zip(batch.times[span], batch.items[span], batch.behavior_types[span], strict=True)
        assert list(found) == history_by_hand(rows, entity, as_of, length, strings)


def test_one_time_serves_all_entities_and_unknown_ones_have_no_history() -> None:
    batch = Histories(behaviors_of([(1, 0, 7, 0, None), (1, 5, 8, 0, None)])).as_of(ids([1, 99, 1]), 5, 10)
    assert batch.lengths.tolist() == [1, 0, 1]
    assert batch.as_of.tolist() == [5, 5, 5]


@given(
    rows=ROWS,
    ticks=st.lists(st.integers(0, 3), min_size=40, max_size=40),
    length=st.integers(1, 6),
    strings=st.booleans(),
)
def test_extending_tick_by_tick_in_any_delivery_equals_reading_at_once(
    rows: list[Row], ticks: list[int], length: int, strings: bool
) -> None:
    entities = ids([4, 0, 2, 1, 3], strings)
    everything = behaviors_of(rows, strings)
    grown = empty_histories(entities, everything)
    for tick in range(4):
        # Late by any amount: a row's tick has nothing to do with its time.
        delivered = [row for row, its_tick in zip(rows, ticks, strict=False) if its_tick == tick]
        grown = extend(grown, entities, behaviors_of(delivered, strings), length, as_of_us=21)
    assert_same(grown, Histories(everything).as_of(entities, 21, length))


@given(rows=ROWS, length=st.integers(1, 6))
def test_extending_with_nothing_only_moves_the_time(rows: list[Row], length: int) -> None:
    entities = ids([0, 1, 2])
    behaviors = behaviors_of(rows)
    stored = Histories(behaviors).as_of(entities, 21, length)
    moved = extend(stored, entities, behaviors_of([]), length, as_of_us=30)
    assert_same(moved, Histories(behaviors).as_of(entities, 30, length))


def test_a_history_of_no_entities_is_empty() -> None:
    behaviors = behaviors_of([(1, 0, 7, 0, None)])
    assert len(Histories(behaviors).as_of(ids([]), 5, 10)) == 0
    assert len(extend(empty_histories(ids([]), behaviors), ids([]), behaviors_of([]), 10, 5)) == 0


@pytest.mark.parametrize(
    ("entities", "as_of", "length", "message"),
    [
        (ids([1]), 5, 0, "length 0 holds nothing"),
        (ids([1]), np.array([1, 2]), 3, "1 entities and 2 times do not pair up"),
        (ids([1], strings=True), 5, 3, "ids asked for are object, those of the behaviors are int64"),
    ],
)
def test_questions_that_cannot_be_answered(entities: Ids, as_of: Any, length: int, message: str) -> None:
    with pytest.raises(BehaviorSourceError, match=message):
        Histories(behaviors_of([(1, 0, 7, 0, None)])).as_of(entities, as_of, length)


@pytest.mark.parametrize(
    ("entities", "as_of", "message"),
    [
        ([1, 2], 5, "not before as_of_us"),
        ([2, 3], 9, "new behaviors of entity 1"),
        ([1, 1], 9, "listed twice"),
    ],
)
def test_extensions_that_would_lose_or_repeat_behaviors(entities: list[int], as_of: int, message: str) -> None:
    behaviors = behaviors_of([(1, 5, 7, 0, None)])
    with pytest.raises(BehaviorSourceError, match=message):
        extend(empty_histories(ids(entities), behaviors), ids(entities), behaviors, 3, as_of)


def test_stored_histories_and_entities_pair_up() -> None:
    behaviors = behaviors_of([(1, 5, 7, 0, None)])
    with pytest.raises(BehaviorSourceError, match="2 stored histories and 1 entities"):
        extend(empty_histories(ids([1, 2]), behaviors), ids([1]), behaviors, 3, 9)

"""Behaviors: sorted by content, checked at the door, never changed."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feast_embeddings.models.errors import BehaviorSourceError
from feast_embeddings.transformations import BehaviorContract, Behaviors, BehaviorType

STAMP = pa.timestamp("us", tz="UTC")
CONTRACT = BehaviorContract(
    join_key="user_id", entity="uid", item="sku", event_time="at", default_type="view", types=(BehaviorType("view"),)
)


def canonical(rows: list[tuple[Any, ...]], ids: pa.DataType | None = None) -> pa.Table:
    """Rows of (entity, event time, item, type, value)."""
    columns = list(zip(*rows, strict=True)) or [()] * 5
    return pa.table(
        {
            "entity": pa.array(columns[0], ids or pa.int64()),
            "item": pa.array(columns[2], ids or pa.int64()),
            "behavior_type": pa.array(columns[3], pa.int32()),
            "event_time": pa.array(columns[1], STAMP),
            "value": pa.array(columns[4], pa.float64()),
            "created_time": pa.nulls(len(rows), STAMP),
            "dedup_id": pa.nulls(len(rows), pa.string()),
        }
    )


ROWS = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.integers(-5, 5),
        st.integers(0, 3),
        st.integers(0, 1),
        st.sampled_from([None, 1.0, 2.0]),
    ),
    max_size=30,
)


def content(behaviors: Behaviors) -> list[tuple[Any, ...]]:
    table = behaviors.table
    times = behaviors.times_us.tolist()
    columns = (table[name].to_pylist() for name in ("entity", "item", "behavior_type", "value"))
    entity, item, kind, value = columns
    return list(zip(entity, times, item, kind, value, strict=True))


@given(ROWS)
def test_rows_stand_in_the_order_of_their_content(rows: list[tuple[Any, ...]]) -> None:
    def key(row: tuple[Any, ...]) -> tuple[Any, ...]:
        return (*row[:4], row[4] is None, row[4] or 0)

    assert content(Behaviors(canonical(rows))) == sorted(rows, key=key)


@given(ROWS)
def test_offsets_delimit_the_entities(rows: list[tuple[Any, ...]]) -> None:
    behaviors = Behaviors(canonical(rows))
    assert behaviors.entities.tolist() == sorted({row[0] for row in rows})
    entity = np.asarray(behaviors.table["entity"])
    for number, identity in enumerate(behaviors.entities):
        start, end = behaviors.offsets[number], behaviors.offsets[number + 1]
        assert (entity[start:end] == identity).all()
    assert behaviors.offsets[0] == 0
    assert behaviors.offsets[-1] == len(behaviors)


@given(ROWS, st.integers(-6, 6), st.integers(-6, 6))
def test_between_and_concat_take_apart_and_put_together(rows: list[tuple[Any, ...]], start: int, end: int) -> None:
    behaviors = Behaviors(canonical(rows))
    start, end = min(start, end), max(start, end)
    part = behaviors.between(start, end)
    assert content(part) == [row for row in content(behaviors) if start <= row[1] < end]
    rest = behaviors.select((behaviors.times_us < start) | (behaviors.times_us >= end))
    assert Behaviors.concat([rest, part]).table.equals(behaviors.table)


def test_strings_compare_by_code_point() -> None:
    rows = [(name, 0, name, 0, None) for name in ("z", "Z", "ä", "10", "9", "𝄞", "ﬀ")]
    behaviors = Behaviors(canonical(rows, pa.string()))
    assert behaviors.entities.tolist() == sorted(row[0] for row in rows)


def test_values_are_float32_and_nan_where_there_is_none() -> None:
    behaviors = Behaviors(canonical([(1, 0, 1, 0, None), (1, 1, 1, 0, 0.1)]))
    np.testing.assert_array_equal(behaviors.values, np.array([np.nan, 0.1], dtype=np.float32))
    assert behaviors.values.dtype == np.float32


def test_no_behaviors_are_behaviors_too() -> None:
    nothing = Behaviors.empty(CONTRACT)
    assert (len(nothing), nothing.entities.tolist(), nothing.offsets.tolist()) == (0, [], [0])
    assert Behaviors.concat([nothing, nothing]).table.num_rows == 0
    assert "0 behaviors of 0 entities" in repr(nothing)


def altered(name: str, column: pa.Array) -> pa.Table:
    table = canonical([(1, 0, 1, 0, 1.0)])
    return table.set_column(table.column_names.index(name), name, column)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (canonical([(1, 0, 1, 0, 1.0)]).drop_columns("entity"), "no column 'entity'"),
        (canonical([(1, 0, 1, 0, 1.0)]).drop_columns("dedup_id"), "the canonical ones are"),
        (canonical([(1, 0, 1, 0, 1.0)]).append_column("extra", pa.array([1])), "extra: int64"),
        (altered("event_time", pa.array([0], pa.timestamp("us"))), r"event_time: timestamp\[us\],"),
        (altered("entity", pa.array([1.0])), "'entity' is double"),
        (altered("entity", pa.array([None], pa.int64())), "'entity' has 1 nulls"),
        (altered("behavior_type", pa.array([-1], pa.int32())), "negative codes"),
        (altered("value", pa.array([float("inf")])), "not finite"),
        (altered("value", pa.array([float("nan")])), "not finite"),
    ],
)
def test_an_unvalidated_table_is_refused(table: pa.Table, message: str) -> None:
    with pytest.raises(BehaviorSourceError, match=message):
        Behaviors(table)


def test_behaviors_of_two_contracts_do_not_mix() -> None:
    numbers, texts = canonical([(1, 0, 1, 0, 1.0)]), canonical([("1", 0, "1", 0, 1.0)], pa.string())
    with pytest.raises(BehaviorSourceError, match="cannot be concatenated"):
        Behaviors.concat([Behaviors(numbers), Behaviors(texts)])
    with pytest.raises(BehaviorSourceError, match=r"use Behaviors\.empty"):
        Behaviors.concat([])

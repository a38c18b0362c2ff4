"""Activity counts agree with counting by hand, strictly before the time asked for."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feast_embeddings.models.errors import DeclarationError
from feast_embeddings.transformations import ActivitySpec, BehaviorContract, Behaviors, BehaviorType, activity

SECOND = 1_000_000
STAMP = pa.timestamp("us", tz="UTC")
CONTRACT = BehaviorContract(
    join_key="user_id",
    entity="uid",
    item="sku",
    event_time="at",
    behavior_type="kind",
    types=(BehaviorType("view"), BehaviorType("buy")),
)
SPEC = ActivitySpec(("2s", "1m"))
Row = tuple[int, int, int]


def behaviors_of(rows: list[Row]) -> Behaviors:
    """Rows of (entity, seconds, type)."""
    return Behaviors(
        pa.table(
            {
                "entity": pa.array([row[0] for row in rows], pa.int64()),
                "item": pa.array([1] * len(rows), pa.int64()),
                "behavior_type": pa.array([row[2] for row in rows], pa.int32()),
                "event_time": pa.array([row[1] * SECOND for row in rows], STAMP),
                "value": pa.nulls(len(rows), pa.float64()),
                "created_time": pa.nulls(len(rows), STAMP),
                "dedup_id": pa.nulls(len(rows), pa.string()),
            }
        )
    )


@given(
    rows=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 90), st.integers(0, 1)), max_size=40),
    pairs=st.lists(st.tuples(st.integers(0, 4), st.integers(-5, 100)), max_size=20),
)
def test_activity_agrees_with_counting_by_hand(rows: list[Row], pairs: list[tuple[int, int]]) -> None:
    entities = np.array([entity for entity, _ in pairs], dtype=np.int64)
    times = np.array([at * SECOND for _, at in pairs], dtype=np.int64)
    table = activity(behaviors_of(rows), CONTRACT, SPEC, entities, times)
    assert table.column_names == ["view_2s", "view_1m", "buy_2s", "buy_1m", "recency_seconds"]
    for found, (entity, at) in zip(table.to_pylist(), pairs, strict=True):
        past = [row for row in rows if row[0] == entity and row[1] < at]
        expected: dict[str, Any] = {
            f"{name}_{window}": sum(row[2] == code and row[1] >= at - seconds for row in past)
            for code, name in enumerate(("view", "buy"))
            for window, seconds in (("2s", 2), ("1m", 60))
        }
        expected["recency_seconds"] = at - max(row[1] for row in past) if past else None
        assert found == expected


def test_activity_has_the_types_that_its_view_declares() -> None:
    table = activity(behaviors_of([]), CONTRACT, SPEC, np.array([1]), 0)
    assert table.schema.types == [pa.int64()] * 4 + [pa.float64()]
    assert table.column_names == [*SPEC.names(CONTRACT), "recency_seconds"]


@pytest.mark.parametrize(
    ("windows", "message"),
    [
        ((), "has no windows"),
        (("7days",), "'7days' is not a positive length"),
        (("0d",), "not a positive length"),
        (("1d", "1d"), "twice"),
    ],
)
def test_windows_that_cannot_be_right_are_refused(windows: tuple[str, ...], message: str) -> None:
    with pytest.raises(DeclarationError, match=message):
        ActivitySpec(windows)


def test_a_spec_survives_json() -> None:
    assert ActivitySpec.from_json(SPEC.to_json()) == SPEC
    with pytest.raises(DeclarationError, match="activity spec"):
        ActivitySpec.from_json("[]")

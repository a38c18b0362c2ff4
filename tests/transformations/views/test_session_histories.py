"""Laws of a session: what a request brings merges with what is stored as in a tick, once, all of it counted."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feast_embeddings.models.encoder import HistoryBatch
from feast_embeddings.models.errors import BehaviorSourceError
from feast_embeddings.transformations import BehaviorContract, Behaviors, BehaviorType, CleaningRules, Histories
from feast_embeddings.transformations.behaviors import canonical_schema
from feast_embeddings.transformations.views.session import SESSION_INPUTS, SessionSpec
from feast_embeddings.transformations.views.session_histories import SKEW_US, session_histories
from feast_embeddings.transformations.views.tags import HISTORY_FEATURES

NOW = 1_700_000_000_000_000
TYPES = (BehaviorType("view", aliases=("v",)), BehaviorType("buy"), BehaviorType("unbuy", cancels="buy"))

Event = tuple[int, int, int, int, float]
"""Row, time before now in milliseconds, item, type, value."""
events = st.lists(
    st.tuples(
        st.integers(0, 3), st.integers(1, 30), st.integers(1, 4), st.integers(0, 1), st.sampled_from([np.nan, 1.5, 2.5])
    ),
    max_size=30,
    unique_by=lambda event: str(event),
)


def spec(*, text: bool = False, rules: CleaningRules | None = None, with_values: bool = True) -> SessionSpec:
    contract = BehaviorContract(
        join_key="user_id",
        entity="user",
        item="item",
        event_time="at",
        behavior_type="event",
        value="price",
        item_dtype="string" if text else "int64",
        types=TYPES,
    )
    return SessionSpec("now", "user_embedding", "main", 4, None, with_values, False, contract, rules or CleaningRules())


def canonical(rows: list[Event], *, text: bool) -> Behaviors:
    item = pa.string() if text else pa.int64()
    columns = list(zip(*rows, strict=True)) if rows else [()] * 5
    return Behaviors(
        pa.table(
            {
                "entity": pa.array(columns[0], pa.int64()),
                "item": pa.array([str(each) if text else each for each in columns[2]], item),
                "behavior_type": pa.array(columns[3], pa.int32()),
                "event_time": pa.array([NOW - 1000 * each for each in columns[1]], pa.timestamp("us", tz="UTC")),
                "value": pa.array(columns[4], pa.float64(), from_pandas=True),
                "created_time": pa.nulls(len(rows), pa.timestamp("us", tz="UTC")),
                "dedup_id": pa.nulls(len(rows), pa.string()),
            },
            schema=canonical_schema(pa.int64(), item),
        )
    )


def lists_of(batch: HistoryBatch) -> dict[str, list[list[object] | None]]:
    """Histories as Feast hands them over: lists, and null where there is none."""
    columns = (batch.items, batch.behavior_types, batch.times, batch.values)
    bounds = list(zip(batch.offsets[:-1].tolist(), batch.offsets[1:].tolist(), strict=True))
    return {
        name: [column[start:end].tolist() or None for start, end in bounds]
        for name, column in zip(HISTORY_FEATURES, columns, strict=True)
    }


def request_of(rows: list[Event], count: int, *, text: bool = False) -> dict[str, list[list[object]]]:
    found: dict[str, list[list[object]]] = {name: [[] for _ in range(count)] for name in SESSION_INPUTS}
    for row, before_ms, item, kind, value in rows:
        one = (str(item) if text else item, TYPES[kind].name, NOW - 1000 * before_ms, value)
        for name, cell in zip(SESSION_INPUTS, one, strict=True):
            found[name][row].append(cell)
    return found


def same(one: HistoryBatch, other: HistoryBatch) -> bool:
    def columns(batch: HistoryBatch) -> list[object]:
        numbers = (batch.offsets, batch.behavior_types, batch.times, batch.values, batch.as_of)
        return [batch.items.tolist(), *(column.tobytes() for column in numbers)]

    return columns(one) == columns(other)


@given(events, events, st.integers(1, 12), st.booleans())
def test_a_session_ends_in_the_history_of_everything_together(
    old: list[Event], new: list[Event], length: int, text: bool
) -> None:
    stored = Histories(canonical(old, text=text)).as_of(np.arange(4), NOW, 1_000)
    inputs = lists_of(stored) | request_of(new, 4, text=text)

    sessions = session_histories(spec(text=text), inputs, NOW, length)

    together = list({str(event): event for event in (*old, *new)}.values())
    assert same(sessions.histories, Histories(canonical(together, text=text)).as_of(np.arange(4), NOW, length))
    assert sessions.counts["applied"] == len(together) - len(old)
    assert sessions.counts["read"] == sum(sessions.counts[name] for name in ("applied", "deduplicated", "refused"))


@given(events, events)
def test_a_session_that_a_tick_has_applied_meanwhile_changes_nothing(old: list[Event], new: list[Event]) -> None:
    first = session_histories(
        spec(),
        lists_of(Histories(canonical(old, text=False)).as_of(np.arange(4), NOW, 1_000)) | request_of(new, 4),
        NOW,
        1_000,
    )
    again = session_histories(spec(), lists_of(first.histories) | request_of(new, 4), NOW, 1_000)
    assert same(first.histories, again.histories)
    assert again.counts["applied"] == 0


def nothing(count: int) -> dict[str, list[None]]:
    return {name: [None] * count for name in HISTORY_FEATURES}


def test_what_is_no_behavior_is_refused_and_counted() -> None:
    inputs = nothing(1) | {
        "session_items": [[1, 2, 3, 4]],
        "session_types": [["view", "view", "v", "view"]],
        "session_times": [[NOW - 1, -(2**63), NOW - 2, NOW + SKEW_US + 1]],
    }
    sessions = session_histories(spec(with_values=False), inputs, NOW, 10)
    assert sessions.histories.items.tolist() == [3, 1]
    assert sessions.counts == {"read": 4, "applied": 2, "deduplicated": 0, "refused": 2}


def test_a_clock_that_runs_ahead_moves_the_time_the_history_stands_at() -> None:
    inputs = nothing(2) | {
        "session_items": [[7], []],
        "session_types": [["view"], []],
        "session_times": [[NOW + 1_000], []],
    }
    histories = session_histories(spec(with_values=False), inputs, NOW, 10).histories
    assert histories.as_of.tolist() == [NOW + 1_001, NOW]


def test_a_cancellation_takes_back_what_the_session_bought() -> None:
    inputs = nothing(1) | {
        "session_items": [[7, 8, 7]],
        "session_types": [["buy", "buy", "unbuy"]],
        "session_times": [[NOW - 3, NOW - 2, NOW - 1]],
    }
    sessions = session_histories(spec(with_values=False), inputs, NOW, 10)
    assert sessions.histories.items.tolist() == [8]
    assert sessions.counts["refused"] == 2


def test_a_rule_of_the_view_holds_for_a_session_too() -> None:
    inputs = nothing(1) | {
        "session_items": [[1, 2, 3]],
        "session_types": [["view"] * 3],
        "session_times": [[NOW - 3, NOW - 2, NOW - 1]],
    }
    sessions = session_histories(spec(rules=CleaningRules(max_per_day=2), with_values=False), inputs, NOW, 10)
    assert sessions.histories.items.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"session_types": [["view"]]}, "Row 0 .* 2 session_items and 1 session_types"),
        ({"session_times": [None]}, "Row 0 .* 2 session_items and 0 session_times"),
        ({"session_items": [["a", "b"]]}, "'session_items' holds other ids than int64"),
    ],
)
def test_lists_that_do_not_fit_are_an_error_that_names_them(change: dict[str, list[object]], said: str) -> None:
    fitting = {
        "session_items": [[1, 2]],
        "session_types": [["view", "view"]],
        "session_times": [[NOW - 2, NOW - 1]],
    }
    with pytest.raises(BehaviorSourceError, match=said):
        session_histories(spec(with_values=False), nothing(1) | fitting | change, NOW, 10)


def test_a_spec_survives_its_text() -> None:
    one = spec(rules=CleaningRules(max_per_day=3))
    assert SessionSpec.from_json(one.to_json()) == one

"""Bots, bursts, cancellations and duplicates, against a row-by-row oracle."""

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feast_embeddings.models.errors import DeclarationError
from feast_embeddings.transformations import (
    BehaviorContract,
    Behaviors,
    BehaviorType,
    CleaningRules,
    Prepared,
    clean,
    prepare,
)

SECOND, DAY = 1_000_000, 86_400_000_000
NOW = 10 * DAY
CONTRACT = BehaviorContract(
    join_key="user_id",
    entity="uid",
    item="sku",
    event_time="at",
    behavior_type="kind",
    created_time="written",
    dedup_id="id",
    types=(BehaviorType("view"), BehaviorType("buy"), BehaviorType("refund", cancels="buy")),
)
STAMP = pa.timestamp("us", tz="UTC")
SCHEMA = pa.schema(
    {
        "uid": pa.int64(),
        "sku": pa.int64(),
        "kind": pa.string(),
        "at": STAMP,
        "written": STAMP,
        "id": pa.string(),
    }
)


def raw(*rows: tuple[Any, ...]) -> pa.Table:
    """Rows of (kind, at) and, optionally, written, id, sku, uid."""
    defaults = (None, None, None, None, 1, 1)
    names = ("kind", "at", "written", "id", "sku", "uid")
    filled = (row + defaults[len(row) :] for row in rows)
    return pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in filled], schema=SCHEMA)


def run(*rows: tuple[Any, ...], context: pa.Table | None = None, **rules: Any) -> Prepared:
    return prepare(raw(*rows), CONTRACT, CleaningRules(**rules), NOW, context=context)


def test_a_bot_loses_what_it_did_after_its_daily_limit() -> None:
    prepared = run(("view", 0), ("view", 1), ("view", 2), ("view", DAY), max_per_day=2)
    assert prepared.behaviors.times_us.tolist() == [0, 1, DAY]
    assert prepared.counts.quarantined == {"bot": 1}


def test_a_burst_is_cut_in_its_window_only() -> None:
    rows = [("view", second * SECOND) for second in (58, 59, 60, 61, 62)]
    prepared = run(*rows, burst=(2, 60))
    assert prepared.behaviors.times_us.tolist() == [58 * SECOND, 59 * SECOND, 60 * SECOND, 61 * SECOND]
    assert prepared.counts.quarantined == {"burst": 1}


def test_limits_are_per_entity() -> None:
    prepared = run(("view", 0), ("view", 1, None, None, 1, 2), max_per_day=1)
    assert prepared.counts.accepted == 2


def test_context_counts_towards_the_daily_limit() -> None:
    prepared = run(("view", 2), context=raw(("view", 0), ("view", 1)), max_per_day=2)
    assert (prepared.counts.read, prepared.counts.quarantined) == (1, {"bot": 1})


def test_a_cancellation_takes_back_the_latest_earlier_behavior() -> None:
    prepared = run(("buy", 0), ("buy", 1), ("refund", 2), ("buy", 3))
    assert prepared.behaviors.times_us.tolist() == [0, 3]
    assert prepared.counts.quarantined == {"cancellation": 1, "cancelled": 1}


def test_a_cancellation_of_another_item_or_before_the_behavior_takes_nothing_back() -> None:
    prepared = run(("refund", 0), ("buy", 1), ("refund", 2, None, None, 9))
    assert prepared.behaviors.times_us.tolist() == [1]
    assert prepared.counts.quarantined == {"cancellation": 2}


def test_a_cancellation_at_the_same_time_acts() -> None:
    assert run(("refund", 5), ("buy", 5)).counts.accepted == 0


def test_a_cancelled_behavior_of_the_context_is_neither_counted_nor_returned() -> None:
    prepared = run(("refund", 1), context=raw(("buy", 0)))
    assert (prepared.counts.read, prepared.counts.quarantined) == (1, {"cancellation": 1})


def test_without_cancellations_every_type_is_a_behavior() -> None:
    assert run(("buy", 0), ("refund", 1), cancellations=False).counts.accepted == 2


def test_rows_equal_in_every_column_are_one_behavior() -> None:
    prepared = run(("view", 0), ("view", 0), ("view", 0, 7))
    assert (prepared.counts.accepted, prepared.counts.deduplicated) == (2, 1)


def test_of_one_dedup_id_the_row_created_first_stays() -> None:
    prepared = run(("view", 5, 2, "a"), ("buy", 9, 1, "a"), ("view", 1, None, "a"))
    assert prepared.behaviors.times_us.tolist() == [9]
    assert prepared.counts.deduplicated == 2


def test_a_row_that_the_context_has_already_brought_is_a_duplicate() -> None:
    prepared = run(("view", 5, 1, "a"), ("view", 6), context=raw(("view", 5, 2, "a"), ("view", 6)))
    assert (prepared.counts.accepted, prepared.counts.deduplicated) == (0, 2)


def test_clean_cleans_behaviors_that_are_already_validated() -> None:
    behaviors = run(("buy", 0), ("refund", 1), cancellations=False).behaviors
    assert isinstance(behaviors, Behaviors)
    assert len(clean(behaviors, CONTRACT, CleaningRules())) == 0


def cancelled_one_by_one(rows: list[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
    """The oracle: walk the rows in time, keep a stack per item."""
    stacks: dict[int, list[tuple[str, int, int]]] = {}
    kept = []
    for row in sorted(rows, key=lambda row: (row[1], row[0] == "refund")):
        kind, _, sku = row
        if kind == "refund":
            if stacks.get(sku):
                kept.remove(stacks[sku].pop())
            continue
        kept.append(row)
        if kind == "buy":
            stacks.setdefault(sku, []).append(row)
    return kept


@given(
    st.lists(
        st.tuples(st.sampled_from(["view", "buy", "buy", "refund"]), st.integers(0, 30), st.sampled_from([1, 2])),
        unique=True,
        max_size=40,
    )
)
def test_cancellations_agree_with_a_walk_through_time(rows: list[tuple[str, int, int]]) -> None:
    prepared = run(*((kind, at, None, None, sku) for kind, at, sku in rows))
    table = prepared.behaviors.table
    found = zip(
        (CONTRACT.type_names[code] for code in prepared.behaviors.behavior_types),
        prepared.behaviors.times_us.tolist(),
        table["item"].to_pylist(),
        strict=True,
    )
    assert sorted(found) == sorted(cancelled_one_by_one(rows))


@given(
    times=st.lists(st.integers(0, 200), max_size=40, unique=True),
    limit=st.integers(1, 3),
    cut=st.integers(0, 200),
)
def test_verdicts_on_the_past_do_not_change_with_the_future(times: list[int], limit: int, cut: int) -> None:
    rows = [("view", at * SECOND) for at in times]
    until = [row for row in rows if row[1] < cut * SECOND]
    rules: dict[str, Any] = {"burst": (limit, 60), "max_per_day": 3 * limit}
    whole, past = run(*rows, **rules).behaviors, run(*until, **rules).behaviors
    assert whole.between(0, cut * SECOND).table.equals(past.table)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"max_per_day": 0}, "max_per_day is 0"),
        ({"burst": (0, 60)}, "burst is"),
        ({"burst": (5, 7)}, "the seconds divide a day"),
        ({"burst": (5,)}, "burst is"),
    ],
)
def test_rules_that_cannot_be_right_are_refused(rules: dict[str, Any], message: str) -> None:
    with pytest.raises(DeclarationError, match=message):
        CleaningRules(**rules)


def test_rules_survive_json() -> None:
    rules = CleaningRules(max_per_day=500, burst=(20, 60), cancellations=False)
    assert CleaningRules.from_json(rules.to_json()) == rules


@pytest.mark.parametrize("text", ["{", "[]", '{"max_per_hour": 3}'])
def test_foreign_json_is_no_rules(text: str) -> None:
    with pytest.raises(DeclarationError, match="cleaning rules"):
        CleaningRules.from_json(text)

"""Every bad row gets the first reason that applies, and no good row gets one."""

from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest

from feast_embeddings.models.errors import BehaviorSourceError
from feast_embeddings.transformations import BehaviorContract, BehaviorType, CleaningRules, Prepared, prepare

NOW = 1_700_000_000_000_000
CONTRACT = BehaviorContract(
    join_key="user_id",
    entity="uid",
    item="sku",
    event_time="at",
    behavior_type="kind",
    value="price",
    created_time="written",
    dedup_id="id",
    types=(BehaviorType("view", aliases=("v",)), BehaviorType("buy")),
)
STAMP = pa.timestamp("us", tz="UTC")
GOOD: dict[str, Any] = {
    "uid": pa.array([1], pa.int64()),
    "sku": pa.array([10], pa.int64()),
    "kind": pa.array(["view"]),
    "at": pa.array([NOW - 5], STAMP),
    "price": pa.array([1.5]),
    "written": pa.array([NOW], STAMP),
    "id": pa.array(["a"]),
}


def changed(contract: BehaviorContract, **changes: Any) -> BehaviorContract:
    declared = {name: getattr(contract, name) for name in contract.__dataclass_fields__}
    return BehaviorContract(**(declared | changes))


def run(contract: BehaviorContract = CONTRACT, **columns: pa.Array) -> Prepared:
    return prepare(pa.table(GOOD | columns), contract, CleaningRules(), NOW)


def test_a_good_row_is_accepted_as_it_is() -> None:
    row = run().behaviors.table.to_pylist()[0]
    assert row == {
        "entity": 1,
        "item": 10,
        "behavior_type": 0,
        "event_time": datetime.fromtimestamp((NOW - 5) / 1e6, UTC),
        "value": 1.5,
        "created_time": datetime.fromtimestamp(NOW / 1e6, UTC),
        "dedup_id": "a",
    }


@pytest.mark.parametrize(
    ("column", "cells", "reason"),
    [
        ("uid", pa.array([None], pa.int64()), "entity missing"),
        ("uid", pa.array([""]), "entity missing"),
        ("uid", pa.array([None], pa.null()), "entity missing"),
        ("uid", pa.array([float("nan")]), "entity missing"),
        ("uid", pa.array(["u7"]), "entity is not an int64"),
        ("uid", pa.array(["007"]), "entity is not an int64"),
        ("uid", pa.array(["9223372036854775808"]), "entity is not an int64"),
        ("uid", pa.array([2**63], pa.uint64()), "entity is not an int64"),
        ("uid", pa.array([1.5]), "entity is not an int64"),
        ("uid", pa.array([1e300]), "entity is not an int64"),
        ("sku", pa.array([None], pa.int64()), "item missing"),
        ("sku", pa.array(["x"]), "item is not an int64"),
        ("kind", pa.array([None], pa.string()), "behavior type missing"),
        ("kind", pa.array(["View"]), "behavior type unknown"),
        ("at", pa.array([None], STAMP), "event time missing"),
        ("at", pa.array([NOW + 1], STAMP), "event time in the future"),
        ("at", pa.array([NOW - 5], pa.timestamp("us")), "event time without time zone"),
        ("at", pa.array([-(2**50)], pa.timestamp("s", tz="UTC")), "event time out of range"),
        ("written", pa.array([NOW], pa.timestamp("us")), "created time without time zone"),
        ("price", pa.array([float("nan")]), "value not a number"),
        ("price", pa.array([float("-inf")]), "value infinite"),
        ("price", pa.array([1e39]), "value beyond float32"),
    ],
)
def test_a_bad_cell_sends_the_row_to_quarantine(column: str, cells: pa.Array, reason: str) -> None:
    prepared = run(**{column: cells})
    assert prepared.counts.quarantined == {reason: 1}
    assert prepared.quarantined["reason"].to_pylist() == [reason]
    assert len(prepared.behaviors) == 0


def test_the_first_reason_wins() -> None:
    prepared = run(uid=pa.array([None], pa.int64()), kind=pa.array(["?"]), at=pa.array([None], STAMP))
    assert prepared.counts.quarantined == {"entity missing": 1}


@pytest.mark.parametrize(
    "cells",
    [
        pa.array([7], pa.int8()),
        pa.array([7], pa.uint64()),
        pa.array(["7"]),
        pa.array(["7"], pa.large_string()),
        pa.array(["7"]).dictionary_encode(),
        pa.array([7.0]),
        pa.array(["7"]).cast(pa.decimal128(9, 2)),
    ],
)
def test_integers_are_read_from_whatever_holds_them(cells: pa.Array) -> None:
    assert run(uid=cells).behaviors.entities.tolist() == [7]


@pytest.mark.parametrize("number", [2**63 - 1, -(2**63)])
def test_the_ends_of_int64_are_ids(number: int) -> None:
    assert run(uid=pa.array([str(number)])).behaviors.entities.tolist() == [number]


def test_string_ids_stay_strings_and_integers_become_them() -> None:
    contract = changed(CONTRACT, entity_dtype="string", item_dtype="string")
    behaviors = run(contract, uid=pa.array(["ünï"]), sku=pa.array([10])).behaviors
    assert behaviors.entities.tolist() == ["ünï"]
    assert behaviors.items.tolist() == ["10"]


def test_an_alias_is_its_type() -> None:
    assert run(kind=pa.array(["v"])).behaviors.behavior_types.tolist() == [0]


def test_without_a_type_column_every_row_has_the_default_type() -> None:
    contract = changed(CONTRACT, behavior_type=None, default_type="buy")
    assert run(contract).behaviors.behavior_types.tolist() == [1]


def test_a_null_value_is_no_value() -> None:
    assert run(price=pa.array([None], pa.float64())).behaviors.table["value"].to_pylist() == [None]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", ["UTC", "America/New_York"])
def test_every_unit_and_zone_is_the_same_instant(unit: str, zone: str) -> None:
    cells = pa.array([1_600_000_000], pa.timestamp("s", tz=zone)).cast(pa.timestamp(unit, tz=zone))
    assert run(at=cells).behaviors.times_us.tolist() == [1_600_000_000_000_000]


def test_finer_times_are_floored_even_before_the_epoch() -> None:
    cells = pa.array([-1], pa.timestamp("ns", tz="UTC"))
    assert run(at=cells).behaviors.times_us.tolist() == [-1]


@pytest.mark.parametrize(("zone", "hours"), [("UTC", 0), ("Asia/Tokyo", -9)])
def test_a_declared_zone_gives_naive_times_a_meaning(zone: str, hours: int) -> None:
    cells = pa.array([1_600_000_000], pa.timestamp("s"))
    behaviors = run(changed(CONTRACT, naive_time_zone=zone), at=cells).behaviors
    assert behaviors.times_us.tolist() == [(1_600_000_000 + hours * 3_600) * 1_000_000]


def test_quarantine_shows_the_raw_cells() -> None:
    tokyo = pa.array([0], pa.timestamp("s", tz="Asia/Tokyo"))
    shown = run(uid=pa.array(["u7"]), at=tokyo, price=pa.array([2], pa.int32())).quarantined.to_pylist()[0]
    assert shown == {
        "entity": "u7",
        "item": "10",
        "behavior_type": "view",
        "event_time": "1970-01-01 00:00:00Z",
        "value": "2",
        "dedup_id": "a",
        "reason": "entity is not an int64",
    }


@pytest.mark.parametrize(
    ("column", "cells", "message"),
    [
        ("uid", pa.array([{"a": 1}]), r"Column 'uid' of the raw table is struct.* entity"),
        ("uid", pa.array([True]), "Column 'uid' of the raw table is bool"),
        ("at", pa.array(["2024-01-01"]), r"Column 'at' .* is string, .* event_time \(a timestamp\)"),
        ("price", pa.array(["cheap"]), r"Column 'price' .* value \(a number\)"),
    ],
)
def test_a_column_that_cannot_mean_it_is_an_error(column: str, cells: pa.Array, message: str) -> None:
    with pytest.raises(BehaviorSourceError, match=message):
        run(**{column: cells})

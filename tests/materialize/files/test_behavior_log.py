"""Which behaviors a tick holds, read from the behavior log alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from behavior_log_fixture import CONTRACT, TICK
from repo_fixture import DAY, HOUR, T0, rows

from feast_embeddings.materialize.files.behavior_log import BehaviorLog, counts_of, digest
from feast_embeddings.transformations import BehaviorContract, CleaningRules


def _log(tmp_path: Path, table: pa.Table, contract: BehaviorContract = CONTRACT, **rules: int) -> BehaviorLog:
    pq.write_table(table, tmp_path / "behaviors.parquet")
    return BehaviorLog(str(tmp_path / "behaviors.parquet"), contract, CleaningRules(**rules))


def _at(*days: float) -> list[int]:
    return [T0 + round(day * DAY) for day in days]


def test_members_are_of_the_window_or_late(tmp_path: Path) -> None:
    table = rows(
        item=[1, 2, 3, 4, 5, 6],
        at=_at(0.5, 1.0, 1.9, 2.0, 0.5, 0.6),
        created=_at(0.5, 1.0, 1.9, 1.0, 1.5, 2.0),
    )
    found = _log(tmp_path, table).members(TICK)
    assert found.behaviors.items.tolist() == [5, 2, 3], "the late one, and the window without its end"


def test_members_stay_the_same_when_later_rows_arrive(tmp_path: Path) -> None:
    before = rows(item=[1, 2], at=_at(1.2, 0.2), created=_at(1.3, 1.4))
    later = rows(item=[3, 4], at=_at(1.2, 0.2), created=_at(2.0, 3.0))
    first = _log(tmp_path, before).members(TICK).behaviors
    again = _log(tmp_path, pa.concat_tables([before, later])).members(TICK).behaviors
    assert (len(first), digest(first)) == (2, digest(again))


@pytest.mark.parametrize("column", ["user", "item", "event", "price", "at"])
def test_the_digest_tells_any_change_of_content(tmp_path: Path, column: str) -> None:
    table = rows(user=[1, 2], item=[1, 2], price=[1.0, None], at=_at(1.2, 1.3))
    other: dict[str, list] = {
        "user": [1, 3], "item": [1, 3], "event": ["view", "purchase"], "price": [1.0, 0.0], "at": _at(1.2, 1.4),
    }  # fmt: skip
    index = table.schema.get_field_index(column)
    changed = table.set_column(
        index, table.schema.field(index), pa.array(other[column]).cast(table.schema.types[index])
    )
    assert digest(_log(tmp_path, table).members(TICK).behaviors) != digest(
        _log(tmp_path, changed).members(TICK).behaviors
    )


@pytest.mark.parametrize(("zone", "hours"), [(None, 0), ("Asia/Tokyo", 9), ("America/Lima", -5)])
def test_late_behaviors_are_judged_with_the_others_of_their_day(tmp_path: Path, zone: str | None, hours: int) -> None:
    """Two came in time and fill the day's limit; the two that came late are a bot's, whatever zone times are in."""
    at = [T0 + hour * HOUR for hour in (1, 2, 20, 21)]
    table = rows(item=[1, 2, 3, 4], at=at, created=_at(0.9, 0.9, 1.5, 1.5))
    contract = CONTRACT
    if zone is not None:
        contract = replace(CONTRACT, naive_time_zone=zone)
        wall = pa.array([us + hours * HOUR for us in at]).cast(pa.timestamp("us"))
        table = table.set_column(table.schema.get_field_index("at"), "at", wall)
    found = counts_of(_log(tmp_path, table, contract, max_per_day=2).members(TICK))
    assert found == {"read": 2, "applied": 0, "deduplicated": 0, "quarantined: bot": 2}


def test_times_finer_than_a_microsecond_are_read(tmp_path: Path) -> None:
    table = rows(item=[1, 2], at=_at(0.2, 1.5), created=_at(1.5, 1.5))
    finer = pa.array([(T0 + DAY // 5) * 1000 + 7, (T0 + DAY * 3 // 2) * 1000 + 1]).cast(pa.timestamp("ns", tz="UTC"))
    table = table.set_column(table.schema.get_field_index("at"), "at", finer)
    assert len(_log(tmp_path, table).members(TICK).behaviors) == 2


def test_rows_that_no_time_can_place_are_refused_by_refreshes_alone(tmp_path: Path) -> None:
    log = _log(tmp_path, rows(item=[1, 2, 3], at=[None, None, T0 + DAY], created=[*_at(1.5), None, T0 + DAY]))
    assert counts_of(log.members(TICK))["quarantined: event time missing"] == 1
    assert counts_of(log.members(replace(TICK, kind="full")))["quarantined: event time missing"] == 2

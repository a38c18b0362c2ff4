"""Rows that are no behaviors: quarantined with their reasons and counted, whatever else the tick holds."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from repo_fixture import MakeRepo, SmallRepo, at, day, rows
from ticks_fixture import started

BEHAVIORS = Path("data/behaviors")


@pytest.fixture
def repo(make_repo: MakeRepo) -> SmallRepo:
    return started(make_repo)


def _good(count: int, start: int = 0) -> pa.Table:
    return rows(
        user=[60 + number for number in range(count)],
        item=[101] * count,
        id=[f"good {start + number}" for number in range(count)],
        at=[day(4.1)] * count,
    )


def _with(column: str, values: pa.Array) -> pa.Table:
    table = _good(len(values))
    return table.set_column(table.schema.get_field_index(column), column, values)


@contextmanager
def _only(repo: SmallRepo, table: pa.Table) -> Iterator[None]:
    """The behavior log holds ``table`` alone: a column's type differs from the other files'."""
    with ExitStack() as stack:
        shutil.move(BEHAVIORS, "aside")
        stack.callback(shutil.move, "aside", BEHAVIORS)
        stack.callback(shutil.rmtree, BEHAVIORS)
        BEHAVIORS.mkdir()
        repo.deliver(table, "bad")
        yield


@pytest.mark.parametrize(
    ("table", "reasons", "applied"),
    [
        (_with("user", pa.array([1, None])), {"entity missing": 1}, 1),
        (_with("user", pa.array(["1", "one", "007"])), {"entity is not an int64": 2}, 1),
        (_with("item", pa.array([1.0, 1.5, float("nan")])), {"item is not an int64": 1, "item missing": 1}, 1),
        (_with("event", pa.array(["view", "wish", None])), {"behavior type missing": 1, "behavior type unknown": 1}, 1),
        (
            _with("price", pa.array([1.0, float("nan"), float("inf"), -float("inf"), 1e300, None])),
            {"value not a number": 1, "value infinite": 2, "value beyond float32": 1},
            2,
        ),
        (
            pa.concat_tables([_good(2), _good(2)]),
            {},
            2,
        ),
    ],
    ids=["null id", "ids that are no integers", "items that are no integers", "types", "values", "duplicates"],
)
def test_bad_rows_are_quarantined_and_counted(
    repo: SmallRepo, table: pa.Table, reasons: dict[str, int], applied: int
) -> None:
    with _only(repo, table), at(day(5)):
        repo.incremental(day(5))
    tick = repo.last_tick()
    counts = repo.counts(tick.number)
    assert repo.workspace.quarantine().counts("user_embedding", tick.number) == reasons
    assert {what: count for what, count in counts.items() if count} == {
        what: count
        for what, count in {
            "read": table.num_rows,
            "applied": applied,
            "deduplicated": table.num_rows - applied - sum(reasons.values()),
            **{f"quarantined: {reason}": count for reason, count in reasons.items()},
        }.items()
        if count
    }
    assert tick.members == applied


def test_times_without_a_zone_are_quarantined_by_a_refresh(repo: SmallRepo) -> None:
    table = _good(3)
    wall = pc.cast(table["at"], pa.timestamp("us"))
    with _only(repo, table.set_column(3, "at", wall)), at(day(5)):
        repo.run(day(5), refresh=True)
    assert repo.workspace.quarantine().counts("user_embedding", repo.last_tick().number) == {
        "event time without time zone": 3
    }


def test_keys_delivered_twice_count_once_and_the_first_one_stays(repo: SmallRepo) -> None:
    twice = rows(user=[70, 70], item=[101, 102], id=["same", "same"], at=[day(4.1), day(4.2)])
    repo.deliver(twice, "twice")
    with at(day(5)):
        repo.incremental(day(5))
    assert repo.counts(repo.last_tick().number)["deduplicated"] == 1
    assert np.count_nonzero(repo.behaviors(day(5)).entities == 70) == 1

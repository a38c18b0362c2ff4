"""Behavior tables as people have them: units, zones, nulls, decimals, ties; one answer in the past and online."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from repo_fixture import DAY, HOUR, T0, MakeRepo, SmallRepo, at, moment, rows

from feast_embeddings.models.errors import BehaviorSourceError

UTC_US = pa.timestamp("us", tz="UTC")
FEATURES = ("item_id", "behavior_type", "value")


def past(repo: SmallRepo, users: list[int], times: list[Any], view: str = "behaviors", *names: str) -> pd.DataFrame:
    """What a view answered then."""
    spine = pd.DataFrame({"user_id": users, "event_timestamp": times})
    features = [f"{view}:{name}" for name in names or FEATURES]
    return repo.store.get_historical_features(spine, features).to_df()


def online(repo: SmallRepo, users: list[int], view: str = "behaviors", *names: str) -> dict[str, list[Any]]:
    """What a view answers now."""
    features = [f"{view}:{name}" for name in names or FEATURES]
    return repo.store.get_online_features(features, [{"user_id": user} for user in users]).to_dict()


def delivered(make_repo: MakeRepo, table: pa.Table, contract: str = "") -> SmallRepo:
    """A repo of this table, applied."""
    repo: SmallRepo = make_repo(contract=contract)
    repo.deliver(table, "log")
    applied(repo)
    return repo


def applied(repo: SmallRepo) -> None:
    """Declare activity as well, and apply."""
    with (repo.folder / "definitions.py").open("a") as file:
        file.write('activity = activity_view("activity", entity=user, behaviors=behaviors, windows=("1d", "7d"))\n')
    repo.apply()


def recast(table: pa.Table, column: str, values: pa.Array) -> pa.Table:
    """The table with other values in a column."""
    return table.set_column(table.column_names.index(column), column, values)


@pytest.mark.parametrize(
    ("zone", "offset"), [("America/New_York", 5), ("Asia/Tokyo", -9), ("Asia/Kolkata", -5.5), ("UTC", 0)]
)
def test_wall_times_are_instants_of_the_declared_zone(make_repo: MakeRepo, zone: str, offset: float) -> None:
    # Given a behavior at 12:00 of the wall clock of a declared zone
    noon = T0 + 12 * HOUR
    table = rows(at=[noon], item=[105], price=[2.5])
    naive = pa.array([noon]).cast(pa.timestamp("us"))
    repo = delivered(make_repo, recast(table, "at", naive), f'naive_time_zone="{zone}"')
    known_us = noon + round(offset * HOUR)
    # When the past is read just before that instant, and at it
    found = past(repo, [1, 1], [moment(known_us - 1), moment(known_us)])
    # Then nothing of the future is known
    assert found["item_id"].isna().tolist() == [True, False]
    assert found["item_id"].iloc[1] == 105
    # And the online store holds it after a materialization past it, not one before it
    with at(known_us + DAY):
        repo.materialize(known_us - 1, ["behaviors", "activity"])
        assert online(repo, [1])["item_id"] == [None]
        repo.materialize(known_us + 1, ["behaviors"])
        assert online(repo, [1])["item_id"] == [105]


def test_behaviors_of_one_time_have_one_order(make_repo: MakeRepo) -> None:
    # Given checkouts: three purchases of each user at one time, in files of any order
    users = [user for user in range(1, 13) for _ in range(3)]
    items = [101 + (7 * number) % 30 for number in range(36)]
    table = rows(at=[T0 + HOUR] * 36, user=users, item=items, event=["purchase"] * 36, price=[1.0] * 36)
    repo = delivered(make_repo, table)
    expected = [max(items[3 * place : 3 * place + 3]) for place in range(12)]
    asked = (list(range(1, 13)), [moment(T0 + 2 * HOUR)] * 12)
    # When the past is read, of this file and of shuffled ones, and the present
    answers = [past(repo, *asked)["item_id"].tolist()]
    rng = np.random.default_rng(3)
    for _ in range(3):
        repo.deliver(table.take(pa.array(rng.permutation(36))), "log")
        answers.append(past(repo, *asked)["item_id"].tolist())
    repo.materialize(T0 + 2 * HOUR, ["behaviors"])
    answers.append(online(repo, asked[0])["item_id"])
    # Then all agree
    assert answers == [expected] * 5


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_every_unit_of_time_materializes(make_repo: MakeRepo, unit: str) -> None:
    # Given times of any unit, nanoseconds being pandas' default
    table = rows(at=[T0, T0 + HOUR], user=[1, 2], item=[101, 102], price=[3.5, None])
    times = pa.array([T0, T0 + HOUR]).cast(UTC_US)
    repo = delivered(make_repo, recast(table, "at", times.cast(pa.timestamp(unit, tz="UTC"))))
    # When the views are materialized
    repo.materialize(T0 + 2 * HOUR, ["behaviors", "activity"])
    # Then both sides answer
    assert online(repo, [1, 2])["item_id"] == [101, 102]
    assert past(repo, [1, 2], [moment(T0 + 2 * HOUR)] * 2)["item_id"].tolist() == [101, 102]
    assert online(repo, [1, 2], "activity", "view_7d")["view_7d"] == [1, 1]


def test_a_row_without_an_id_costs_no_other_row(make_repo: MakeRepo) -> None:
    # Given ids that pandas made floats with NaN
    frame = rows(at=[T0, T0 + HOUR, T0 + 2 * HOUR], user=[1, 2, 3], item=[101, 102, 103]).to_pandas()
    frame["user"] = [1.0, np.nan, 3.0]
    frame["item"] = [101.0, 102.0, np.nan]
    repo = delivered(make_repo, pa.Table.from_pandas(frame, preserve_index=False))
    # When the view is materialized
    repo.materialize(T0 + 3 * HOUR, ["behaviors", "activity"])
    # Then the good row is served, on both sides
    assert online(repo, [1, 3])["item_id"] == [101, None]
    found = past(repo, [1, 3], [moment(T0 + 3 * HOUR)] * 2)["item_id"]
    assert found.iloc[0] == 101
    assert pd.isna(found.iloc[1])


def test_files_of_several_zones_are_one_table(make_repo: MakeRepo) -> None:
    # Given files that store instants under different zones and units
    repo: SmallRepo = make_repo()
    kinds = [("us", "UTC"), ("us", "Europe/Berlin"), ("ns", "America/New_York"), ("ms", "+05:30")]
    for number, (unit, zone) in enumerate(kinds):
        table = rows(at=[T0 + number * HOUR], user=[number + 1], item=[101 + number])
        for column in ("at", "created"):
            table = recast(table, column, table[column].cast(pa.timestamp(unit, tz=zone)))
        repo.deliver(table, f"log-{number}")
    applied(repo)
    # When they are read and materialized
    repo.materialize(T0 + 4 * HOUR, ["behaviors", "activity"])
    # Then every instant is the one that was written
    assert online(repo, [1, 2, 3, 4])["item_id"] == [101, 102, 103, 104]
    before = past(repo, [2, 2], [moment(T0 + HOUR - 1), moment(T0 + HOUR)])["item_id"]
    assert before.isna().tolist() == [True, False]


@pytest.mark.parametrize(
    ("prices", "expected"),
    [
        (pa.array(["2.50", None], pa.string()).cast(pa.decimal128(10, 2)), [2.5, None]),
        (pa.array([3, 4], pa.int16()), [3.0, 4.0]),
        (pa.array([0.5, None], pa.float32()), [0.5, None]),
        (pa.array([7, None], pa.int64()).dictionary_encode(), [7.0, None]),
    ],
)
def test_values_have_one_type(make_repo: MakeRepo, prices: pa.Array, expected: list[float | None]) -> None:
    # Given prices of any type of number
    repo = delivered(make_repo, recast(rows(at=[T0, T0], user=[1, 2]), "price", prices))
    # When they are read in the past and online
    found = past(repo, [1, 2], [moment(T0 + HOUR)] * 2)["value"]
    repo.materialize(T0 + HOUR, ["behaviors"])
    # Then both sides answer float
    assert found.dtype == np.float64
    assert [None if pd.isna(value) else value for value in found] == expected
    assert online(repo, [1, 2])["value"] == expected


def test_text_in_a_column_of_numbers_is_named_everywhere(make_repo: MakeRepo) -> None:
    # Given prices as text
    repo = delivered(make_repo, recast(rows(at=[T0]), "price", pa.array(["2.50"])))
    jobs: list[Callable[[], Any]] = [
        lambda: past(repo, [1], [moment(T0 + HOUR)]),
        lambda: past(repo, [1], [moment(T0 + HOUR)], "activity", "view_1d"),
        lambda: repo.materialize(T0 + HOUR, ["behaviors"]),
        lambda: repo.materialize(T0 + HOUR, ["activity"]),
    ]
    # When it is read by anything, then the same words name column and remedy
    for job in jobs:
        with pytest.raises(BehaviorSourceError, match=r"Column 'price' of .* is string.*a number.*Store it as such"):
            job()


def test_behaviors_are_known_from_their_created_time_where_it_is_asked_for(make_repo: MakeRepo) -> None:
    # Given two behaviors, the later one written a day after it happened
    repo = delivered(
        make_repo,
        rows(at=[T0, T0 + HOUR], item=[101, 102], created=[T0, T0 + DAY]),
        'created_time="created"',
    )
    spine = pd.DataFrame({"user_id": [1, 1], "event_timestamp": [moment(T0 + 2 * HOUR), moment(T0 + 2 * DAY)]})
    # When the past is read by created time
    job = repo.store.get_historical_features(spine, ["behaviors:item_id"], filter_by_created_timestamp=True)
    # Then a behavior is known from the time at which it was written
    assert job.to_df()["item_id"].tolist() == [101, 102]

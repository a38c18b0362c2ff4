"""Reads as people ask for them: spines of any time, null and unknown ids, ends that lie ahead."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus
from repo_fixture import DAY, HOUR, T0, SmallRepo, moment, rows

from feast_embeddings.models.errors import DeclarationError, OnlineStoreError, TickError

NOW = T0 + 10 * HOUR
_MORE = """
from datetime import timedelta
from feast import FeatureView, Field, FileSource
from feast.types import Float64
activity = activity_view("activity", entity=user, behaviors=behaviors, windows=("1d", "7d"))
prices = FeatureView(
    name="prices", entities=[user], ttl=timedelta(0), schema=[Field(name="paid", dtype=Float64)],
    source=FileSource(name="prices", path="data/prices.parquet", timestamp_field="since"),
)
"""


@pytest.fixture(scope="module")
def repo(valkey: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallRepo]:
    """Three users' behaviors, materialized; an ordinary view beside them, as pandas writes it: in nanoseconds."""
    here, folder = Path.cwd(), tmp_path_factory.mktemp("reads")
    os.chdir(folder)
    made = SmallRepo(folder, valkey, "reads").write()
    text = (folder / "definitions.py").read_text().replace("CleaningRules()", 'CleaningRules(), push="clicks"')
    (folder / "definitions.py").write_text(text + _MORE)
    made.deliver(rows(at=[T0, T0 + HOUR, T0 + 2 * HOUR], user=[1, 2, 3], item=[101, 102, 103]), "log")
    since = pd.to_datetime([T0 * 1000 + 1, (T0 + HOUR) * 1000 + 999], utc=True)
    pd.DataFrame({"user_id": [1, 2], "paid": [2.5, 3.5], "since": since}).to_parquet(folder / "data/prices.parquet")
    made.apply()
    made.materialize(NOW, ["behaviors", "activity", "prices"])
    yield made
    os.chdir(here)


def past(repo: SmallRepo, times: Any, *features: str, users: Sequence[int] | None = None) -> pd.DataFrame:
    """Features of user 1, or of others, at times of any kind."""
    spine = pd.DataFrame({"user_id": [1] * len(times) if users is None else users, "event_timestamp": times})
    return repo.store.get_historical_features(spine, list(features or ("behaviors:item_id",))).to_df()


# ── times of the spine ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "texts",
    [
        ["2024-03-01T00:00:47+00:00", "2024-03-01T00:00:47.364+00:00"],
        ["2024-03-01T01:00:47.364512+01:00", "2024-03-01 00:00:47Z"],
        ["2024-03-02", "2024-03-01T10:00"],
    ],
)
def test_iso_texts_of_mixed_precision_are_read(repo: SmallRepo, texts: list[str]) -> None:
    # Given ISO 8601 texts of several precisions, when they are asked for, then each is its own time
    assert past(repo, texts)["item_id"].tolist() == [101, 101]


@pytest.mark.parametrize(
    "times",
    [
        [T0 // 1000],
        np.array([T0 / 1e6]),
        pd.array([T0, None], "Int64"),
        pd.Series([T0 // 1000], dtype=object),
        [Decimal(T0)],
        pd.to_datetime([T0 // 1000], utc=True),
        pd.to_datetime([T0], utc=True),
    ],
)
def test_numbers_for_times_are_refused(repo: SmallRepo, times: Any) -> None:
    # Given times as numbers since 1970, or as such numbers read in a wrong unit
    # When they are asked for, then the column and the remedy are named
    with pytest.raises(DeclarationError, match=r"'event_timestamp' of entity_df .*pd.to_datetime\(.*unit='ms'"):
        past(repo, times)


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", None])
def test_nanoseconds_in_the_spine_are_floored(repo: SmallRepo, zone: str | None) -> None:
    # Given a spine in nanoseconds, beside an ordinary view that is stored in nanoseconds
    times = pd.to_datetime([T0 * 1000 + 999, (T0 + HOUR) * 1000 + 1], utc=True)
    times = times.tz_localize(None) if zone is None else times.tz_convert(zone)
    # When both views are asked for
    found = past(repo, times, "behaviors:item_id", "prices:paid", users=[1, 2])
    # Then rows of the same microsecond count, in both
    assert found["item_id"].tolist() == [101, 102]
    assert found["paid"].tolist() == [2.5, 3.5]


def test_an_ordinary_view_in_nanoseconds_materializes(repo: SmallRepo) -> None:
    # Given pandas' default parquet in an ordinary view, materialized, when it is read, then its values are there
    found = repo.store.get_online_features(["prices:paid"], [{"user_id": 1}, {"user_id": 2}]).to_dict()
    assert found["paid"] == [2.5, 3.5]


# ── ids ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("ids", [[1, None], [None, 1], [None, None, 1, 1], [None], [*range(1, 40), None]])
def test_a_null_id_is_not_found_and_costs_no_other_row(repo: SmallRepo, ids: list[int | None]) -> None:
    # Given null ids among others
    features = ["behaviors:item_id", "activity:view_7d", "prices:paid", "user_embedding:embedding"]
    for asked in ([features[0]], features[2:3], features):
        # When they are read online
        answer = repo.store.get_online_features(asked, [{"user_id": each} for each in ids])
        # Then the others' values are there, and the null ones' are not found
        for name, feature in zip(asked, answer.proto.results[1:], strict=True):
            values = answer.to_dict()[name.partition(":")[2]]
            statuses = [status for status, each in zip(feature.statuses, ids, strict=True) if each is None]
            assert set(statuses) <= {FieldStatus.NOT_FOUND}
            assert [value for value, each in zip(values, ids, strict=True) if each is None] == [None] * len(statuses)
            if name != "user_embedding:embedding":
                expected = {"behaviors:item_id": 101, "activity:view_7d": 1, "prices:paid": 2.5}[name]
                assert {value for value, each in zip(values, ids, strict=True) if each == 1} <= {expected}
                assert 1 not in ids or expected in values


def test_an_unknown_user_has_one_answer(repo: SmallRepo) -> None:
    # Given a user without a behavior, and one whose first comes later
    features = ["activity:view_7d", "activity:recency_seconds", "behaviors:item_id"]
    # When both sides are read
    answer = repo.store.get_online_features(features, [{"user_id": 77}, {"user_id": 1}])
    found = past(repo, [moment(NOW), moment(T0), moment(NOW)], *features, users=[77, 2, 1])
    # Then neither knows anything, and online says so
    for feature in answer.proto.results[1:]:
        assert list(feature.statuses) == [FieldStatus.NOT_FOUND, FieldStatus.PRESENT]
        assert feature.event_timestamps[0].seconds == 0
    online = answer.to_dict()
    for name in ("view_7d", "recency_seconds", "item_id"):
        assert online[name][0] is None
        assert found[name].isna().tolist() == [True, True, False]
        assert online[name][1] == found[name].iloc[2]


def test_counts_of_a_known_user_are_zero_not_null(repo: SmallRepo) -> None:
    # Given a user whose behaviors are older than every window, when counted, then there are none, and a recency
    found = past(repo, [moment(T0 + 30 * DAY)], "activity:view_7d", "activity:recency_seconds")
    assert found["view_7d"].tolist() == [0]
    assert found["recency_seconds"].tolist() == [30 * 86_400]


# ── pushes ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("column", ["user_id", "at"])
def test_a_push_with_a_row_that_nothing_can_hold_has_no_effect(repo: SmallRepo, column: str) -> None:
    """Feast itself stops at such a row, when the rows before it are written."""
    # Given a frame with a row that lacks its user or its time
    frame = pd.DataFrame({"user_id": [31, 32], "item_id": 101, "event": "view", "price": 1.0, "at": [moment(T0)] * 2})
    frame = frame.rename(columns={"event": "behavior_type", "price": "value"})
    frame[column] = frame[column].astype(object).where([True, False], None)
    if column == "at":
        frame["at"] = pd.to_datetime(frame["at"], utc=True)
    # When it is pushed, then the column and the row are named
    with pytest.raises(OnlineStoreError, match=rf"Of 2 behaviors .* 1 have no {column}, .* row 1: nothing was written"):
        repo.store.push("clicks", frame)
    # And no row has an effect
    assert repo.store.get_online_features(["behaviors:item_id"], [{"user_id": 31}]).to_dict()["item_id"] == [None]
    with repo.redis() as client:
        assert [key for key in client.scan_iter(_type="stream") if b"reads" in key] == []


def test_pushed_rows_of_one_time_have_the_order_of_the_log(repo: SmallRepo) -> None:
    # Given three behaviors of one time, and one that is no behavior
    frame = pd.DataFrame(
        {
            "user_id": [41, 41, 41, 42],
            "item_id": [103.0, 105.0, 104.0, np.nan],
            "behavior_type": "view",
            "value": 1.0,
            "at": [moment(T0)] * 4,
        }
    )
    # When they are pushed
    repo.store.push("clicks", frame)
    # Then the last of the order is served, as a past read of the log would, and what is no behavior is not
    found = repo.store.get_online_features(["behaviors:item_id"], [{"user_id": 41}, {"user_id": 42}]).to_dict()
    assert found["item_id"] == [105, None]


# ── ends that lie ahead, and long logs ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("view", ["activity", "behaviors", "history", "user_embedding", "item_embedding"])
def test_an_end_that_lies_ahead_is_refused_by_every_view(repo: SmallRepo, view: str) -> None:
    # Given an end in 2031, when any of our views is materialized up to it, then it is refused
    before = repo.store.get_online_features(["activity:recency_seconds"], [{"user_id": 1}]).to_dict()
    ahead = T0 + 3_000 * DAY
    with pytest.raises(
        TickError, match=rf"View '{view}': the end 203\d.* lies in the future.*give an end at or before"
    ):
        repo.incremental(ahead, [view])
    with pytest.raises(TickError, match="lies in the future"):
        repo.materialize(ahead, [view])
    # And nothing is written
    assert repo.store.get_online_features(["activity:recency_seconds"], [{"user_id": 1}]).to_dict() == before


def test_a_long_life_is_read_in_the_time_that_its_rows_take(repo: SmallRepo) -> None:
    # Given a user of 400,000 behaviors, in a file of its own
    count = 400_000
    many = pa.array(T0 + np.arange(count, dtype=np.int64) * 1_000).cast(pa.timestamp("us", tz="UTC"))
    table = rows(at=[T0]).take(pa.array(np.zeros(count, np.int64)))
    for name, values in {"user": pa.array(np.full(count, 50)), "at": many, "created": many}.items():
        table = table.set_column(table.column_names.index(name), name, values)
    repo.deliver(table, "long")
    # When two rows are asked for
    start = time.process_time()
    found = past(repo, [moment(T0), moment(NOW)], "behaviors:item_id", "activity:view_7d", users=[50, 50])
    spent = time.process_time() - start
    (repo.folder / "data/behaviors/long.parquet").unlink()
    # Then they are right, within processor seconds (stock joins take many times as long)
    assert found["item_id"].tolist() == [101, 101]
    assert found["view_7d"].iloc[1] == count
    assert spent < 6

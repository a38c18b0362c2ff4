"""Behavior tables in every column type that parquet knows, and an oracle in plain Python of what they say."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import strategies as st
from repo_fixture import DAY, T0, TYPES, SmallRepo, moment

from feast_embeddings.models.errors import BehaviorSourceError

ZONE = "America/New_York"
USERS = (1, 2, 3)
END = T0 + 4 * DAY
FEATURES = ("item_id", "behavior_type", "value")
_OUT_OF_RANGE = -(2**53)
_FLOAT32_MAX = 3.4028234663852886e38
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

# Kind → how a column of that kind stores whole numbers; a kind that cannot be read as an id is refused.
_IDS: dict[str, pa.DataType] = {
    "int64": pa.int64(),
    "int16": pa.int16(),
    "uint64": pa.uint64(),
    "float64": pa.float64(),
    "text": pa.string(),
    "large text": pa.large_string(),
    "decimal": pa.decimal128(20, 2),
    "categories": pa.dictionary(pa.int32(), pa.string()),
}
_PRICES: dict[str, pa.DataType] = {
    "float64": pa.float64(),
    "float32": pa.float32(),
    "int8": pa.int8(),
    "decimal": pa.decimal128(9, 2),
    "big decimal": pa.decimal256(40, 2),
}
_REFUSED: dict[str, tuple[pa.DataType, Any]] = {
    "user": (pa.binary(), b"1"),
    "item": (pa.list_(pa.int64()), [101]),
    "event": (pa.float64(), 1.5),
    "at": (pa.int64(), T0),
    "price": (pa.string(), "2.50"),
    "created": (pa.date32(), datetime(2024, 3, 1, tzinfo=UTC).date()),
}
"""Column → a type that it cannot be read from, and a value of it."""


@dataclass(frozen=True)
class Messy:
    """A table as it is written, and what of it is asked."""

    files: tuple[pa.Table, ...]
    naive_zone: str | None
    options: dict[str, Any]
    asked: tuple[tuple[int, int], ...]
    refused: str | None

    def __repr__(self) -> str:
        """As a failing example is shown."""
        texts = [f"{file.schema.to_string()}\n{file.to_pylist()}" for file in self.files]
        return "\n".join([*texts, f"naive {self.naive_zone}, {self.options}, asked {self.asked}"])


@st.composite
def messy_tables(draw: st.DrawFn) -> Messy:
    """A table of up to nine behaviors of three users in four days, in one or two files."""
    kinds = {name: draw(st.sampled_from(sorted(_IDS))) for name in ("user", "item")}
    price = _PRICES[draw(st.sampled_from(sorted(_PRICES)))]
    text = draw(st.sampled_from([pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())]))
    zoned = draw(st.booleans())
    rows = [draw(_rows(kinds, price)) for _ in range(draw(st.integers(1, 7)))]
    for number, row in enumerate(rows):
        row["id"] = row["id"] and f"{number}"
    again = draw(st.lists(st.sampled_from(rows), max_size=2))
    rows += [{**row, "created": (row["created"] or row["at"] or T0) + 5} for row in again if row["id"]]
    unit = draw(st.sampled_from(["s", "ms", "us", "ns"]))
    cut = draw(st.integers(1, len(rows)))
    refused = draw(st.sampled_from([None] * 8 + sorted(_REFUSED)))
    files = []
    for part in filter(None, (rows[:cut], rows[cut:])):
        zone = draw(st.sampled_from(["UTC", "Europe/Berlin", ZONE, "+05:30"])) if zoned else None
        types = {
            "user": _IDS[kinds["user"]],
            "item": _IDS[kinds["item"]],
            "event": text,
            "at": pa.timestamp(draw(st.sampled_from(["s", "ms", "us", "ns"])) if zoned else unit, zone),
            "price": price,
            "created": pa.timestamp("us", "UTC"),
            "id": pa.string(),
        }
        files.append(pa.table({name: _array(part, name, kind) for name, kind in types.items()}))
    if refused is not None:
        kind, value = _REFUSED[refused]
        place = files[0].column_names.index(refused)
        files = [file.set_column(place, refused, pa.array([value] * len(file), kind)) for file in files]
    asked = st.tuples(st.sampled_from((*USERS, 9)), st.integers(T0, END))
    exact = [(user, row["at"]) for row in rows for user in USERS if row["at"] and T0 < row["at"] <= END]
    return Messy(
        tuple(files),
        draw(st.sampled_from([None, ZONE])),
        {
            "compression": draw(st.sampled_from(["none", "snappy", "gzip", "zstd"])),
            "use_dictionary": draw(st.booleans()),
            "data_page_version": draw(st.sampled_from(["1.0", "2.0"])),
            "version": draw(st.sampled_from(["2.4", "2.6"])),
            "row_group_size": draw(st.sampled_from([1, 3, 1000])),
        },
        tuple(draw(st.lists(asked, min_size=1, max_size=4)) + exact[:3]),
        refused,
    )


@st.composite
def _rows(draw: st.DrawFn, kinds: dict[str, str], price: pa.DataType) -> dict[str, Any]:
    prices: list[Any] = [None, 0, 1, 7]
    if pa.types.is_floating(price):
        prices += [math.nan, math.inf, -math.inf, -0.0, 2.5]
    if price == pa.float64():
        prices.append(1e300)
    if pa.types.is_decimal(price):
        prices += [Decimal("2.50"), Decimal("-1.25")]
    seconds = draw(st.integers(0, 3 * 86_400))
    odd_time = draw(st.integers(0, 19))
    return {
        "user": draw(_ids(kinds["user"], USERS)),
        "item": draw(_ids(kinds["item"], (101, 102, 103))),
        "event": draw(st.sampled_from([*TYPES, *TYPES, *TYPES, "nonsense", None])),
        "at": None if odd_time == 0 else T0 + 36_500 * DAY if odd_time == 1 else T0 + seconds // 7_200 * 7_200_000_000,
        "price": draw(st.sampled_from(prices)),
        "created": draw(st.sampled_from([None, T0 + 3 * DAY])),
        "id": draw(st.sampled_from([None, "", "own"])),
    }


def _ids(kind: str, plain: Sequence[int]) -> st.SearchStrategy[Any]:
    odd: list[Any] = [None]
    if kind == "float64":
        odd += [math.nan, 1.5, 1e300]
    elif kind == "uint64":
        odd += [2**64 - 1]
    elif kind == "decimal":
        odd += [Decimal("1.50")]
    elif kind != "int64" and kind != "int16":
        odd += ["", "007", "x", str(2**63), " 1"]
    return st.one_of(st.sampled_from([*plain] * 3), st.sampled_from([*plain] * 3), st.sampled_from(odd))


def _array(rows: Sequence[dict[str, Any]], name: str, kind: pa.DataType) -> pa.Array:
    values = [row[name] for row in rows]
    if pa.types.is_timestamp(kind):  # wall times of a naive column are written as if they were UTC
        per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[kind.unit]
        return pa.array([None if us is None else us * per_second // 10**6 for us in values], pa.int64()).cast(kind)
    if pa.types.is_dictionary(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind):
        texts = pa.array([None if value is None else str(value) for value in values], pa.string())
        return texts.dictionary_encode().cast(kind) if pa.types.is_dictionary(kind) else texts.cast(kind)
    return pa.array(values, kind, from_pandas=False)


# ── the oracle ───────────────────────────────────────────────────────────────────────────────────────────────


def behaviors_in(messy: Messy, now_us: int) -> list[dict[str, Any]]:
    """The rows that are behaviors, each once, in the one order."""
    found: dict[Any, dict[str, Any]] = {}
    for file in messy.files:
        columns = {name: file[name].to_pylist() for name in file.column_names if name not in ("at", "created")}
        kind = file.schema.field("at").type
        ticks, created = (file[name].cast(pa.int64()).to_pylist() for name in ("at", "created"))
        for number in range(len(file)):
            row = {name: values[number] for name, values in columns.items()}
            row |= {
                "user": _id(row["user"]),
                "item": _id(row["item"]),
                "at": _us(ticks[number], kind, messy.naive_zone),
            }
            price, bad = row["price"], False
            if price is not None:
                row["price"] = float(price)
                bad = not math.isfinite(row["price"]) or abs(row["price"]) > _FLOAT32_MAX
            if None in (row["user"], row["item"], row["at"]) or row["event"] not in TYPES or bad or row["at"] > now_us:
                continue
            found.setdefault(row["id"] or (*row.values(), created[number]), row)
    return sorted(found.values(), key=_order)


def _order(row: dict[str, Any]) -> tuple[Any, ...]:
    no_price = row["price"] is None
    return row["user"], row["at"], row["item"], TYPES.index(row["event"]), no_price, 0.0 if no_price else row["price"]


def _id(value: Any) -> int | None:
    if isinstance(value, str):
        return int(value) if re.fullmatch("0|-?[1-9][0-9]{0,18}", value) and abs(int(value)) < 2**63 else None
    if value is None or value != value or value != int(value):
        return None
    limit = 2**53 if isinstance(value, float) else 2**63
    return int(value) if abs(value) < limit else None


def _us(ticks: int | None, kind: pa.DataType, naive_zone: str | None) -> int | None:
    if ticks is None or (kind.tz is None and naive_zone is None):
        return None
    us = ticks * 10**6 // {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[kind.unit]
    if kind.tz is not None:
        return us
    wall = (_EPOCH + timedelta(microseconds=us)).replace(tzinfo=ZoneInfo(naive_zone or "UTC"))
    return (wall - _EPOCH) // timedelta(microseconds=1)


# ── the property ─────────────────────────────────────────────────────────────────────────────────────────────


def check(repo: SmallRepo, messy: Messy, now_us: int) -> str:
    """Asserts that a table is served right, in the past and online, or refused by column and remedy; which of them."""
    folder = repo.folder / "data" / "behaviors"
    for file in folder.iterdir():
        file.unlink()
    for number, table in enumerate(messy.files):
        pq.write_table(table, folder / f"{number}.parquet", **messy.options)
    with repo.redis() as client:
        if stale := [key for key in client.scan_iter(count=1000) if repo.project.encode() in key]:
            client.delete(*stale)
    if messy.refused is not None:
        words = rf"(?s)Column '{messy.refused}' of .* cannot be read as .*Store it as such"
        with pytest.raises(BehaviorSourceError, match=words):
            _past(repo, messy)
        with pytest.raises(BehaviorSourceError, match=words):
            _materialize(repo)
        return "refused"
    found = _past(repo, messy)
    _materialize(repo)
    known = behaviors_in(messy, now_us)
    for place, (user, at_us) in enumerate(messy.asked):
        _same(found.iloc[place], _latest(known, user, at_us))
        counted = [row for row in known if row["user"] == user and row["at"] < at_us]
        views = sum(row["event"] == "view" and row["at"] >= at_us - DAY for row in counted)
        assert _plain(found["view_1d"].iloc[place]) == (views if counted else None)
    ids = [*USERS, 9]
    online = repo.store.get_online_features(
        [f"behaviors:{name}" for name in FEATURES], [{"user_id": each} for each in ids]
    ).to_dict()
    for place, user in enumerate(ids):
        _same({name: online[name][place] for name in FEATURES}, _latest(known, user, END + DAY))
    return "served"


def _materialize(repo: SmallRepo) -> None:
    repo.store.materialize(moment(T0 - DAY), moment(END + DAY), ["behaviors"])


def _past(repo: SmallRepo, messy: Messy) -> pd.DataFrame:
    users, times = zip(*messy.asked, strict=True)
    spine = pd.DataFrame({"user_id": users, "event_timestamp": [moment(each) for each in times]})
    names = [*(f"behaviors:{name}" for name in FEATURES), "activity:view_1d"]
    return repo.store.get_historical_features(spine, names).to_df()


def _latest(known: list[dict[str, Any]], user: int, at_us: int) -> list[Any]:
    rows = [row for row in known if row["user"] == user and row["at"] <= at_us]
    return [rows[-1][name] for name in ("item", "event", "price")] if rows else [None] * 3


def _same(found: Any, expected: list[Any]) -> None:
    assert [_plain(found[name]) for name in FEATURES] == expected


def _plain(value: Any) -> Any:
    return None if pd.isna(value) else value


def messy_repo(folder: Path, connection: str, naive_zone: str | None) -> SmallRepo:
    """A repo for :func:`check`; the process must be in ``folder``."""
    contract = 'created_time="created"' + (f', naive_time_zone="{naive_zone}"' if naive_zone else "")
    repo = SmallRepo(folder, connection, f"messy{'z' if naive_zone else ''}", contract=contract).write()
    with (folder / "definitions.py").open("a") as file:
        file.write('activity = activity_view("activity", entity=user, behaviors=behaviors, windows=("1d",))\n')
    repo.apply()
    return repo

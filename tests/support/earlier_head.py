"""Repos that an earlier head of this package wrote (``tests/data/earlier_head``): opened, asked, and gone on with.

All of it goes through what users have: the command line, ``FeatureStore`` and ``read_vectors``.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import redis
import torch
from feast import FeatureStore
from redis_commands import Command, run_commands

from feast_embeddings.materialize import read_vectors
from feast_embeddings.materialize.cli import main
from feast_embeddings.materialize.clock import SimulatedClock, simulated
from feast_embeddings.models import TableEncoder, Tokens, register_encoder

DATA = Path(__file__).parents[1] / "data" / "earlier_head"
HOUR = 3_600_000_000
DAY = 24 * HOUR
T0 = 1_709_251_200_000_000
"""2024-03-01, UTC: the first behavior of every repo."""
USERS = np.append(np.arange(1, 32), 999)
"""One who comes to the stream when it goes on is among them, and the last one, who never did anything."""
ITEMS = np.append(np.arange(101, 121), [900, 901, 999])
"""The encoders know the first 20; users came to the next two; nobody came to the last."""
VIEWS = ("user_embedding", "item_embedding")
HISTORY = tuple(f"history:history_{name}" for name in ("items", "types", "times", "values"))

Answers = dict[str, np.ndarray]


@register_encoder("ranked-sum")
class RankedSum(TableEncoder):
    """Sums of whole numbers, which are the same on every machine, in whatever order they are added."""

    def pooled(self, tokens: Tokens, lengths: torch.Tensor) -> torch.Tensor:
        """Items (R, L) weighted by their place in the history, and by their behavior type: (R, D)."""
        place = torch.arange(tokens.items.shape[1], device=lengths.device)
        weight = torch.where(place < lengths[:, None], 1 + place + 3 * tokens.types, 0)
        summed: torch.Tensor = (self.item_table(tokens.items) * weight[..., None]).sum(dim=1)
        return summed / 64


@dataclass(frozen=True)
class Earlier:
    """What is known of one of the repos.

    Attributes:
        name: Of its archive, and of its Feast project.
        saved: Day on which it was saved.
        resumed: Day on which it goes on.
        stream: Its user view is fed by a stream.
        inexact: Its service, if any, whose vectors have other last bits where another machine type computes them.
    """

    name: str
    saved: float
    resumed: float
    stream: bool = False
    inexact: str = "none"

    def open(self, folder: Path, url: str, kept: Callable[[Command], bool] = lambda _: True) -> None:
        """Unpack into ``folder``, and fill the Redis at ``url``, flushed first, by those commands that are kept."""
        with tarfile.open(DATA / f"{self.name}.tar.gz") as archive:
            archive.extractall(folder, filter="data")
        config = folder / "feature_store.yaml"
        config.write_text(config.read_text().replace("connection_string: embedded", f"connection_string: {url}"))
        with redis.Redis.from_url(url) as client:
            client.flushall()
            run_commands(client, folder / "redis.jsonl.gz", kept)

    # ── going on ─────────────────────────────────────────────────────────────────────────────────────────

    def go_on(self) -> str:
        """Finish what was left open, then a stream tick more where there is a stream, then what is due.

        Returns:
            What the stream's worker said last: its micro-batches, and what became of their behaviors.
        """
        said = ""
        with at(self.resumed):
            if self.stream:
                run("append", *map(json.dumps, later_clicks()))
                said = run("stream", "--until-idle-s", "1").splitlines()[-1]
            FeatureStore(".").materialize_incremental(moment(self.resumed), list(VIEWS))
        return said

    # ── asking ───────────────────────────────────────────────────────────────────────────────────────────

    def before(self) -> Answers:
        """What reads return, of all times up to that at which the repo was saved."""
        return {**_online(self.saved), **self.past()}

    def past(self) -> Answers:
        """What retrievals return of those times: whatever is done later, nothing of it may change."""
        return self._historical(range(T0, day(self.saved) + 1, 6 * HOUR))

    def after(self) -> Answers:
        """What reads return once the repo has gone on; no microsecond of a publication counts here."""
        times = range(day(self.saved) + HOUR, day(self.resumed + 1), 6 * HOUR)
        online = {
            name: array // 10**6 if name.endswith(" times") else array for name, array in _online(self.resumed).items()
        }
        return {**online, **self._historical(times)}

    def _historical(self, times: Iterable[int]) -> Answers:
        """A retrieval of everybody at all times: from what is live, and from each pinned space."""
        store, moments = FeatureStore("."), [datetime.fromtimestamp(us / 1e6, UTC) for us in times]
        asked = pd.DataFrame({"user_id": USERS, "item_id": np.resize(ITEMS, len(USERS))})
        rows = asked.merge(pd.DataFrame({"event_timestamp": moments}), how="cross")
        plain = [*(f"{view}:embedding" for view in VIEWS), *(() if self.stream else HISTORY)]
        found: Answers = {}
        for name, features in {"plain": plain, **_services(store)}.items():
            table = store.get_historical_features(rows, features, full_feature_names=True).to_arrow()
            columns = {column: table[column].to_pylist() for column in table.column_names if "__" in column}
            found |= _flat(f"historical {name}", columns)
        return found


EARLIER = (
    Earlier("batch", saved=7.2, resumed=8.0, inexact="pinned_1"),
    Earlier("stream", saved=5.9, resumed=6.5, stream=True),
    Earlier("refresh", saved=7.2, resumed=8.0),
)


def later_clicks() -> list[dict[str, Any]]:
    """Behaviors that come to the stream when it goes on, a few of them to items that no encoder knows."""
    at = range(day(6.1), day(6.4), HOUR)
    return [click(3 + 4 * number, (101 + 2 * number, 900)[number % 3 == 0], us) for number, us in enumerate(at)]


def click(user: int, item: int, us: int, **more: Any) -> dict[str, Any]:
    """One behavior as a message has it."""
    return {"user": user, "item": item, "event": "view", "at": us, "price": None, "id": f"{user}-{item}-{us}", **more}


def run(*arguments: str) -> str:
    """``feast-embeddings <arguments>`` in this process and folder, and what it prints; it must end well."""
    out, code = StringIO(), None
    with patch.object(sys, "argv", ["feast-embeddings", *arguments]), patch.dict(os.environ, COLUMNS="200"):
        try:
            with redirect_stdout(out):
                main()
        except SystemExit as end:
            code = end.code
    assert not code, f"{arguments[0]} ended with {code}: {out.getvalue()}"
    return out.getvalue()


def shown(text: str) -> dict[str, list[dict[str, str]]]:
    """The tables of ``feast-embeddings status``: title → rows, each header → cell."""
    tables: dict[str, list[dict[str, str]]] = {}
    title, headers = "", [""]
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.replace("┃", "│").split("│")[1:-1]]
        if not cells and line.strip() and line[0].isalpha():
            title = line.strip()
            tables[title] = []
        elif cells and "┃" in line:
            headers = cells
        elif cells:
            tables[title].append(dict(zip(headers, cells, strict=True)))
    return tables


def counted(said: str) -> dict[str, int]:
    """The behaviors that a worker counted, by what became of them."""
    return {what: int(number) for what, number in re.findall(r"([a-z]+) (\d+)", said)}


def differing(found: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> list[str]:
    """Names of the wanted answers that are not found, or with other bits."""
    return [name for name in wanted if name not in found or _bits(found[name]) != _bits(wanted[name])]


def day(number: float) -> int:
    """Microseconds of a day of the repos."""
    return T0 + round(number * DAY)


def moment(days: float) -> datetime:
    """A day as Feast takes it."""
    return datetime.fromtimestamp(day(days) / 1e6, UTC)


@contextmanager
def at(days: float) -> Iterator[SimulatedClock]:
    """The package's clock at a day."""
    with simulated(day(days)) as clock:
        yield clock


def _online(days: float) -> Answers:
    """Reads at request time of everybody, as of a day: vectors live and pinned, and histories."""
    store, found = FeatureStore("."), {}
    with at(days):
        for view, ids in zip(VIEWS, (USERS, ITEMS), strict=True):
            vectors = read_vectors(store, f"{view}:embedding", ids)
            found[f"vectors {view} values"], found[f"vectors {view} found"] = vectors.values, vectors.found
            found[f"vectors {view} times"] = vectors.event_time
            found[f"vectors {view} of"] = np.array([vectors.space, str(vectors.generation)])
        asked = [{"user_id": user, "item_id": item} for user, item in _pairs()]
        for name, features in {"histories": list(HISTORY), **_services(store)}.items():
            answer = store.get_online_features(features, asked, full_feature_names=True).to_dict()
            found |= _flat(f"online {name}", {column: answer[column] for column in answer if "__" in column})
    return found


def _pairs() -> Sequence[tuple[int, int]]:
    return list(zip(USERS.tolist(), np.resize(ITEMS, len(USERS)).tolist(), strict=True))


def _services(store: FeatureStore) -> dict[str, Any]:
    return {service.name: service for service in store.list_feature_services()}


def _flat(name: str, columns: Mapping[str, Sequence[Sequence[float] | None]]) -> Answers:
    """Columns of lists as arrays: how long each list is (-1: null), and all of their numbers."""
    found: Answers = {}
    for column, lists in columns.items():
        found[f"{name} {column} lengths"] = np.array([-1 if each is None else len(each) for each in lists], np.int64)
        numbers = [number for each in lists if each is not None for number in each]
        found[f"{name} {column} numbers"] = np.array(numbers, np.float64)
    return found


def _bits(array: np.ndarray) -> tuple[str, tuple[int, ...], bytes]:
    return str(array.dtype), array.shape, array.tobytes()

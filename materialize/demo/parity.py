"""Parity: what historical retrieval returns for a time is what online reads returned at that time, bit for bit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from feast import FeatureStore

from feast_embeddings.materialize.declare import embedding_specs
from feast_embeddings.materialize.demo.reads import Rows, historical
from feast_embeddings.materialize.files import Workspace
from feast_embeddings.models.types import Int64s


@dataclass(frozen=True)
class Parity:
    """Rows read online, held against historical retrieval.

    Attributes:
        rows: All of them.
        equal: Those that are the same bit for bit; within a recorded publish window, as the vector before or after it.
        in_window: Rows read within a publish window.
        missing: Rows without a user vector, on both sides.
    """

    rows: int
    equal: int
    in_window: int
    missing: int

    def __add__(self, other: Parity) -> Parity:
        return Parity(
            self.rows + other.rows,
            self.equal + other.equal,
            self.in_window + other.in_window,
            self.missing + other.missing,
        )


@dataclass(frozen=True)
class Comparison:
    """The rows behind the figures.

    Attributes:
        parity: The figures.
        asked: User, item, label and time of each row.
        online, offline: What either side returned for that time.
        at_once: bool [n], rows that are the same without looking at the end of a publish window.
    """

    parity: Parity
    asked: pd.DataFrame
    online: Rows
    offline: Rows
    at_once: np.ndarray


def compare(store: FeatureStore, asked: pd.DataFrame, online: Rows) -> Comparison:
    """Hold online answers against historical retrieval."""
    dim = online.users.shape[1]
    offline = historical(store, asked, dim)
    at_once = online.equal(offline)
    times = asked["event_timestamp"].to_numpy("datetime64[us]").astype(np.int64)
    ends = _window_ends(store, times)
    inside = ends > 0
    equal = at_once.copy()
    if inside.any():
        later = asked[inside].assign(event_timestamp=pd.to_datetime(ends[inside], unit="us", utc=True))
        equal[inside] |= online.take(inside).equal(historical(store, later, dim))
    parity = Parity(len(asked), int(equal.sum()), int(inside.sum()), int((~online.found).sum()))
    return Comparison(parity, asked, online, offline, at_once)


def _window_ends(store: FeatureStore, times: Int64s) -> Int64s:
    """The end of the publish window that each time lies in, int64 [n]; 0 where it lies in none."""
    ledger = Workspace.of(store.config).ledger
    windows: list[tuple[int, int]] = []
    for spec in embedding_specs(store.registry, store.project):
        ticks = [tick for tick in ledger.published_ticks(spec.view) if tick.kind == "incremental"]
        windows.extend((tick.window_start_us or 0, tick.published_us or 0) for tick in ticks)
        cutovers = ledger.generations(spec.encoder)
        windows.extend((cutover.window_start_us or 0, cutover.cutover_us or 0) for cutover in cutovers)
    starts, ends = np.array(sorted(windows), np.int64).T
    at = np.searchsorted(starts, times, side="right") - 1
    inside = (at >= 0) & (times <= ends[np.maximum(at, 0)])
    return np.where(inside, ends[np.maximum(at, 0)], 0)

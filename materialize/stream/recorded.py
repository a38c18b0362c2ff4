"""Behaviors from a parquet file, row by row at their own pace or faster: for tests and backtests."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from feast_embeddings.materialize.clock import now_us
from feast_embeddings.materialize.ledger import Ranges
from feast_embeddings.materialize.stream.source import Delivery, Positions, partition_of
from feast_embeddings.models.types import Int64s
from feast_embeddings.transformations import BehaviorContract
from feast_embeddings.transformations.sources import read_messages


class ParquetReplay:
    """A lane of a file's rows, as JSON, in the order of their event time; see :class:`~source.Source`.

    A row's offset is its place in that order, its partition the CRC-32 of its entity modulo ``of``. Committed
    positions stand in a file of their own beside the parquet file; the parquet file must not change.

    Args:
        path: The parquet file.
        contract: Which columns it has.
        group: Whose positions: the embedding view.
        partitions: The lane's partitions.
        of: Number of partitions in all.
        after: Recorded positions.
        speed: 1: rows come as fast as they once did; 10: ten times as fast; infinity: at once.
    """

    def __init__(
        self,
        path: str | Path,
        contract: BehaviorContract,
        group: str,
        partitions: Sequence[int],
        of: int,
        after: Positions | None = None,
        speed: float = float("inf"),
    ) -> None:
        self.name = Path(path).name
        self._committed_path = Path(path).with_name(f".{self.name}.{group}.{'-'.join(map(str, partitions))}.json")
        self.partitions = tuple(partitions)
        committed = self._committed()
        self._payloads, self._times_us, entities = read_messages(Path(path), contract)
        self._of_row = _hashes(entities, of)
        mine = np.isin(self._of_row, self.partitions)
        self._done = {p: max(committed.get(p, -1), (after or {}).get(p, -1)) for p in partitions}
        self._rows_of = {p: np.flatnonzero(self._of_row == p) for p in partitions}
        place = np.array([self._done.get(p, -1) for p in range(of)], np.int64)[self._of_row]
        self._rows: Int64s = np.flatnonzero(mine & (np.arange(len(mine)) > place)).astype(np.int64)
        self._next = 0
        self._delivered: dict[int, int] = {}
        self._speed = speed
        self._began = time.monotonic()
        self._began_us = int(self._times_us[self._rows[0]]) if len(self._rows) else 0

    def next_batch(self, max_events: int, max_wait_s: float) -> Delivery | None:
        """As the contract says; None for ever once the file has been read to its end."""
        deadline = time.monotonic() + max_wait_s
        while not (ready := self._ready(max_events)):
            left = deadline - time.monotonic()
            if left <= 0 or self.exhausted:
                return None
            time.sleep(min(left, 0.005))
        rows = self._rows[self._next : self._next + ready]
        self._next += ready
        delivery = self._delivery(rows)
        self._delivered |= delivery.positions
        return delivery

    @property
    def exhausted(self) -> bool:
        """Whether every row was delivered."""
        return self._next >= len(self._rows)

    def snapshot(self) -> dict[int, int]:
        """As the contract says."""
        return dict(self._delivered)

    def replay(self, ranges: Ranges) -> Delivery:
        """As the contract says."""
        row = np.arange(len(self._of_row))
        wanted = np.zeros(len(row), np.bool_)
        for partition, (first, last) in ranges.items():
            wanted |= (self._of_row == partition) & (row >= first) & (row <= last)
        return self._delivery(np.flatnonzero(wanted).astype(np.int64))

    def commit(self, positions: Positions) -> None:
        """As the contract says; the file of positions is replaced whole."""
        known = self._committed()
        merged = {p: max(last, known.get(p, -1)) for p, last in {**known, **positions}.items()}
        temporary = self._committed_path.with_suffix(".tmp")
        temporary.write_text(json.dumps(merged))
        temporary.replace(self._committed_path)
        self._done |= merged

    def lag(self) -> dict[int, int]:
        """As the contract says: rows that are due and wait."""
        due = self._rows[self._next : self._next + self._ready(len(self._rows))]
        return {p: int(np.count_nonzero(self._of_row[due] == p)) for p in self.partitions}

    def oldest_us(self) -> int | None:
        """As the contract says: a row comes when it is due, the first one when the file is opened."""
        firsts = {p: int(np.searchsorted(rows, self._done[p], side="right")) for p, rows in self._rows_of.items()}
        waiting = [int(self._rows_of[p][first]) for p, first in firsts.items() if first < len(self._rows_of[p])]
        if not waiting:
            return None
        due_s = (int(self._times_us[min(waiting)]) - self._began_us) / 1e6 / self._speed
        waited_s = time.monotonic() - self._began - due_s
        return None if waited_s < 0 else now_us() - round(waited_s * 1e6)

    def close(self) -> None:
        """Nothing to give back."""

    # ── private ──────────────────────────────────────────────────────────────────────────────────────────

    def _ready(self, most: int) -> int:
        left = self._rows[self._next : self._next + most]
        if not np.isfinite(self._speed):
            return len(left)
        until_us = self._began_us + (time.monotonic() - self._began) * self._speed * 1_000_000
        return int(np.searchsorted(self._times_us[left], until_us, side="right"))

    def _delivery(self, rows: Int64s) -> Delivery:
        payloads = [self._payloads[row].encode() for row in rows.tolist()]
        return Delivery(self.name, self._of_row[rows], rows, payloads, np.zeros(len(rows), np.int64))

    def _committed(self) -> dict[int, int]:
        with contextlib.suppress(FileNotFoundError):
            return {int(p): last for p, last in json.loads(self._committed_path.read_text()).items()}
        return {}


def _hashes(ids: Sequence[str], partitions: int) -> Int64s:
    known = {each: partition_of(each, partitions) for each in set(ids)}
    return np.array([known[each] for each in ids], np.int64)

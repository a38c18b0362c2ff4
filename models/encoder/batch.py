"""The one input of every encoder: ragged histories of a batch of entities."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from feast_embeddings.models.types import Bools, Float32s, Ids, Int32s, Int64s


def segments(starts: Int64s, lengths: Int64s) -> tuple[Int64s, Int64s]:
    """Row numbers of segments laid end to end.

    Args:
        starts: int64 [B], first row of each segment.
        lengths: int64 [B].

    Returns:
        The rows, int64 [sum of lengths], and the offsets of the segments in them, int64 [B + 1].
    """
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1], dtype=np.int64), offsets


@dataclass(frozen=True, slots=True)
class HistoryBatch:
    """Histories of B entities, N behaviors in all, each history oldest first.

    Attributes:
        offsets: int64 [B + 1]; history b is rows ``offsets[b]:offsets[b + 1]``.
        items: Raw item ids [N].
        behavior_types: int32 [N], codes into the contract's list of behavior types.
        times: int64 [N], event times in microseconds since the epoch, UTC.
        values: float32 [N], raw values (price, rating, …); NaN where there is none.
        as_of: int64 [B], the time each history stands at, in microseconds; every event time is before it.
    """

    offsets: Int64s
    items: Ids
    behavior_types: Int32s
    times: Int64s
    values: Float32s
    as_of: Int64s

    @classmethod
    def empty(cls, items: Ids, as_of: Int64s) -> HistoryBatch:
        """B histories without behaviors, as of ``as_of`` (int64 [B]), with the id type of ``items``."""
        nothing = np.empty(0, np.int64)
        none = nothing.astype(np.float32)
        return cls(np.zeros(len(as_of) + 1, np.int64), items[:0], nothing.astype(np.int32), nothing, none, as_of)

    @classmethod
    def of_items(
        cls, items: Sequence[Sequence[int] | Sequence[str]], behavior_type: int = 0, as_of: int | None = None
    ) -> HistoryBatch:
        """Histories of which only the items are known, oldest first: a second apart, without values.

        Args:
            items: One list of raw item ids per history, int64 or strings as the encoder knows them.
            behavior_type: Code of the type that all behaviors have: its place in the contract's list.
            as_of: The time the histories stand at, microseconds since the epoch, UTC; default: now.
        """
        lengths = np.array([len(each) for each in items], np.int64)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        flat = [item for each in items for item in each]
        text = any(isinstance(item, str) for item in flat)
        now = time.time_ns() // 1_000 if as_of is None else as_of
        before = np.repeat(offsets[1:], lengths) - np.arange(len(flat), dtype=np.int64)
        return cls(
            offsets=offsets,
            items=np.array(flat, object if text else np.int64),
            behavior_types=np.full(len(flat), behavior_type, np.int32),
            times=now - before * 1_000_000,
            values=np.full(len(flat), np.nan, np.float32),
            as_of=np.full(len(items), now, np.int64),
        )

    def __len__(self) -> int:
        """Number of histories, B."""
        return len(self.as_of)

    @property
    def lengths(self) -> Int64s:
        """Behaviors per history: int64 [B]."""
        return np.diff(self.offsets)

    @property
    def owner(self) -> Int64s:
        """The history of each behavior: int64 [N]."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def take(self, rows: Int64s) -> HistoryBatch:
        """The histories at ``rows`` (int64 [R]), in that order."""
        return self.gathered(*segments(self.offsets[:-1][rows], self.lengths[rows]), self.as_of[rows])

    def where(self, mask: Bools) -> HistoryBatch:
        """The same histories, of their behaviors those where ``mask`` (bool [N]) is true."""
        before = np.concatenate([[0], np.cumsum(mask)]).astype(np.int64)
        return self.gathered(mask, before[self.offsets], self.as_of)

    def followed_by(self, later: HistoryBatch) -> HistoryBatch:
        """Each history's behaviors, then those of ``later`` [B], as of its times."""
        order = np.argsort(np.concatenate([self.owner, later.owner]), kind="stable")
        return HistoryBatch(
            offsets=self.offsets + later.offsets,
            items=np.concatenate([self.items, later.items])[order],
            behavior_types=np.concatenate([self.behavior_types, later.behavior_types])[order],
            times=np.concatenate([self.times, later.times])[order],
            values=np.concatenate([self.values, later.values])[order],
            as_of=later.as_of,
        )

    def gathered(self, rows: Int64s | Bools, offsets: Int64s, as_of: Int64s) -> HistoryBatch:
        """Histories, parted by ``offsets`` and as of ``as_of``, of the behaviors at ``rows`` (int64 or a mask)."""
        return HistoryBatch(
            offsets=offsets,
            items=self.items[rows],
            behavior_types=self.behavior_types[rows],
            times=self.times[rows],
            values=self.values[rows],
            as_of=as_of,
        )

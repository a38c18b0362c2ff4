"""The one input of every encoder: ragged histories of a batch of entities."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]
Float32s = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64] | npt.NDArray[np.object_]
"""Raw entity or item ids: int64, or Python strings in an object array."""


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

    def __len__(self) -> int:
        """Number of histories, B."""
        return len(self.as_of)

    @property
    def lengths(self) -> Int64s:
        """Behaviors per history: int64 [B]."""
        return np.diff(self.offsets)

    def take(self, rows: Int64s) -> HistoryBatch:
        """The histories at ``rows`` (int64 [R]), in that order."""
        lengths = self.lengths[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        flat = np.repeat(self.offsets[:-1][rows] - offsets[:-1], lengths) + np.arange(offsets[-1])
        return HistoryBatch(
            offsets=offsets,
            items=self.items[flat],
            behavior_types=self.behavior_types[flat],
            times=self.times[flat],
            values=self.values[flat],
            as_of=self.as_of[rows],
        )

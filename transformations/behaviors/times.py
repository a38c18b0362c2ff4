"""Timestamps of any unit and zone as int64 microseconds since the epoch, UTC."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feast_embeddings.models.types import Bools, Int64s

DAY_US = 86_400_000_000
TIMESTAMP = pa.timestamp("us", tz="UTC")
_PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
# Feast and pandas pass times through nanoseconds; what does not fit there cannot be served.
_NANOSECOND_RANGE_US = (2**63 - 1) // 1_000


@dataclass(frozen=True, slots=True)
class Times:
    """A timestamp column, read.

    Attributes:
        us: int64 [N], microseconds since the epoch, UTC; without meaning where not usable.
        missing: bool [N], the cell is null.
        out_of_range: bool [N], the time is before 1677 or after 2262.
        zoned: False if the column has no zone and none was declared: then no cell is usable.
    """

    us: Int64s
    missing: Bools
    out_of_range: Bools
    zoned: bool

    @property
    def usable(self) -> Bools:
        """Where the cell is a time: bool [N]."""
        return ~(self.missing | self.out_of_range) & self.zoned

    def to_arrow(self) -> pa.Array:
        """The column as timestamp[us, UTC], null where not usable."""
        return pa.array(self.us, pa.int64(), mask=~self.usable).cast(TIMESTAMP)


def read_times(column: pa.ChunkedArray, naive_zone: str | None) -> Times:
    """Reads a timestamp column of any unit; finer units are floored to microseconds.

    Args:
        column: timestamp of any unit, with or without zone, or all null [N].
        naive_zone: Zone of a column that has none. A wall time that a change of clocks repeats or skips is
            taken as the earliest instant it can mean.
    """
    if pa.types.is_null(column.type):
        nothing = np.ones(len(column), dtype=np.bool_)
        return Times(np.zeros(len(column), dtype=np.int64), nothing, ~nothing, zoned=True)
    zoned = column.type.tz is not None or naive_zone is not None
    if column.type.tz is None and naive_zone not in (None, "UTC"):
        column = pc.assume_timezone(column, naive_zone, ambiguous="earliest", nonexistent="earliest")
    missing = np.asarray(column.is_null().to_numpy(), dtype=np.bool_)
    ticks = column.cast(pa.int64()).fill_null(0).to_numpy()
    per_second = _PER_SECOND[column.type.unit]
    if per_second > 1_000_000:
        us, out_of_range = ticks // (per_second // 1_000_000), np.zeros(len(ticks), dtype=np.bool_)
    else:
        scale = 1_000_000 // per_second
        limit = _NANOSECOND_RANGE_US // scale
        out_of_range = (ticks > limit) | (ticks < -limit)
        us = np.where(out_of_range, 0, ticks) * scale
    return Times(us.astype(np.int64), missing, out_of_range, zoned=zoned)


def ticks_at_or_after(us: int, unit: str) -> int:
    """The first tick of ``unit`` that is not before ``us`` microseconds, kept within int64."""
    ticks = -(-us * _PER_SECOND[unit] // 1_000_000)
    return max(min(ticks, 2**63 - 1), -(2**63))

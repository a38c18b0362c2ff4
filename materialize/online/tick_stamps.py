"""What stands under ``_ts:``: a row's event time as stock Feast reads it, and the tick that wrote the row.

A stamp is a ``google.protobuf.Timestamp`` with one unknown field more, which stock Feast's parser passes over. The
tick's 16 bytes come last, where the script that guards a write finds them.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np
from google.protobuf.timestamp_pb2 import Timestamp

from feast_embeddings.models.types import Int64s

_TICK: Final = b"\x7a\x10"  # field 15, 16 bytes
_WITH_TICK: Final = len(_TICK) + 16  # more than a whole stock timestamp takes


@dataclass(frozen=True, slots=True)
class TickStamp:
    """What a tick writes into every row of it.

    Attributes:
        tick: The tick's number, below 2 ** 53.
        end_us: End of the tick, in microseconds.
        event_us: The rows' event timestamp, in microseconds.
    """

    tick: int
    end_us: int
    event_us: int

    def to_bytes(self) -> bytes:
        """The stamp as Redis keeps it."""
        seconds, rest = divmod(self.event_us, 1_000_000)
        plain = Timestamp(seconds=seconds, nanos=rest * 1000).SerializeToString()
        return bytes(plain) + _TICK + struct.pack(">qq", self.tick, self.end_us)


class Stamps(NamedTuple):
    """Stamps of n rows.

    Attributes:
        event_time_us: int64 [n], microseconds; 0 where there is none.
        tick: int64 [n]; -1 where there is none.
        tick_end_us: int64 [n], microseconds; 0 where there is none.
    """

    event_time_us: Int64s
    tick: Int64s
    tick_end_us: Int64s


def decode_stamps(values: Sequence[bytes | None]) -> Stamps:
    """Stamps, or stock timestamps (which have no tick), as Redis returned them; None where there is none."""
    known = {value: _decoded(value) for value in set(values)}  # a fill has as many as ticks wrote it
    rows = np.array([known[value] for value in values], np.int64).reshape(len(values), 3)
    return Stamps(rows[:, 0], rows[:, 1], rows[:, 2])


def event_times(values: Sequence[bytes | None]) -> Int64s:
    """Event times int64 [n] in microseconds of stamps or stock timestamps; 0 where there is none."""
    known = {value: _decoded(value)[0] for value in set(values)}
    return np.fromiter(map(known.__getitem__, values), np.int64, len(values))


def stock_timestamp(value: bytes) -> bytes:
    """A stock timestamp: the stamp without its tick."""
    end = len(value) - _WITH_TICK
    return value[:end] if end >= 0 and value[end:].startswith(_TICK) else value


@lru_cache(1024)
def _decoded(value: bytes | None) -> tuple[int, int, int]:
    if value is None:
        return 0, -1, 0
    stamp = Timestamp.FromString(value)
    event_time_us = int(stamp.seconds) * 1_000_000 + int(stamp.nanos) // 1000
    tick, tick_end_us = struct.unpack(">qq", value[-16:]) if len(stock_timestamp(value)) < len(value) else (-1, 0)
    return event_time_us, tick, tick_end_us

"""What stands under ``_ts:``: a row's event time as stock Feast reads it, and the tick that wrote the row.

A stamp is a ``google.protobuf.Timestamp`` with one unknown field more, which stock Feast's parser passes over. All
stamps are of one length, their varints padded (https://protobuf.dev/programming-guides/encoding/#varints), so a whole
reply of rows has one framing; the tick's 16 bytes come last, where the script that guards a write finds them.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from google.protobuf.timestamp_pb2 import Timestamp

from feast_embeddings.models.types import Int64s

_SECONDS, _NANOS, _TICK = b"\x08", b"\x10", b"\x7a\x10"  # fields 1 and 2, varints; field 15, 16 bytes
_VARINT: Final = 5  # bytes of a padded one: 35 bits, seconds from 1970 to 3058
_PLAIN: Final = 2 * (1 + _VARINT)
_WITH_TICK: Final = len(_TICK) + 16  # more than a whole stock timestamp takes
LENGTH: Final = _PLAIN + _WITH_TICK
"""Bytes of a stamp; that of a time before 1970 is longer."""
_SHIFTS = np.arange(0, 7 * _VARINT, 7)


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


def encode(event_time_us: int, tick: int, tick_end_us: int) -> bytes:
    """The stamp of every row that a tick writes."""
    seconds, rest = divmod(event_time_us, 1_000_000)
    if 0 <= seconds < 1 << 7 * _VARINT:
        plain = _SECONDS + _padded(seconds) + _NANOS + _padded(rest * 1000)
    else:
        plain = Timestamp(seconds=seconds, nanos=rest * 1000).SerializeToString()
    return plain + _TICK + struct.pack(">qq", tick, tick_end_us)


def decode(values: Sequence[bytes | None]) -> Stamps:
    """Stamps, or stock timestamps (which have no tick), as Redis returned them; None where there is none."""
    known = {value: _decoded(value) for value in set(values)}  # a fill has as many as ticks wrote it
    rows = np.array([known[value] for value in values], np.int64).reshape(len(values), 3)
    return Stamps(rows[:, 0], rows[:, 1], rows[:, 2])


def event_times(values: Sequence[bytes | None]) -> Int64s:
    """Event times int64 [n] in microseconds of stamps or stock timestamps; 0 where there is none."""
    known = {value: _decoded(value)[0] for value in set(values)}
    return np.fromiter(map(known.__getitem__, values), np.int64, len(values))


def event_times_of_rows(rows: npt.NDArray[np.uint8]) -> Int64s:
    """As :func:`event_times`, of stamps that are the rows of a matrix, uint8 [n, length of one]."""
    if len(rows) and bool((rows == rows[0]).all()):  # a refresh writes the same to every row
        return np.full(len(rows), _decoded(rows[0].tobytes())[0], np.int64)
    constant = np.frombuffer(_SECONDS + _NANOS + _TICK, np.uint8)
    if rows.shape[1] != LENGTH or not bool((rows[:, [0, 1 + _VARINT, _PLAIN, _PLAIN + 1]] == constant).all()):
        return event_times([row.tobytes() for row in rows])
    seconds, nanos = (
        ((rows[:, start : start + _VARINT] & 0x7F).astype(np.int64) << _SHIFTS).sum(axis=1)
        for start in (1, 2 + _VARINT)
    )
    times: Int64s = seconds * 1_000_000 + nanos // 1000
    return times


def plain(value: bytes) -> bytes:
    """A stock timestamp: the stamp without its tick."""
    end = len(value) - _WITH_TICK
    return value[:end] if end >= 0 and value[end:].startswith(_TICK) else value


def _padded(number: int) -> bytes:
    septets = [number >> shift & 0x7F for shift in range(0, 7 * _VARINT, 7)]
    return bytes([*(septet | 0x80 for septet in septets[:-1]), septets[-1]])


@lru_cache(1024)
def _decoded(value: bytes | None) -> tuple[int, int, int]:
    if value is None:
        return 0, -1, 0
    stamp = Timestamp.FromString(value)
    event_time_us = int(stamp.seconds) * 1_000_000 + int(stamp.nanos) // 1000
    tick, tick_end_us = struct.unpack(">qq", value[-16:]) if len(plain(value)) < len(value) else (-1, 0)
    return event_time_us, tick, tick_end_us

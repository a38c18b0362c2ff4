"""Rows of one tick written to Redis, each only where the stored tick is older; at least once becomes exactly once.

What guards a row stands under ``_ts:``: its event time as stock Feast reads it, and the tick that wrote it. Such a
stamp is a ``google.protobuf.Timestamp`` with one unknown field more, which stock Feast's parser passes over. The tick's
16 bytes come last, where the script finds them.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, NamedTuple

import numpy as np
import redis
from google.protobuf.timestamp_pb2 import Timestamp
from redis.crc import key_slot

from feast_embeddings.materialize.online import keys
from feast_embeddings.materialize.online.commands import Strings, call_script, listed, script
from feast_embeddings.materialize.online.server import OnlineServer
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


OnChunk = Callable[[int], None]
Chunk = tuple[Strings, Sequence[Strings]]
"""Rows that are sent in one round trip: Redis keys [n], and serialized values, [features][n]."""

CALL_ROWS: Final = 128
"""Rows per script call: what it writes stays in the processor's cache, and others wait half a millisecond."""
_SCRIPT: Final = "guarded_write.lua"


def write_guarded(
    server: OnlineServer,
    name: str,
    features: Sequence[str],
    stamp: TickStamp,
    chunks: Iterable[Chunk],
    on_chunk: OnChunk | None = None,
) -> int:
    """Writes a tick's rows under one stored name. Each script call of some rows is atomic, a chunk is not.

    Args:
        server: The Redis server.
        name: A view, or a view qualified by its fill.
        features: Names of the features, one per column of a chunk.
        stamp: What the tick writes into every row.
        chunks: The rows.
        on_chunk: Called after each chunk, with the rows sent so far. What it raises stops the write: what was sent
            is written, and nothing after it.

    Returns:
        The number of rows written; those of a tick of the same or a larger number are left as they are.

    Raises:
        OnlineStoreError: Redis cannot be reached, or refused.
    """
    fields = [keys.feature_field(name, feature) for feature in features]
    constants = [b"%d" % stamp.tick, keys.timestamp_field(name), stamp.to_bytes(), b"%d" % len(fields), *fields]
    done = written = 0
    with server.client() as client:
        for entity_keys, columns in chunks:
            written += _send(client, listed(entity_keys), constants, [listed(column) for column in columns])
            done += len(entity_keys)
            if on_chunk is not None:
                on_chunk(done)
    return written


def _send(client: Any, entity_keys: list[bytes], constants: list[bytes], columns: Sequence[list[bytes]]) -> int:
    alone = isinstance(client, redis.Redis)
    calls = [
        ([entity_keys[row] for row in rows], [*constants, *(column[row] for column in columns for row in rows)])
        for rows in (_in_order(len(entity_keys)) if alone else _by_slot(entity_keys))
    ]
    if not alone:
        return sum(int(call_script(client, _SCRIPT, *each)) for each in calls)
    with client.pipeline(transaction=False) as pipe:
        for picked, arguments in calls:
            pipe.evalsha(script(_SCRIPT)[1], len(picked), *picked, *arguments)
        replies = pipe.execute(raise_on_error=False)  # else the error would quote the command's bytes
    return sum(_written(client, reply, each) for reply, each in zip(replies, calls, strict=True))


def _written(client: Any, reply: Any, sent: tuple[list[bytes], list[bytes]]) -> int:
    """Rows that a call wrote; it is sent again where the server did not know the script, or not any more."""
    if isinstance(reply, redis.exceptions.NoScriptError):
        reply = call_script(client, _SCRIPT, *sent)
    if isinstance(reply, Exception):
        raise reply
    return int(reply)


def _in_order(rows: int) -> list[range]:
    return [range(start, min(start + CALL_ROWS, rows)) for start in range(0, rows, CALL_ROWS)]


def _by_slot(entity_keys: Sequence[bytes]) -> list[list[int]]:
    """Rows that one script call may touch together: those of one slot of the cluster."""
    slots: dict[int, list[int]] = defaultdict(list)
    for row, key in enumerate(entity_keys):
        slots[key_slot(key)].append(row)
    return list(slots.values())

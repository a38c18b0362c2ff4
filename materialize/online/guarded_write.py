"""Rows of one tick written to Redis, each only where the stored tick is older; at least once becomes exactly once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import redis
from redis.crc import key_slot

from feast_embeddings.materialize.online import keys
from feast_embeddings.materialize.online.commands import Strings, listed
from feast_embeddings.materialize.online.scripts import call_script, script
from feast_embeddings.materialize.online.server import OnlineServer
from feast_embeddings.materialize.online.tick_stamps import TickStamp

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
    numbers = (b"%d" % number for number in (server.key_ttl_seconds, len(fields)))
    constants = [b"%d" % stamp.tick, keys.timestamp_field(name), stamp.to_bytes(), *numbers, *fields]
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

"""Rows of one tick written to Redis, each only where the stored tick is older; at least once becomes exactly once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import redis
from feast import RepoConfig
from redis.crc import key_slot

from feast_embeddings.materialize.online import keys, tick_stamps
from feast_embeddings.materialize.online.commands import Strings, listed
from feast_embeddings.materialize.online.fresh_fill import FreshCalls, FreshFill
from feast_embeddings.materialize.online.script_calls import ScriptCalls
from feast_embeddings.materialize.online.scripts import call

if TYPE_CHECKING:
    from feast_embeddings.materialize.online_store import EmbeddingOnlineStore

OnChunk = Callable[[int], None]
_SCRIPT: Final = "guarded_write.lua"


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows of one script call, which is atomic.

    Attributes:
        entity_keys: Redis keys [n].
        columns: Serialized values, [features][n].
    """

    entity_keys: Strings
    columns: Sequence[Strings]


class GuardedWrites:
    """Writes of one tick under one stored name (a view, or a view qualified by its fill).

    Args:
        store: The online store.
        config: Its feature repo's configuration.
        name: The stored name.
        features: Names of the features, one per column of a chunk.
        tick: The tick's number, below 2 ** 53.
        tick_end_us: End of the tick, in microseconds.
        event_time_us: The rows' event timestamp, in microseconds.
    """

    def __init__(
        self,
        store: EmbeddingOnlineStore,
        config: RepoConfig,
        name: str,
        features: Sequence[str],
        tick: int,
        tick_end_us: int,
        event_time_us: int,
    ) -> None:
        self._store, self._config = store, config
        self._fields = fields = [keys.feature_field(name, feature) for feature in features]
        self._stamp = stamp = [keys.timestamp_field(name), tick_stamps.encode(event_time_us, tick, tick_end_us)]
        self._ttl = ttl = config.online_store.key_ttl_seconds or 0
        self._constants = [b"%d" % tick, *stamp, b"%d" % ttl, b"%d" % len(fields), *fields]

    def write(self, chunks: Iterable[Chunk], on_chunk: OnChunk | None, fresh: FreshFill | None = None) -> int:
        """Sends the chunks; the number of rows written. Of a ``fresh`` fill none of the rows can be there yet.

        ``on_chunk`` is called after each call is sent, with the rows sent so far. What it raises stops the write:
        what was sent is written, and nothing after it.

        Raises:
            OnlineStoreError: Redis cannot be reached, or refused.
        """
        with self._store.redis(self._config) as client:
            if not isinstance(client, redis.Redis):
                return self._write_to_cluster(client, chunks, on_chunk)
            with ScriptCalls(client, _SCRIPT) as calls, self._fresh_calls(client, calls, fresh) as plain:
                done = 0
                for chunk in chunks:
                    if plain is None or not plain.send(chunk.entity_keys, chunk.columns[0]):
                        self._send(calls, chunk)
                    done += len(chunk.entity_keys)
                    if on_chunk is not None:
                        on_chunk(done)
            return calls.total + (plain.total if plain else 0)

    def _send(self, calls: ScriptCalls, chunk: Chunk) -> None:
        calls.send(len(chunk.entity_keys), chunk.entity_keys, self._constants, chunk.columns)

    def _fresh_calls(
        self, client: redis.Redis, calls: ScriptCalls, fresh: FreshFill | None
    ) -> AbstractContextManager[FreshCalls | None]:
        if fresh is None or self._ttl:
            return nullcontext()

        def guarded(entity_keys: Strings, values: Strings) -> int:
            before = calls.wait()
            self._send(calls, Chunk(entity_keys, [values]))
            return calls.wait() - before

        return FreshCalls(client, fresh, [*self._stamp, *self._fields], guarded)

    def _write_to_cluster(self, client: Any, chunks: Iterable[Chunk], on_chunk: OnChunk | None) -> int:
        done = written = 0
        for chunk in chunks:
            entity_keys = listed(chunk.entity_keys)
            columns = [listed(column) for column in chunk.columns]
            for rows in _by_slot(entity_keys):
                values = (column[row] for column in columns for row in rows)
                picked = [entity_keys[row] for row in rows]
                written += int(call(client, _SCRIPT, picked, [*self._constants, *values]))
            done += len(entity_keys)
            if on_chunk is not None:
                on_chunk(done)
        return written


def _by_slot(entity_keys: Sequence[bytes]) -> list[list[int]]:
    """Rows that one script call may touch together: those of one slot of the cluster."""
    slots: dict[int, list[int]] = defaultdict(list)
    for row, key in enumerate(entity_keys):
        slots[key_slot(key)].append(row)
    return list(slots.values())

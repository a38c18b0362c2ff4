"""Rows of a fill that one writer alone has begun: plain commands in transactions, a third cheaper than a script's.

The script of :mod:`~.guarded_writes` compares each row's stored tick. That is not needed where no row can be there:
a hash names the one writer that has begun the fill, who writes every id once, in ascending order. Every other writer
puts another name there before its first row. A transaction watches the name (https://redis.io/docs/latest/develop/
using-commands/transactions/), so it happens only if the name was this writer's all along: no row is ever overwritten.
What did not happen, for whatever reason, is left to the script.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self
from weakref import WeakKeyDictionary

import redis

from feast_embeddings.materialize.online import keys
from feast_embeddings.materialize.online.commands import Strings, argument, arguments, framed_commands, take_parsed
from feast_embeddings.models.types import Ids

if TYPE_CHECKING:
    from feast_embeddings.materialize.online_store import EmbeddingOnlineStore

_BY: Final = b"by"
_SEVERAL: Final = b"several"
_LANES: Final = 2  # one the server works on, one whose replies are read
_MULTI, _EXEC, _UNWATCH = (b"*1\r\n" + argument(name) for name in (b"MULTI", b"EXEC", b"UNWATCH"))


@dataclass
class FreshFill:
    """A fill that this writer has begun, and nobody else.

    Attributes:
        key: Redis key of the hash that names the writer.
        tick: The one tick that has written.
        last: The largest id written; None before the first.
        alone: False as soon as another writer, or one of its rows, was seen.
        name: The writer's name.
        process: The process it is of; a forked one is another writer.
    """

    key: bytes
    tick: int
    last: Any = None
    alone: bool = True
    name: bytes = field(default_factory=lambda: secrets.token_hex(16).encode())
    process: int = field(default_factory=os.getpid)

    def takes(self, tick: int, ids: Ids) -> bool:
        """Whether rows of ``ids``, ascending, go on where this writer stands."""
        here = self.process == os.getpid() and self.tick == tick
        return here and (self.last is None or bool(ids[0] > self.last))


_fresh: WeakKeyDictionary[EmbeddingOnlineStore, dict[bytes, FreshFill]] = WeakKeyDictionary()


def begin(store: EmbeddingOnlineStore, client: Any, project: str, name: str, tick: int, ids: Ids) -> FreshFill | None:
    """Begins to write rows ``ids`` [n] of the fill stored under ``name``; None where others may have written it.

    :func:`end` must follow, once all rows are written.

    Raises:
        redis.RedisError: The server cannot be reached.
    """
    known, key = _fresh.setdefault(store, {}), keys.writer_key(project, name)
    fresh = known.pop(key, None)
    if bool((ids[1:] > ids[:-1]).all()):
        if fresh is not None and fresh.takes(tick, ids):
            return fresh
        fresh = FreshFill(key, tick)
        if client.hsetnx(key, _BY, fresh.name):
            return fresh
    client.hset(key, _BY, _SEVERAL)
    return None


def end(store: EmbeddingOnlineStore, fresh: FreshFill, ids: Ids) -> None:
    """Remembers where the writer stands, if it is still alone: it may go on with larger ids."""
    fresh.last = ids[-1]
    if fresh.alone:
        _fresh.setdefault(store, {})[fresh.key] = fresh


@dataclass
class _Lane:
    """A connection that watches the writer's name, how many replies are on their way, and the rows sent, if any."""

    connection: Any
    waiting: int = 0
    sent: tuple[Strings, Strings] | None = None


class FreshCalls:
    """Transactions of plain ``HSET``, each on the condition that the fill is still this writer's alone.

    A context: leaving it waits for all of them.

    Args:
        client: Of one server; a cluster's slots have no transaction in common.
        fresh: The fill.
        fields: Stamp field, stamp, and the value's field: the same for all rows.
        guarded: Writes rows (keys [n], values [n]) by the script, and tells how many; it is called for the first ones,
            and for those of a transaction that did not happen.

    Attributes:
        total: Rows written so far; all of them once the context is left.
    """

    def __init__(
        self, client: redis.Redis, fresh: FreshFill, fields: list[bytes], guarded: Callable[[Strings, Strings], int]
    ) -> None:
        self.total = 0
        self._pool, self._fresh, self._guarded = client.connection_pool, fresh, guarded
        self._fields = arguments(fields)
        self._watch = b"*2\r\n" + arguments([b"WATCH", fresh.key]) + b"*3\r\n" + arguments([b"HGET", fresh.key, _BY])
        self._lanes: list[_Lane] = []
        self._turn = 0
        self._first = fresh.last is None

    def __enter__(self) -> Self:
        """Nothing is sent yet."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """Waits for what was sent; connections go back without a watch."""
        clean = False
        try:
            if kind is None or (issubclass(kind, Exception) and not issubclass(kind, redis.RedisError)):
                for lane in self._lanes:
                    self._settle(lane)
                    self._unwatch(lane)
                clean = True
        finally:
            for lane in self._lanes:
                if not clean:
                    lane.connection.disconnect()
                self._pool.release(lane.connection)

    def send(self, entity_keys: Strings, values: Strings) -> bool:
        """Sends rows; False if they must be written by the script, as all that follow."""
        if not self._fresh.alone:
            return False
        if self._first:  # if one of these is there, the fill is not as new as it seems
            self._first = False
            self._fresh.alone = self._guarded(entity_keys, values) == len(entity_keys)
            return True
        lane = self._next()
        if lane is None or not self._settle(lane):
            self._fresh.alone = False
            return False
        rows = framed_commands(b"HSET", entity_keys, self._fields, values)
        try:
            lane.connection.send_packed_command([b"".join([_MULTI, rows, _EXEC, self._watch])], check_health=False)
        except redis.RedisError:
            lane.connection.disconnect()
            self._fresh.alone = False
            return False
        lane.sent, lane.waiting = (entity_keys, values), len(entity_keys) + 4
        return True

    def _next(self) -> _Lane | None:
        self._turn = (self._turn + 1) % _LANES
        if self._turn < len(self._lanes):
            return self._lanes[self._turn]
        connection: Any = self._pool.get_connection()
        self._lanes.append(lane := _Lane(connection))
        self._turn = len(self._lanes) - 1
        try:
            connection.send_packed_command([self._watch])
            lane.waiting = 2
        except redis.RedisError:
            connection.disconnect()
            return None
        return lane

    def _settle(self, lane: _Lane) -> bool:
        """Takes the replies in, and gives rows that were not written to the script; whether more may be sent."""
        sent, lane.sent = lane.sent, None
        waiting, lane.waiting = lane.waiting, 0
        if not waiting:
            return False
        try:
            replies = _replies(lane.connection, waiting)
        except redis.RedisError:
            lane.connection.disconnect()  # more replies may be on their way
            replies = [None]
        added = replies[-3] if sent and len(replies) > 2 else None
        if sent and not (isinstance(added, list) and all(isinstance(count, int) for count in added)):
            self._fresh.alone = False
            self._guarded(*sent)
        elif sent and isinstance(added, list):
            self.total += len(added)
        return self._fresh.alone and replies[-1] == self._fresh.name

    def _unwatch(self, lane: _Lane) -> None:
        try:
            lane.connection.send_packed_command([_UNWATCH], check_health=False)
            lane.connection.read_response()
        except redis.RedisError:
            lane.connection.disconnect()


def _replies(connection: Any, count: int) -> list[Any]:
    replies = [connection.read_response()]
    take_parsed(connection, replies, count)
    return replies + [connection.read_response() for _ in range(count - len(replies))]

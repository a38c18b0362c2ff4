"""Calls of one Lua script sent ahead of their replies, so that the server works while the next one is laid out."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import islice
from types import TracebackType
from typing import Any, Final, Self

import redis
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from feast_embeddings.materialize.online.commands import Strings, argument, arguments, bulk
from feast_embeddings.materialize.online.scripts import script

IN_FLIGHT: Final = 4  # one the server runs, one it has read, and two on their way to it
_RETRY: Final = Retry(ExponentialBackoff(cap=1, base=0.01), 3)


class ScriptCalls:
    """Calls of the script in file ``name``, each of which returns a number, on one connection of a client's pool.

    A context: leaving it waits for every call sent, also when the block raised. A lost connection is opened anew,
    and calls without a reply are sent again: at least once, so the script must be one that may be repeated.

    Attributes:
        total: Sum of the replies so far; all of them once the context is left.
    """

    def __init__(self, client: redis.Redis, name: str) -> None:
        self.total = 0
        self._client, self._pool = client, client.connection_pool
        self._text, digest = script(name)
        self._name = argument(b"EVALSHA") + argument(digest.encode())
        self._waiting: deque[bytes] = deque()
        self._unknown: list[bytes] = []
        self._sent = 0  # of those waiting, on the present connection
        self._connection: Any = None

    def __enter__(self) -> Self:
        """Makes the script known to the server.

        Raises:
            redis.RedisError: The server cannot be reached, or refuses.
        """
        self._client.script_load(self._text)
        self._connection = self._pool.get_connection()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """Waits for the replies; a connection that may hold some afterwards is closed."""
        try:
            if kind is None or (issubclass(kind, Exception) and not issubclass(kind, redis.RedisError)):
                self._finish()
        finally:
            if self._waiting:
                self._connection.disconnect()
            self._pool.release(self._connection)

    def send(self, rows: int, keys: Strings, constants: Sequence[bytes], columns: Sequence[Strings]) -> None:
        """Sends one call: ``rows`` keys, the same arguments for all, then columns of one argument per key.

        Raises:
            redis.RedisError: The server cannot be reached, or refused an earlier call.
        """
        count = 3 + rows + len(constants) + rows * len(columns)
        head = b"*%d\r\n" % count + self._name + argument(b"%d" % rows)
        self._queue(b"".join([head, bulk(keys), arguments(constants), *map(bulk, columns)]))

    def wait(self) -> int:
        """Waits for the replies to all calls sent; their sum so far.

        Raises:
            redis.RedisError: The server cannot be reached, or refused one.
        """
        self._finish()
        return self.total

    def _queue(self, call: bytes) -> None:
        while len(self._waiting) >= IN_FLIGHT:
            self._settle()
        self._waiting.append(call)
        _RETRY.call_with_retry(self._flush, self._lost)

    def _settle(self) -> None:
        try:
            self.total += int(_RETRY.call_with_retry(self._answer, self._lost))
        except redis.exceptions.NoScriptError:  # forgotten meanwhile: a restart, a failover, SCRIPT FLUSH
            self._unknown.append(self._waiting[0])
        self._waiting.popleft()
        self._sent -= 1

    def _finish(self) -> None:
        self._drain()
        if self._unknown:
            self._client.script_load(self._text)
            again, self._unknown = self._unknown, []
            for call in again:
                self._queue(call)
            self._drain()
            if self._unknown:
                raise redis.exceptions.NoScriptError("the server forgets scripts as soon as they are loaded")

    def _drain(self) -> None:
        while self._waiting:
            self._settle()

    def _flush(self) -> None:
        for call in islice(self._waiting, self._sent, None):
            # A health check would take a waiting reply for its own.
            self._connection.send_packed_command([call], check_health=not self._sent)
            self._sent += 1

    def _answer(self) -> Any:
        self._flush()
        return self._connection.read_response()

    def _lost(self, _error: Exception) -> None:
        self._connection.disconnect()
        self._sent = 0

"""Many reads in one round trip: commands laid out as bytes at once, replies parsed by hiredis.

redis-py's pipeline spends several microseconds per command on its own account; this spends under one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import redis


class PackedReads:
    """The part of a redis-py pipeline that reads need, on one connection of a client's pool."""

    def __init__(self, client: redis.Redis) -> None:
        self._pool = client.connection_pool
        self._commands: list[bytes] = []

    def hmget(self, key: bytes, fields: Sequence[bytes]) -> None:
        """Queues ``HMGET key field …``."""
        self._commands.append(_hmget(len(fields), len(key)) + key + _arguments(tuple(fields)))

    def get(self, key: str) -> None:
        """Queues ``GET key``."""
        self._commands.append(b"*2\r\n$3\r\nGET" + _arguments((key.encode(),)))

    def execute(self) -> list[Any]:
        """Sends what is queued; one reply per command, in order.

        Raises:
            redis.RedisError: The server cannot be reached, or refuses a command.
        """
        connection: Any = self._pool.get_connection()
        try:
            replies: list[Any] = connection.retry.call_with_retry(
                lambda: self._exchange(connection), lambda _: connection.disconnect()
            )
        except BaseException:
            connection.disconnect()  # replies may be left on the way
            raise
        finally:
            self._pool.release(connection)
        return replies

    def _exchange(self, connection: Any) -> list[Any]:
        if not self._commands:
            return []
        connection.send_packed_command([b"".join(self._commands)])
        read = connection.read_response
        return [read() for _ in self._commands]


def reads(client: Any) -> Any:
    """A queue of reads for ``client``; a cluster's commands go to many servers, which its own pipeline knows."""
    return PackedReads(client) if isinstance(client, redis.Redis) else client.pipeline()


@lru_cache
def _hmget(fields: int, key_length: int) -> bytes:
    return b"*%d\r\n$5\r\nHMGET\r\n$%d\r\n" % (fields + 2, key_length)


@lru_cache
def _arguments(values: tuple[bytes, ...]) -> bytes:
    return b"\r\n" + b"".join(b"$%d\r\n%b\r\n" % (len(value), value) for value in values)

"""Commands laid out as bytes, many at once, and many reads in one round trip, their replies parsed by hiredis.

redis-py's pipeline spends several microseconds per command on its own account; this spends under one, and nothing
per row on strings that stand in a matrix. Layout: https://redis.io/docs/latest/develop/reference/protocol-spec/.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import redis

Strings = list[bytes] | npt.NDArray[np.uint8]
"""n byte strings: as such, or as the rows of a uint8 matrix [n, length]."""


def argument(value: bytes) -> bytes:
    """One argument of a command."""
    return b"$%d\r\n%b\r\n" % (len(value), value)


def arguments(values: Sequence[bytes]) -> bytes:
    """Several arguments, one after the other."""
    return b"".join(map(argument, values))


def bulk(strings: Strings) -> bytes | memoryview:
    """One argument per string, one after the other."""
    if isinstance(strings, list):
        return arguments(strings)
    rows, length = strings.shape
    head = b"$%d\r\n" % length
    out = np.empty((rows, len(head) + length + 2), np.uint8)
    out[:, : len(head)] = np.frombuffer(head, np.uint8)
    out[:, len(head) : -2] = strings
    out[:, -2:] = np.frombuffer(b"\r\n", np.uint8)
    return out.data


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
    return b"\r\n" + arguments(values)

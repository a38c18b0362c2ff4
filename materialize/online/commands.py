"""Commands laid out as bytes, many at once, and many reads in one round trip, their replies parsed by hiredis.

redis-py's pipeline spends several microseconds per command on its own account; this spends under one, and nothing
per row on strings that stand in a matrix. Layout: https://redis.io/docs/latest/develop/reference/protocol-spec/.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import hiredis
import numpy as np
import numpy.typing as npt
import redis

Strings = list[bytes] | npt.NDArray[np.uint8]
"""n byte strings: as such, or as the rows of a uint8 matrix [n, length]."""

FEW: Final = 16
"""Strings that are laid out, and replies that are parsed, sooner one by one than as a matrix."""


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
    return _framed(b"$%d\r\n" % strings.shape[1], strings, b"\r\n")


def framed_commands(name: bytes, keys: Strings, middle: bytes, values: Strings) -> bytes:
    """``name key … value`` for each key and value [n]; ``middle`` are the three arguments between, laid out."""
    head = b"*6\r\n" + argument(name)
    if isinstance(keys, list) or isinstance(values, list):
        pairs = zip(listed(keys), listed(values), strict=True)
        return b"".join(b"".join([head, argument(key), middle, argument(value)]) for key, value in pairs)
    tail = b"\r\n"
    parts = [
        np.frombuffer(head + b"$%d\r\n" % keys.shape[1], np.uint8),
        keys,
        np.frombuffer(tail + middle + b"$%d\r\n" % values.shape[1], np.uint8),
        values,
        np.frombuffer(tail, np.uint8),
    ]
    out, start = np.empty((len(keys), sum(part.shape[-1] for part in parts)), np.uint8), 0
    for part in parts:
        out[:, start : start + part.shape[-1]] = part
        start += part.shape[-1]
    return out.tobytes()


def _framed(head: bytes, rows: npt.NDArray[np.uint8], tail: bytes) -> memoryview:
    """``head + row + tail`` of each row."""
    n, length = rows.shape
    end = len(head) + length
    out = np.empty((n, end + len(tail)), np.uint8)
    out[:, : len(head)] = np.frombuffer(head, np.uint8)
    out[:, len(head) : end] = rows
    out[:, end:] = np.frombuffer(tail, np.uint8)
    return out.data


class PackedReads:
    """The part of a redis-py pipeline that reads need, on one connection of a client's pool."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client  # which closes its pool's connections when nothing refers to it any more
        self._commands: list[bytes | memoryview] = []
        self._count = 0

    def hmget(self, key: bytes, fields: Sequence[bytes]) -> None:
        """Queues ``HMGET key field …``."""
        self.hmget_each([key], fields)

    def hmget_each(self, keys: Strings, fields: Sequence[bytes]) -> None:
        """Queues ``HMGET key field …`` for each of the keys."""
        self._count += len(keys)
        head, tail = b"*%d\r\n$5\r\nHMGET\r\n" % (len(fields) + 2), arguments(fields)
        if isinstance(keys, list):
            self._commands += [b"%b$%d\r\n%b\r\n%b" % (head, len(key), key, tail) for key in keys]
        else:
            self._commands.append(_framed(head + b"$%d\r\n" % keys.shape[1], keys, b"\r\n" + tail))

    def get(self, key: str) -> None:
        """Queues ``GET key``."""
        self._count += 1
        self._commands.append(b"*2\r\n$3\r\nGET\r\n" + argument(key.encode()))

    def execute(self) -> Any:
        """Sends what is queued; one reply per command, in order.

        Raises:
            redis.RedisError: The server cannot be reached, or refuses a command.
        """
        connection: Any = self._client.connection_pool.get_connection()
        try:
            replies = connection.retry.call_with_retry(
                lambda: self._exchange(connection), lambda _: connection.disconnect()
            )
        except BaseException:
            connection.disconnect()  # replies may be left on the way
            raise
        finally:
            self._client.connection_pool.release(connection)
        return replies

    def _exchange(self, connection: Any) -> Any:
        if not self._count:
            return []
        connection.send_packed_command([b"".join(self._commands)])
        return self._receive(connection)

    def _receive(self, connection: Any) -> Any:
        # read_response alone notes that the connection was well, for who wants its health checked
        replies = [connection.read_response()] if connection.health_check_interval else []
        take_parsed(connection, replies, self._count)
        replies += [connection.read_response() for _ in range(self._count - len(replies))]
        return replies


def take_parsed(connection: Any, replies: list[Any], count: int) -> None:
    """Appends replies up to ``count``, straight from hiredis where the connection is known to be read by it alone.

    ``read_response`` spends three microseconds per reply on what cannot happen here: time limits of its own, and
    push messages. Where redis-py is built otherwise than expected, this appends nothing.

    Raises:
        redis.RedisError: The connection is lost, or a reply is an error.
    """
    parser = plain_parser(connection)
    if parser is None:
        return
    while len(replies) < count:
        reply = parser._reader.gets()
        if reply is None or isinstance(reply, list | bytes):
            replies.append(reply)
        elif isinstance(reply, Exception):
            raise reply
        else:  # its mark for a reply that is not there yet
            parser.read_from_socket()


def plain_parser(connection: Any) -> Any:
    """The connection's parser where hiredis alone reads it, and nothing but replies comes; None otherwise."""
    parser = getattr(connection, "_parser", None)
    known = isinstance(getattr(parser, "_reader", None), hiredis.Reader) and getattr(connection, "protocol", None) == 2
    return parser if known else None


def reads(client: Any, kind: type[PackedReads] = PackedReads) -> Any:
    """A queue of reads for ``client``; a cluster's commands go to many servers, which its own pipeline knows."""
    return kind(client) if isinstance(client, redis.Redis) else client.pipeline()


def queue_hmgets(pipe: Any, keys: Strings, fields: Sequence[bytes]) -> None:
    """Queues ``HMGET key field …`` for each of the keys, in :class:`PackedReads` or a pipeline of redis-py."""
    if isinstance(pipe, PackedReads):
        pipe.hmget_each(keys, fields)
        return
    for key in listed(keys):
        pipe.hmget(key, fields)


def listed(strings: Strings) -> list[bytes]:
    """The strings as such."""
    return strings if isinstance(strings, list) else rows_as_bytes(strings)


def rows_as_bytes(matrix: npt.NDArray[np.uint8]) -> list[bytes]:
    """One ``bytes`` per row of a uint8 matrix [n, width], width > 0."""
    rows = np.ascontiguousarray(matrix).view(f"V{matrix.shape[1]}")
    return rows.ravel().tolist()

"""Few round trips: Lua scripts, each call of which is atomic in Redis, and many reads at once, parsed by hiredis.

redis-py's pipeline spends several microseconds per command on its own account; reads that are laid out as bytes at once
spend under one, and nothing per row on keys that stand in a matrix.
Layout: https://redis.io/docs/latest/develop/reference/protocol-spec/.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files
from typing import Any, Final

import hiredis
import numpy as np
import numpy.typing as npt
import redis

Strings = list[bytes] | npt.NDArray[np.uint8]
"""n byte strings: as such, or as the rows of a uint8 matrix [n, length]."""

FEW: Final = 16
"""Strings that are laid out sooner one by one than as a matrix."""


def _argument(value: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(value), value)


class PackedReads:
    """The part of a redis-py pipeline that reads need, on one connection of a client's pool."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client  # which closes its pool's connections when nothing refers to it any more
        self._commands: list[bytes] = []
        self._count = 0

    def hmget(self, key: bytes, fields: Sequence[bytes]) -> None:
        """Queues ``HMGET key field …``."""
        self.hmget_each([key], fields)

    def hmget_each(self, keys: Strings, fields: Sequence[bytes]) -> None:
        """Queues ``HMGET key field …`` for each of the keys."""
        self._count += len(keys)
        head = b"*%d\r\n$5\r\nHMGET\r\n" % (len(fields) + 2)
        tail = b"".join(map(_argument, fields))
        if isinstance(keys, list):
            self._commands += [head + _argument(key) + tail for key in keys]
            return
        head, tail = head + b"$%d\r\n" % keys.shape[1], b"\r\n" + tail
        self._commands.append(between(head, keys, tail).tobytes())

    def get(self, key: str) -> None:
        """Queues ``GET key``."""
        self._count += 1
        self._commands.append(b"*2\r\n$3\r\nGET\r\n" + _argument(key.encode()))

    def execute(self) -> list[Any]:
        """Sends what is queued; one reply per command, in order.

        Raises:
            redis.RedisError: The server cannot be reached, or refuses a command.
        """
        if not self._count:
            return []
        connection: Any = self._client.connection_pool.get_connection()
        try:
            replies: list[Any] = connection.retry.call_with_retry(
                lambda: self._exchange(connection), lambda _: connection.disconnect()
            )
        except BaseException:
            connection.disconnect()  # replies may be left on the way
            raise
        finally:
            self._client.connection_pool.release(connection)
        return replies

    def _exchange(self, connection: Any) -> list[Any]:
        connection.send_packed_command([b"".join(self._commands)])
        # read_response alone notes that the connection was well, for who wants its health checked
        replies = [connection.read_response()] if connection.health_check_interval else []
        _take_parsed(connection, replies, self._count)
        return replies + [connection.read_response() for _ in range(self._count - len(replies))]


def _take_parsed(connection: Any, replies: list[Any], count: int) -> None:
    """Appends replies up to ``count``, straight from hiredis where the connection is known to be read by it alone.

    ``read_response`` spends three microseconds per reply on what cannot happen here: time limits of its own, and
    push messages. Where redis-py is built otherwise than expected, this appends nothing.

    Raises:
        redis.RedisError: The connection is lost, or a reply is an error.
    """
    parser = getattr(connection, "_parser", None)  # the one way to the bytes that came, read or not
    reader = getattr(parser, "_reader", None)  # hiredis' own, unless redis-py parses itself
    if parser is None or not isinstance(reader, hiredis.Reader) or getattr(connection, "protocol", None) != 2:
        return
    while len(replies) < count:
        reply = reader.gets()
        if reply is None or isinstance(reply, list | bytes):
            replies.append(reply)
        elif isinstance(reply, Exception):
            raise reply
        else:  # its mark for a reply that is not there yet
            parser.read_from_socket()


def reads(client: Any) -> Any:
    """A queue of reads for ``client``; a cluster's commands go to many servers, which its own pipeline knows."""
    return PackedReads(client) if isinstance(client, redis.Redis) else client.pipeline()


def queue_hmgets(pipe: Any, keys: Strings, fields: Sequence[bytes]) -> None:
    """Queues ``HMGET key field …`` for each of the keys, in :class:`PackedReads` or a pipeline of redis-py."""
    if isinstance(pipe, PackedReads):
        pipe.hmget_each(keys, fields)
        return
    for key in listed(keys):
        pipe.hmget(key, fields)


def between(head: bytes, rows: npt.NDArray[np.uint8], tail: bytes) -> npt.NDArray[np.uint8]:
    """``head + row + tail`` of each row [n, length], as the rows of a matrix."""
    end = len(head) + rows.shape[1]
    out = np.empty((len(rows), end + len(tail)), np.uint8)
    out[:, : len(head)] = np.frombuffer(head, np.uint8)
    out[:, len(head) : end] = rows
    out[:, end:] = np.frombuffer(tail, np.uint8)
    return out


def listed(strings: Strings) -> list[bytes]:
    """The strings as such."""
    return strings if isinstance(strings, list) else rows_as_bytes(strings)


def rows_as_bytes(matrix: npt.NDArray[np.uint8]) -> list[bytes]:
    """One ``bytes`` per row of a uint8 matrix [n, width], width > 0."""
    rows = np.ascontiguousarray(matrix).view(f"V{matrix.shape[1]}")
    return rows.ravel().tolist()


def call_script(client: Any, name: str, script_keys: Sequence[Any], arguments: Sequence[Any]) -> Any:
    """Runs the script in file ``name``, sending its text only to a server that does not know it yet.

    Raises:
        redis.RedisError: The server cannot be reached, or refuses.
    """
    text, digest = script(name)
    try:
        return client.evalsha(digest, len(script_keys), *script_keys, *arguments)
    except redis.exceptions.NoScriptError:
        return client.eval(text, len(script_keys), *script_keys, *arguments)


@lru_cache
def script(name: str) -> tuple[str, str]:
    """Text of the script in file ``name``, and the digest by which servers know it."""
    text = files("feast_embeddings.materialize.online").joinpath(name).read_text(encoding="utf-8")
    return text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

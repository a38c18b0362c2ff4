"""Many ``HMGET`` replies taken off the connection as one matrix, where all have the first one's framing.

Rows of one fill take as many bytes each, so their replies stand one below the other: nothing is built per row. Every
byte of the framing is compared as it arrives. From the first that differs on (an entity without a row, a refusal, a
value of another length), hiredis parses the same bytes as ever.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, overload

import numpy as np
import numpy.typing as npt
import redis
from redis._parsers.hiredis import NOT_ENOUGH_DATA

from feast_embeddings.materialize.online.commands import PackedReads, plain_parser

Bytes = npt.NDArray[np.uint8]
_FIRST_BYTES: Final = 1 << 16
_COUNT = re.compile(rb"\*(\d+)\r\n")
_LENGTH = re.compile(rb"\$([1-9]\d*)\r\n")
_NOTHING = re.compile(rb"\$(-1|0)\r\n")


@dataclass(frozen=True)
class Framing:
    """How one reply stands in its bytes.

    Attributes:
        width: Its length.
        spans: Start and end of each value.
    """

    width: int
    spans: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, reply: bytes) -> Framing | None:
        """That of the reply at the start of some bytes; None if it is not whole, or no list of strings alone."""
        head = _COUNT.match(reply)
        if head is None:
            return None
        spans, end = [], head.end()
        for _ in range(int(head[1])):
            length = _LENGTH.match(reply, end)
            if length is None:
                return None
            spans.append((length.end(), length.end() + int(length[1])))
            end = spans[-1][1] + 2
        return cls(end, tuple(spans)) if end <= len(reply) else None

    @cached_property
    def gaps(self) -> list[tuple[int, int]]:
        """Start and end of what stands between the values: the same in every reply of this framing."""
        starts = [0, *(stop for _, stop in self.spans)]
        stops = [*(start for start, _ in self.spans), self.width]
        return list(zip(starts, stops, strict=True))


class FramedRows(Sequence[Sequence[bytes]]):
    """Replies of one framing, uint8 [n, width]; a sequence of them as hiredis would have parsed them."""

    def __init__(self, rows: Bytes, framing: Framing) -> None:
        self._rows, self._framing = rows, framing

    def __len__(self) -> int:
        """Number of replies."""
        return len(self._rows)

    @overload
    def __getitem__(self, place: int) -> list[bytes]: ...

    @overload
    def __getitem__(self, place: slice) -> FramedRows: ...

    def __getitem__(self, place: int | slice) -> list[bytes] | FramedRows:
        """One reply, or some of them."""
        if isinstance(place, slice):
            return FramedRows(self._rows[place], self._framing)
        row = self._rows[place].tobytes()
        return [row[start:stop] for start, stop in self._framing.spans]

    def column(self, number: int) -> Bytes:
        """One value of every reply: uint8 [n, its length], a view."""
        start, stop = self._framing.spans[number]
        return self._rows[:, start:stop]


@dataclass(frozen=True)
class Replies:
    """Framed rows, then other replies; sliced like one list, at the border between the two."""

    rows: FramedRows
    others: list[Any]

    def __len__(self) -> int:
        """Number of replies."""
        return len(self.rows) + len(self.others)

    def __getitem__(self, place: slice) -> Sequence[Any]:
        """Rows alone, or others alone."""
        start, stop, _ = place.indices(len(self))
        if stop <= len(self.rows):
            return self.rows[start:stop]
        return self.others[start - len(self.rows) : stop - len(self.rows)]


class FramedReads(PackedReads):
    """As :class:`PackedReads`; the replies of the first ``hmget_each`` come as :class:`FramedRows` where they can."""

    _rows = 0

    def hmget_each(self, keys: Any, fields: Sequence[bytes]) -> None:
        """Queues ``HMGET key field …`` for each of the keys."""
        if not self._count:
            self._rows = len(keys)
        super().hmget_each(keys, fields)

    def _receive(self, connection: Any) -> Any:
        parser = plain_parser(connection)
        if not self._rows or parser is None or parser._next_response is not NOT_ENOUGH_DATA:
            return super()._receive(connection)
        source = _Source(connection, parser._reader)
        rows = source.rows(self._rows)
        if rows is None:
            return super()._receive(connection)
        return Replies(rows, [connection.read_response() for _ in range(self._count - len(rows))])


class _Source:
    """Bytes off a connection; those that are no row of the framing go to hiredis."""

    def __init__(self, connection: Any, reader: Any) -> None:  # a hiredis.Reader, which takes any buffer
        self._socket, self._reader = connection._sock, reader

    def rows(self, count: int) -> FramedRows | None:
        """``count`` rows; None, and all that came left to hiredis, if not all replies have one framing."""
        first = np.empty(_FIRST_BYTES, np.uint8).data
        got, framing = 0, None
        while framing is None:
            got += self._read(first[got:])
            framing = Framing.of(come := bytes(first[:got]))
            if framing is None and not _may_be_framed(come):
                self._reader.feed(come)
                return None
        size = count * framing.width
        rows = np.empty((count, framing.width), np.uint8)
        target = rows.data.cast("B")
        taken = min(got, size)
        target[:taken] = first[:taken]
        checked = 0
        while True:
            if not _framed(rows, checked, taken, framing):
                self._reader.feed(target, 0, taken)
                self._feed_rest(first, taken, got)
                return None
            checked = taken // framing.width
            if taken == size:
                self._feed_rest(first, taken, got)
                return FramedRows(rows, framing)
            taken += self._read(target[taken:])

    def _feed_rest(self, first: memoryview, taken: int, got: int) -> None:
        if taken < got:
            self._reader.feed(first, taken, got - taken)

    def _read(self, target: memoryview) -> int:
        try:
            count: int = self._socket.recv_into(target)
        except TimeoutError as error:
            raise redis.TimeoutError("Timeout reading from socket") from error
        except OSError as error:
            raise redis.ConnectionError(f"Error while reading from the socket: {error}") from error
        if count == 0:
            raise redis.ConnectionError("Connection closed by server.")
        return count


def _may_be_framed(come: bytes) -> bool:
    """Whether more bytes could make the first reply one of strings alone, that fits."""
    if len(come) == _FIRST_BYTES or _NOTHING.search(come):
        return False
    return len(come) < 4 or _COUNT.match(come) is not None


def _framed(rows: Bytes, start: int, taken: int, framing: Framing) -> bool:
    """Whether rows from ``start`` on, up to the byte ``taken``, which may be inside a row, have the framing."""
    whole = taken // framing.width
    for first, stop in framing.gaps:
        if not bool((rows[start:whole, first:stop] == rows[0, first:stop]).all()):
            return False
    rest = taken - whole * framing.width
    return not rest or all(
        np.array_equal(rows[whole, first : min(stop, rest)], rows[0, first : min(stop, rest)])
        for first, stop in framing.gaps
        if first < rest
    )

"""Arrow payloads → raw behaviors: IPC streams and files; what one takes in memory is bounded before it takes it.

A body may be compressed, and a dictionary may say one long text a thousand times: two kilobytes can mean gigabytes. So
the lengths that compressed buffers state are added up before any is inflated, and those of a dictionary's texts before
they are written out. Layout: https://arrow.apache.org/docs/format/Columnar.html (Serialization and IPC).
"""

from __future__ import annotations

import struct
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from feast_embeddings.models.errors import BehaviorSourceError
from feast_embeddings.transformations import BehaviorContract
from feast_embeddings.transformations.behaviors import TIMESTAMP, BadPayloadError, check_columns

MAX_ROWS: Final = 100_000
MAX_DECODED: Final = 16 << 20
"""Most bytes that one message may take in memory."""
_STREAM, _FILE = b"\xff\xff\xff\xff", b"ARROW1"
_IN_FILE: Final = 8
"""Where a file's stream begins: behind its mark and two bytes of padding."""
_DICTIONARY, _RECORDS = 2, 3
"""Kinds of a message that has a body, in ``Message.fbs`` of Arrow."""
_BAD: Final = (
    pa.ArrowException, BehaviorSourceError, struct.error, ValueError, OSError, KeyError, IndexError, TypeError,
    OverflowError,
)  # fmt: skip


def is_arrow(payload: bytes) -> bool:
    """Whether a payload says of itself that it is Arrow."""
    return payload.startswith((_STREAM, _FILE))


def arrow_rows(payload: bytes, contract: BehaviorContract, schema: pa.Schema) -> pa.Table:
    """The rows of one message, as ``schema`` has them.

    Raises:
        BadPayloadError: They are no behaviors, or more than a message may hold.
    """
    try:
        return _rows(payload[_IN_FILE:] if payload.startswith(_FILE) else payload, contract, schema)
    except _BAD as error:
        raise BadPayloadError(f"not an Arrow stream of behaviors: {_first_line(error)}") from error


def _rows(stream: bytes, contract: BehaviorContract, schema: pa.Schema) -> pa.Table:
    _check_size(sum(map(_inflated, pa.ipc.MessageReader.open_stream(pa.BufferReader(stream)))))
    batches, rows = [], 0
    with pa.ipc.open_stream(pa.BufferReader(stream)) as opened:
        check_columns(opened.schema, contract, "the message")
        for batch in opened:
            rows += batch.num_rows
            if rows > MAX_ROWS:
                raise ValueError(f"more than {MAX_ROWS} rows in one message")
            batches.append(batch.select(schema.names))
        table = pa.Table.from_batches(batches, pa.schema([opened.schema.field(name) for name in schema.names]))
    table.validate(full=True)  # offsets and text may be anything
    _check_size(sum(map(_written_out, table.columns)))
    columns = {
        name: _column(table[name], kind, contract) for name, kind in zip(schema.names, schema.types, strict=True)
    }
    return pa.table(columns)


def _check_size(found: int) -> None:
    if found > MAX_DECODED:
        raise ValueError(f"{found} bytes once it is decoded; send at most {MAX_DECODED} in one message")


def _written_out(column: pa.ChunkedArray) -> int:
    """Bytes that the texts of a dictionary take, each as often as it is said."""
    if not pa.types.is_dictionary(column.type) or not _is_text(column.type.value_type):
        return 0
    lengths = (pc.binary_length(chunk.dictionary).take(chunk.indices) for chunk in column.chunks)
    return sum(int(pc.sum(each).as_py() or 0) for each in lengths)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _column(column: pa.ChunkedArray, kind: pa.DataType, contract: BehaviorContract) -> pa.ChunkedArray:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if kind == TIMESTAMP and pa.types.is_timestamp(column.type) and column.type.tz is None:
        if contract.naive_time_zone is None:
            raise ValueError("times without a time zone; write them in UTC, or declare naive_time_zone in the contract")
        column = pc.assume_timezone(column, contract.naive_time_zone, ambiguous="earliest", nonexistent="earliest")
    return column.cast(kind, safe=kind != TIMESTAMP)


# ── what a message says of its body ──────────────────────────────────────────────────────────────────────────


def _inflated(message: pa.ipc.Message) -> int:
    """Bytes of a message's buffers as they are, or as they will be once they are inflated."""
    header = _Record.root(message.metadata.to_pybytes())
    kind = header.byte(1)
    if kind not in (_DICTIONARY, _RECORDS):
        return 0
    records = header.record(2)
    if records is not None and kind == _DICTIONARY:
        records = records.record(1)
    if records is None:
        raise ValueError("a message without a header")
    body = message.body.to_pybytes() if message.body is not None else b""
    if records.record(3) is None:
        return len(body)
    # A compressed buffer begins with its length once inflated, int64; -1: it is not compressed.
    lengths = [struct.unpack_from("<q", body, offset)[0] for offset, length in records.pairs(2) if length > 8]
    return len(body) + sum(max(int(length), 0) for length in lengths)


class _Record:
    """A table in a flatbuffer, field by field. Layout: https://flatbuffers.dev/internals/."""

    def __init__(self, buffer: bytes, at: int) -> None:
        self._buffer, self._at = buffer, at
        self._fields = at - self._int("<i", at)

    @classmethod
    def root(cls, buffer: bytes) -> _Record:
        return cls(buffer, struct.unpack_from("<I", buffer, 0)[0])

    def byte(self, field: int) -> int:
        at = self._place(field)
        return self._buffer[at] if at is not None else 0

    def record(self, field: int) -> _Record | None:
        at = self._place(field)
        return None if at is None else _Record(self._buffer, at + self._int("<I", at))

    def pairs(self, field: int) -> list[tuple[int, int]]:
        """A vector of pairs of int64."""
        at = self._place(field)
        if at is None:
            return []
        start = at + self._int("<I", at)
        count = self._int("<I", start)
        numbers = struct.unpack_from(f"<{2 * count}q", self._buffer, start + 4)
        return list(zip(numbers[::2], numbers[1::2], strict=True))

    def _place(self, field: int) -> int | None:
        if 4 + 2 * field >= self._int("<H", self._fields):
            return None
        offset = self._int("<H", self._fields + 4 + 2 * field)
        return self._at + offset if offset else None

    def _int(self, layout: str, at: int) -> int:
        if at < 0:
            raise ValueError("a message that points outside of itself")
        return int(struct.unpack_from(layout, self._buffer, at)[0])


def _first_line(error: BaseException) -> str:
    return str(error).split("\n", maxsplit=1)[0][:200]

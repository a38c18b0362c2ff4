"""Payloads → raw behaviors: JSON objects and Arrow IPC streams, a whole batch at once; bad ones are set aside.

JSON: one object per message, keys as the contract names its columns; other keys are ignored. Ids may be numbers or
text, times ISO 8601 text or integers (microseconds since the epoch, UTC). Text without a zone is read in the
contract's ``naive_time_zone``, and is bad where there is none. Arrow: one IPC stream per message, of any number of
rows. What is well-formed, and still no behavior (an unknown type, a time in the future, …), is judged later, by
``transformations.validate``.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from feast_embeddings.materialize.stream.arrow_payloads import arrow_rows, is_arrow
from feast_embeddings.models.types import Int64s
from feast_embeddings.transformations import BehaviorContract
from feast_embeddings.transformations.behaviors import TIMESTAMP, BadPayloadError, raw_schema, row_of

MAX_BYTES: Final = 1 << 20
_FEW: Final = 8
_READ = pj.ReadOptions(use_threads=False, block_size=1 << 30)


@dataclass(slots=True)
class Decoded:
    """What N messages hold.

    Attributes:
        raw: The contract's source columns, of :func:`raw_schema`; R rows.
        message: int64 [R], the message of each row.
        poison: Numbers of the messages that hold no row, with the reason of each.
    """

    raw: pa.Table
    message: Int64s
    poison: dict[int, str] = field(default_factory=dict)


def decode(payloads: Sequence[bytes], contract: BehaviorContract) -> Decoded:
    """The behaviors in ``payloads``; whatever the bytes are, it does not raise."""
    kinds = np.fromiter(map(_kind, payloads), np.int8, len(payloads))
    schema = raw_schema(contract)
    parts: list[tuple[pa.Table, Int64s]] = [(schema.empty_table(), np.empty(0, np.int64))]
    poison = {int(row): _TOO_LONG for row in np.flatnonzero(kinds == _LONG)}
    _decode_json(payloads, np.flatnonzero(kinds == _JSON).astype(np.int64), contract, parts, poison)
    for row in np.flatnonzero(kinds == _ARROW).tolist():
        try:
            table = arrow_rows(payloads[row], contract, schema)
        except BadPayloadError as error:
            poison[row] = str(error)
        else:
            parts.append((table, np.full(table.num_rows, row, np.int64)))
    message = np.concatenate([rows for _, rows in parts])
    order = np.argsort(message, kind="stable")
    raw = pa.concat_tables([table for table, _ in parts])
    if len(parts) > 2:
        raw, message = raw.take(pa.array(order)), message[order]
    return Decoded(raw.combine_chunks(), message, dict(sorted(poison.items())))


_JSON, _ARROW, _LONG = 0, 1, 2
_TOO_LONG: Final = f"longer than {MAX_BYTES} bytes"


def _kind(payload: bytes) -> int:
    if len(payload) > MAX_BYTES:
        return _LONG
    return _ARROW if is_arrow(payload) else _JSON


# ── JSON ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _decode_json(
    payloads: Sequence[bytes],
    rows: Int64s,
    contract: BehaviorContract,
    parts: list[tuple[pa.Table, Int64s]],
    poison: dict[int, str],
) -> None:
    """Parse messages ``rows`` together; where that fails, halves of them, down to one by one."""
    if not len(rows):
        return
    table = _json_table([payloads[row] for row in rows.tolist()], contract)
    if table is not None:
        parts.append((table, rows))
    elif len(rows) > _FEW:
        middle = len(rows) // 2
        _decode_json(payloads, rows[:middle], contract, parts, poison)
        _decode_json(payloads, rows[middle:], contract, parts, poison)
    else:
        _decode_singly(payloads, rows, contract, parts, poison)


def _decode_singly(
    payloads: Sequence[bytes],
    rows: Int64s,
    contract: BehaviorContract,
    parts: list[tuple[pa.Table, Int64s]],
    poison: dict[int, str],
) -> None:
    good, found = [], []
    for row in rows.tolist():
        try:
            found.append(row_of(payloads[row], contract))
            good.append(row)
        except BadPayloadError as error:
            poison[row] = str(error)
    if good:
        schema = raw_schema(contract)
        columns = [
            pa.array([each[name] for each in found], _plain(kind)).cast(kind)
            for name, kind in zip(schema.names, schema.types, strict=True)
        ]
        parts.append((pa.table(columns, schema=schema), np.array(good, np.int64)))


def _plain(kind: pa.DataType) -> pa.DataType:
    return pa.int64() if kind == TIMESTAMP else kind


def _json_table(payloads: list[bytes], contract: BehaviorContract) -> pa.Table | None:
    """All payloads by Arrow's parser; None where one of them needs a closer look."""
    lines = b"\n".join(payloads)
    # Each line must be one object by itself, or the parser might join or split them.
    plain = lines.count(b"\n") == len(payloads) - 1 and all(p[:1] == b"{" and p[-1:] == b"}" for p in payloads)
    if not plain or b'"' not in lines:
        return None
    try:
        lines.decode()  # Arrow takes any bytes for text
    except UnicodeDecodeError:
        return None
    for written in (pa.string(), pa.int64()):  # times are all ISO text, or all microseconds
        table = _parsed(lines, len(payloads), contract, written)
        if table is not None:
            return table
    return None


def _parsed(lines: bytes, count: int, contract: BehaviorContract, written: pa.DataType) -> pa.Table | None:
    schema = raw_schema(contract)
    times = [each.name for each in schema if each.type == TIMESTAMP]
    asked = pa.schema([(each.name, written if each.name in times else each.type) for each in schema])
    options = pj.ParseOptions(explicit_schema=asked, unexpected_field_behavior="ignore")
    try:
        table = pj.read_json(io.BytesIO(lines), _READ, options)
        if table.num_rows != count:
            return None
        for name in times:
            at = table.column_names.index(name)
            column = table[name].cast(TIMESTAMP) if written == pa.int64() else _times(table[name], contract)
            table = table.set_column(at, name, column)
        return table.select(schema.names).cast(schema)
    except (pa.ArrowException, ValueError):
        return None


def _times(texts: pa.ChunkedArray, contract: BehaviorContract) -> pa.ChunkedArray:
    try:
        return texts.cast(TIMESTAMP)
    except pa.ArrowInvalid:
        if contract.naive_time_zone is None:
            raise
    naive = texts.cast(pa.timestamp("us"))  # raises where one of them has a zone
    zoned = pc.assume_timezone(naive, contract.naive_time_zone, ambiguous="earliest", nonexistent="earliest")
    return zoned.cast(TIMESTAMP)


def to_json_payloads(rows: Sequence[dict[str, Any]]) -> list[bytes]:
    """Behaviors as JSON payloads, one each; times as microseconds or ISO text, as they are given."""
    return [json.dumps(row, separators=(",", ":")).encode() for row in rows]


def to_arrow_payload(table: pa.Table) -> bytes:
    """Behaviors as one Arrow payload; all of one partition."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())

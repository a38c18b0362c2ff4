"""Raw rows → canonical columns; a bad row gets the first reason that applies, and goes to quarantine."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feast_embeddings.models.types import Bools, Int32s, Int64s
from feast_embeddings.transformations.behaviors.columns import check_columns
from feast_embeddings.transformations.behaviors.contract import BehaviorContract, IdType
from feast_embeddings.transformations.behaviors.table import schema_of
from feast_embeddings.transformations.behaviors.times import Times, read_times

QUARANTINED_COLUMNS = ("entity", "item", "behavior_type", "event_time", "value", "dedup_id")
QUARANTINE_SCHEMA = pa.schema([pa.field(name, pa.string()) for name in (*QUARANTINED_COLUMNS, "reason")])
_FLOAT32_MAX = float(np.finfo(np.float32).max)
# The text of an int64, and nothing else: "007" and "7" would silently become one id.
_INTEGER_TEXT = r"^(0|-?[1-9][0-9]{0,18})$"


@dataclass(frozen=True, slots=True)
class Validated:
    """Raw rows, judged one by one.

    Attributes:
        table: Canonical columns of the good rows, in raw order.
        rows: int64 [good], the raw row of each.
        bad_rows: int64 [bad], the raw rows that are not behaviors.
        reasons: Why, one text per bad row.
    """

    table: pa.Table
    rows: Int64s
    bad_rows: Int64s
    reasons: list[str]


@dataclass(slots=True)
class _Verdicts:
    """The first reason of each row: an index into ``reasons``, -1 while the row is good."""

    code: Int32s
    reasons: list[str] = field(default_factory=list)

    def reject(self, bad: Bools, reason: str) -> None:
        self.code[bad & (self.code < 0)] = len(self.reasons)
        self.reasons.append(reason)


def validate(raw: pa.Table, contract: BehaviorContract, now_us: int) -> Validated:
    """Judges every raw row by itself: ids, behavior type, times, value.

    Args:
        raw: The contract's source columns, as ``read_behaviors`` returns them.
        contract: What the columns mean.
        now_us: Present time, microseconds since the epoch, UTC; later event times are refused.

    Raises:
        BehaviorSourceError: A column is missing or of a type that cannot mean what the contract says.
    """
    check_columns(raw.schema, contract, "the raw table")
    verdicts = _Verdicts(np.full(raw.num_rows, -1, dtype=np.int32))
    columns = {
        "entity": _ids(raw[contract.entity], contract.entity_dtype, "entity", verdicts),
        "item": _ids(raw[contract.item], contract.item_dtype, "item", verdicts),
        "behavior_type": _type_codes(raw, contract, verdicts),
        "event_time": _event_times(raw, contract, now_us, verdicts),
        "value": _values(raw, contract, verdicts),
        "created_time": _created_times(raw, contract, verdicts),
        "dedup_id": _dedup_ids(raw, contract),
    }
    good = verdicts.code < 0
    table = pa.table(columns).filter(pa.array(good)).cast(schema_of(contract))
    bad_rows = np.flatnonzero(~good).astype(np.int64)
    reasons = [verdicts.reasons[code] for code in verdicts.code[bad_rows]]
    return Validated(table, np.flatnonzero(good).astype(np.int64), bad_rows, reasons)


def entities_of(raw: pa.Table, contract: BehaviorContract) -> pa.ChunkedArray:
    """The entity of each raw row: int64 or string [N], as the contract declares; null where there is none."""
    column = _decoded(raw[contract.entity])
    if contract.entity_dtype == "string":
        return column.cast(pa.string())
    numbers, castable = _integers(column)
    return pc.if_else(pa.array(castable), numbers, None)


def quarantine_rows(raw: pa.Table, contract: BehaviorContract, rows: Int64s, reasons: list[str]) -> pa.Table:
    """The raw rows as text, each with its reason: columns of ``QUARANTINE_SCHEMA``."""
    taken = raw.take(pa.array(rows))
    columns = {name: _texts(taken, contract.columns.get(name)) for name in QUARANTINED_COLUMNS}
    if contract.default_type is not None:
        columns["behavior_type"] = pa.array([contract.default_type] * len(rows), pa.string())
    return pa.table({**columns, "reason": pa.array(reasons, pa.string())}, schema=QUARANTINE_SCHEMA)


def _texts(table: pa.Table, column: str | None) -> pa.Array | pa.ChunkedArray:
    if column is None:
        return pa.nulls(table.num_rows, pa.string())
    values = table[column]
    if pa.types.is_timestamp(values.type) and values.type.tz is not None:
        # In UTC, whatever zone the column is shown in.
        return pc.binary_join_element_wise(values.cast(pa.timestamp(values.type.unit)).cast(pa.string()), "Z", "")
    return values.cast(pa.string())


def _ids(column: pa.ChunkedArray, dtype: IdType, name: str, verdicts: _Verdicts) -> pa.ChunkedArray:
    column = _decoded(column)
    missing = _mask(column.is_null(nan_is_null=True))
    if dtype == "string":
        texts = column.cast(pa.string())
        verdicts.reject(missing | _mask(pc.equal(texts, "")), f"{name} missing")
        return texts
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        missing |= _mask(pc.equal(column, ""))
    verdicts.reject(missing, f"{name} missing")
    numbers, castable = _integers(column)
    verdicts.reject(~castable, f"{name} is not an int64")
    return numbers


def _integers(column: pa.ChunkedArray) -> tuple[pa.ChunkedArray, Bools]:
    """The column as int64 and where it is one; elsewhere the numbers mean nothing."""
    kind = column.type
    if pa.types.is_null(kind):
        return column.cast(pa.int64()), np.zeros(len(column), dtype=np.bool_)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        column = pc.if_else(pc.match_substring_regex(column, _INTEGER_TEXT), column, None)
        column = column.cast(pa.decimal128(20, 0))
    elif pa.types.is_floating(kind):
        whole = pc.and_(pc.equal(pc.floor(column), column), pc.less(pc.abs(column), 2.0**53))
        return pc.if_else(whole, column, None).cast(pa.int64()), _mask(whole)
    elif pa.types.is_decimal(kind):
        column = pc.if_else(pc.equal(pc.floor(column), column), column, None)
    elif kind != pa.uint64():
        return column.cast(pa.int64()), np.ones(len(column), dtype=np.bool_)
    fits = _fits_int64(column)
    return pc.if_else(fits, column, None).cast(pa.int64()), _mask(fits)


def _fits_int64(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if column.type == pa.uint64():
        return pc.less_equal(column, pa.scalar(2**63 - 1, pa.uint64()))
    kind = pa.decimal256(76, max(column.type.scale, 0))
    wide = column.cast(kind)
    low, high = (pa.scalar(Decimal(bound), kind) for bound in (-(2**63), 2**63 - 1))
    return pc.and_(pc.greater_equal(wide, low), pc.less_equal(wide, high))


def _type_codes(raw: pa.Table, contract: BehaviorContract, verdicts: _Verdicts) -> pa.Array:
    codes = contract.type_codes
    if contract.default_type is not None:
        return pa.array(np.full(raw.num_rows, codes[contract.default_type], dtype=np.int32))
    texts = _decoded(raw[contract.columns["behavior_type"]]).cast(pa.string())
    verdicts.reject(_mask(texts.is_null()), "behavior type missing")
    position = pc.index_in(texts, pa.array(codes, pa.string()))
    verdicts.reject(_mask(position.is_null()), "behavior type unknown")
    return pc.take(pa.array(codes.values(), pa.int32()), position)


def _event_times(raw: pa.Table, contract: BehaviorContract, now_us: int, verdicts: _Verdicts) -> pa.Array:
    times = read_times(raw[contract.event_time], contract.naive_time_zone)
    _reject_times(times, "event time", verdicts, missing=True)
    verdicts.reject(times.us > now_us, "event time in the future")
    return times.to_arrow()


def _created_times(raw: pa.Table, contract: BehaviorContract, verdicts: _Verdicts) -> pa.Array:
    if contract.created_time is None:
        return pa.nulls(raw.num_rows, pa.timestamp("us", tz="UTC"))
    times = read_times(raw[contract.created_time], contract.naive_time_zone)
    _reject_times(times, "created time", verdicts, missing=False)
    return times.to_arrow()


def _reject_times(times: Times, name: str, verdicts: _Verdicts, *, missing: bool) -> None:
    if missing:
        verdicts.reject(times.missing, f"{name} missing")
    if not times.zoned:
        verdicts.reject(~times.missing, f"{name} without time zone")
    verdicts.reject(times.out_of_range, f"{name} out of range")


def _values(raw: pa.Table, contract: BehaviorContract, verdicts: _Verdicts) -> pa.Array:
    if contract.value is None:
        return pa.nulls(raw.num_rows, pa.float64())
    column = raw[contract.value].cast(pa.float64(), safe=False)
    values = np.asarray(column.fill_null(0.0).to_numpy(), dtype=np.float64)
    verdicts.reject(np.isnan(values), "value not a number")
    verdicts.reject(np.isinf(values), "value infinite")
    # Encoders read float32, where a larger value would be infinite.
    verdicts.reject(np.abs(values) > _FLOAT32_MAX, "value beyond float32")
    return pa.array(values + 0.0, pa.float64(), mask=_mask(column.is_null()))  # + 0.0: no negative zero


def _dedup_ids(raw: pa.Table, contract: BehaviorContract) -> pa.Array | pa.ChunkedArray:
    if contract.dedup_id is None:
        return pa.nulls(raw.num_rows, pa.string())
    texts = _decoded(raw[contract.dedup_id]).cast(pa.string())
    return pc.if_else(pc.equal(texts, ""), None, texts)


def _decoded(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _mask(column: pa.ChunkedArray) -> Bools:
    """Arrow booleans as NumPy ones; null is False."""
    return np.asarray(pc.fill_null(column, False).to_numpy(), dtype=np.bool_)

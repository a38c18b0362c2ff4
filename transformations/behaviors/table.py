"""Behaviors: the validated Arrow table that histories, activity and training are made from."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from feast_embeddings.models.encoder import ValueNormalizer
from feast_embeddings.models.errors import BehaviorSourceError
from feast_embeddings.models.types import Bools, Float32s, Float64s, Ids, Int32s, Int64s
from feast_embeddings.transformations.behaviors.contract import BehaviorContract
from feast_embeddings.transformations.behaviors.ordering import is_ordered, lex_order, ranks, starts_of_runs, to_ids
from feast_embeddings.transformations.behaviors.times import TIMESTAMP

NORMALIZED_VALUE = "normalized_value"
_ID_TYPES = {"int64": pa.int64(), "string": pa.string()}
_REQUIRED = ("entity", "item", "behavior_type", "event_time")


def canonical_schema(entity_type: pa.DataType, item_type: pa.DataType) -> pa.Schema:
    """The canonical columns, given the Arrow types of the ids."""
    return pa.schema(
        [
            pa.field("entity", entity_type),
            pa.field("item", item_type),
            pa.field("behavior_type", pa.int32()),
            pa.field("event_time", TIMESTAMP),
            pa.field("value", pa.float64()),
            pa.field("created_time", TIMESTAMP),
            pa.field("dedup_id", pa.string()),
        ]
    )


def schema_of(contract: BehaviorContract) -> pa.Schema:
    """The canonical columns of a contract's behaviors."""
    return canonical_schema(_ID_TYPES[contract.entity_dtype], _ID_TYPES[contract.item_dtype])


class Behaviors:
    """Accepted behaviors, sorted by (entity, event time, item, behavior type, value).

    That order is total on content, so every order of delivery ends in the same table (rows that are equal in
    all five are interchangeable). The table is never changed; the views below share its memory where Arrow
    allows.

    Args:
        table: The canonical columns of ``canonical_schema`` in any row order, and optionally
            ``normalized_value`` (float64).

    Raises:
        BehaviorSourceError: The table is not canonical: a column is missing, foreign or of another type, an
            id, type or event time is null, a type code is negative, or a value is not finite.
    """

    def __init__(self, table: pa.Table) -> None:
        _check(table)
        table = table.combine_chunks()
        keys = content_keys(table)
        self.table: pa.Table = table if is_ordered(*keys) else table.take(pa.array(lex_order(*keys)))

    @classmethod
    def empty(cls, contract: BehaviorContract) -> Behaviors:
        """No behaviors, with the contract's id types."""
        return cls(schema_of(contract).empty_table())

    @classmethod
    def concat(cls, parts: Sequence[Behaviors]) -> Behaviors:
        """All behaviors of the parts (at least one part), sorted anew; nothing is deduplicated.

        Raises:
            BehaviorSourceError: The parts' columns differ.
        """
        if not parts:
            raise BehaviorSourceError("No behaviors to concatenate; use Behaviors.empty(contract) for none.")
        try:
            return cls(pa.concat_tables([part.table for part in parts]))
        except pa.ArrowInvalid as error:
            raise BehaviorSourceError(
                f"Behaviors of two contracts cannot be concatenated: {error}. Prepare them under one contract."
            ) from error

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __repr__(self) -> str:
        return f"Behaviors({len(self)} behaviors of {len(self.entities)} entities)"

    @cached_property
    def entities(self) -> Ids:
        """The entities that have behaviors, ascending and unique: int64 or str [E]."""
        return to_ids(self.table["entity"].take(pa.array(self.offsets[:-1])))

    @cached_property
    def offsets(self) -> Int64s:
        """int64 [E + 1]: the behaviors of ``entities[e]`` are rows ``offsets[e]:offsets[e + 1]``."""
        starts = np.flatnonzero(starts_of_runs(ranks(self.table["entity"])))
        return np.append(starts, len(self)).astype(np.int64)

    @cached_property
    def items(self) -> Ids:
        """Raw item ids: int64 or str [N]."""
        return to_ids(self.table["item"])

    @cached_property
    def behavior_types(self) -> Int32s:
        """Codes into the contract's types: int32 [N]."""
        return np.asarray(self.table["behavior_type"].to_numpy(), dtype=np.int32)

    @cached_property
    def times_us(self) -> Int64s:
        """Event times in microseconds since the epoch, UTC: int64 [N]."""
        return _time_ticks(self.table["event_time"])

    @cached_property
    def values(self) -> Float32s:
        """Raw values, NaN where there is none: float32 [N], as histories hold them."""
        # Adding 0.0 turns the -0.0 that tiny negative values round to into 0.0: equal values, equal bits.
        return _value_keys(self.table["value"]).astype(np.float32) + np.float32(0.0)

    @property
    def written_us(self) -> Int64s:
        """Created times in microseconds, event times where there are none: int64 [N]."""
        return _time_ticks(pc.coalesce(self.table["created_time"], self.table["event_time"]))

    def select(self, mask: Bools) -> Behaviors:
        """The behaviors where ``mask`` (bool [N]) is true."""
        return self.from_sorted(self.table.filter(pa.array(mask)))

    def between(self, start_us: int, end_us: int) -> Behaviors:
        """The behaviors with ``start_us <= event time < end_us`` (microseconds)."""
        return self.select((self.times_us >= start_us) & (self.times_us < end_us))

    def with_normalized_values(self, normalizer: ValueNormalizer) -> Behaviors:
        """The same behaviors with a column ``normalized_value`` (float64, null where there is no value)."""
        normalized = pa.array(normalizer.transform(self.values).astype(np.float64), from_pandas=True)
        kept = self.table.select([name for name in self.table.column_names if name != NORMALIZED_VALUE])
        return self.from_sorted(kept.append_column(NORMALIZED_VALUE, normalized))

    @classmethod
    def from_sorted(cls, table: pa.Table) -> Behaviors:
        """Wraps rows that are known to be canonical and in order, unchecked."""
        behaviors = cls.__new__(cls)
        behaviors.table = table.combine_chunks()
        return behaviors


def content_keys(table: pa.Table) -> tuple[npt.NDArray[Any], ...]:
    """The sort keys of the total order on content: entity, event time, item, behavior type, value."""
    return (
        ranks(table["entity"]),
        _time_ticks(table["event_time"]),
        ranks(table["item"]),
        np.asarray(table["behavior_type"].to_numpy()),
        _value_keys(table["value"]),
    )


def _time_ticks(column: pa.ChunkedArray) -> Int64s:
    return np.asarray(column.cast(pa.int64()).to_numpy(), dtype=np.int64)


def _value_keys(column: pa.ChunkedArray) -> Float64s:
    return np.asarray(column.fill_null(float("nan")).to_numpy(), dtype=np.float64)


def _check(table: pa.Table) -> None:
    missing = {"entity", "item"} - set(table.column_names)
    if missing:
        raise BehaviorSourceError(f"The table has no column {sorted(missing)[0]!r}; {_REMEDY}")
    _check_schema(table)
    for name in _REQUIRED:
        if table[name].null_count:
            raise BehaviorSourceError(f"Column {name!r} has {table[name].null_count} nulls; {_REMEDY}")
    if pc.any(pc.less(table["behavior_type"], 0)).as_py():
        raise BehaviorSourceError(f"Column 'behavior_type' has negative codes; {_REMEDY}")
    if not pc.all(pc.is_finite(table["value"])).as_py() and table.num_rows > table["value"].null_count:
        raise BehaviorSourceError(f"Column 'value' has values that are not finite; {_REMEDY}")


def _check_schema(table: pa.Table) -> None:
    schema = canonical_schema(table.schema.field("entity").type, table.schema.field("item").type)
    if NORMALIZED_VALUE in table.column_names:
        schema = schema.append(pa.field(NORMALIZED_VALUE, pa.float64()))
    for name in ("entity", "item"):
        if schema.field(name).type not in _ID_TYPES.values():
            raise BehaviorSourceError(
                f"Column {name!r} is {schema.field(name).type}; ids are int64 or string. {_REMEDY}"
            )
    found = {field.name: field.type for field in table.schema}
    wanted = {field.name: field.type for field in schema}
    if found != wanted or len(table.schema) != len(wanted):
        raise BehaviorSourceError(
            f"The table's columns are {_listed(found)}, the canonical ones are {_listed(wanted)}. {_REMEDY}"
        )


def _listed(columns: dict[str, pa.DataType]) -> str:
    return ", ".join(f"{name}: {kind}" for name, kind in columns.items())


_REMEDY = "pass raw tables through prepare(raw, contract, rules, now_us)."

"""The columns that a contract names: their types, and whether a table's can mean them, before any row is read."""

from __future__ import annotations

from difflib import get_close_matches

import pyarrow as pa

from feast_embeddings.models.errors import BehaviorSourceError
from feast_embeddings.transformations.behaviors.contract import BehaviorContract
from feast_embeddings.transformations.behaviors.times import TIMESTAMP

_ID_TYPES = {"int64": pa.int64(), "string": pa.string()}


def raw_schema(contract: BehaviorContract) -> pa.Schema:
    """The contract's source columns, as streams carry them and as they are appended to the behavior log."""
    types = {
        "entity": _ID_TYPES[contract.entity_dtype],
        "item": _ID_TYPES[contract.item_dtype],
        "behavior_type": pa.string(),
        "event_time": TIMESTAMP,
        "value": pa.float64(),
        "created_time": TIMESTAMP,
        "dedup_id": pa.string(),
    }
    return pa.schema([(column, types[role]) for role, column in contract.columns.items()])


def check_columns(schema: pa.Schema, contract: BehaviorContract, where: str) -> None:
    """Checks that every column of the contract is there, and of a type that it can be read from.

    Args:
        schema: The raw columns.
        contract: What they should mean.
        where: The file or table, for the message.

    Raises:
        BehaviorSourceError: Names the column, the place, what is there, and the line of the contract to
            change.
    """
    check_names(schema, where)
    for role, column in contract.columns.items():
        if column not in schema.names:
            raise BehaviorSourceError(_missing(schema, role, column, where))
        wanted = _wanted(role, contract)
        if not _fits(schema.field(column).type, wanted):
            raise BehaviorSourceError(
                f"Column {column!r} of {where} is {schema.field(column).type}, which cannot be read as "
                f"{role} "
                f"({_WORDS[wanted]}). Store it as such, or name another column in the contract: {role}='…'."
            )


def check_names(schema: pa.Schema, where: str) -> None:
    """Checks that no two columns share a name.

    Raises:
        BehaviorSourceError: Names the column that occurs twice.
    """
    for name in schema.names:
        if schema.names.count(name) > 1:
            raise BehaviorSourceError(
                f"{where} has {schema.names.count(name)} columns named {name!r}, and which one is meant cannot "
                "be told. Give each column a name of its own."
            )


def _missing(schema: pa.Schema, role: str, column: str, where: str) -> str:
    near = get_close_matches(column, schema.names, n=1)
    hint = f"{role}={near[0]!r}" if near else f"{role}='…'"
    return (
        f"Column {column!r}, the contract's {role}, is not in {where}, which has: "
        f"{', '.join(schema.names) or 'none'}. "
        f"Name one of these in the contract: BehaviorContract(…, {hint})."
    )


_WORDS = {
    "timestamp": "a timestamp",
    "int64": "an int64 id: integers, or text or decimals that are integers",
    "text": "text or integers",
    "number": "a number",
}


def _wanted(role: str, contract: BehaviorContract) -> str:
    if role in ("event_time", "created_time"):
        return "timestamp"
    if role == "value":
        return "number"
    dtypes: dict[str, str] = {"entity": contract.entity_dtype, "item": contract.item_dtype}
    return "int64" if dtypes.get(role) == "int64" else "text"


def _fits(kind: pa.DataType, wanted: str) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_null(kind):  # a column without a single value; its rows are judged one by one
        return True
    text_or_integer = pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)
    number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    if wanted == "timestamp":
        return bool(pa.types.is_timestamp(kind))
    if wanted == "number":
        return bool(number)
    return bool(text_or_integer or (wanted == "int64" and number))

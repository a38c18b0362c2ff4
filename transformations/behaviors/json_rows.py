"""One JSON payload, looked at by itself: what the quick parser of whole batches could not take."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from feast_embeddings.transformations.behaviors.contract import BehaviorContract
from feast_embeddings.transformations.behaviors.times import TIMESTAMP

_INTEGER: Final = re.compile(r"-?(0|[1-9][0-9]{0,18})")
_FINE: Final = re.compile(r"(\.[0-9]{6})[0-9]+")


class BadPayloadError(ValueError):
    """The payload is no behavior; the message says why."""


def row_of(payload: bytes, contract: BehaviorContract) -> dict[str, Any]:
    """The contract's source columns of one payload: times in microseconds, None where a column is missing.

    Raises:
        BadPayloadError: It is not a JSON object, or a column holds what cannot be meant.
    """
    try:
        found = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise BadPayloadError(f"not JSON: {str(error)[:120]}") from error
    if not isinstance(found, dict):
        raise BadPayloadError(f"not a JSON object but a {type(found).__name__}")
    row: dict[str, Any] = {}
    for role, column in contract.columns.items():
        value = found.get(column)
        try:
            row[column] = None if value is None else _READERS[role](value, contract)
        except (ValueError, OverflowError, pa.ArrowException) as error:
            raise BadPayloadError(f"{role.replace('_', ' ')}: {str(error)[:120]}") from error
    return row


def _id(value: Any, dtype: str) -> int | str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise BadPayloadError(f"an id is a number or text, not a {type(value).__name__}")
    if dtype == "string":
        return _text(str(value))
    if isinstance(value, str) and not _INTEGER.fullmatch(value):
        raise ValueError(f"{value[:40]!r} is not an int64")
    return _int64(int(value))


def _int64(number: int) -> int:
    if not -(1 << 63) <= number < 1 << 63:
        raise ValueError(f"{str(number)[:40]} is not an int64")
    return number


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise BadPayloadError(f"text is wanted, not a {type(value).__name__}")
    value.encode()  # a lone surrogate is no text
    return str(value)


def time_of(value: Any, contract: BehaviorContract) -> int:
    """What the parser of whole batches would read, in microseconds; finer fractions are cut off.

    Raises:
        ValueError: It is neither a whole number of microseconds nor text in ISO 8601 with a zone, its own or declared.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return _int64(value)
    text = _FINE.sub(r"\1", _text(value))
    try:
        return int(pa.scalar(text).cast(TIMESTAMP).value)
    except pa.ArrowInvalid as error:
        if contract.naive_time_zone is None or "expected a zone offset" not in str(error):
            raise ValueError(str(error).split("\n", maxsplit=1)[0]) from error
    naive = pa.array([text]).cast(pa.timestamp("us"))
    return int(
        pc.assume_timezone(naive, contract.naive_time_zone, ambiguous="earliest", nonexistent="earliest")[0].value
    )


def _value(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadPayloadError("a value is a number")
    return float(value)


def _dedup_id(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise BadPayloadError("a dedup id is text or a whole number")
    return _text(str(value))


_READERS: Final[dict[str, Callable[[Any, BehaviorContract], Any]]] = {
    "entity": lambda value, contract: _id(value, contract.entity_dtype),
    "item": lambda value, contract: _id(value, contract.item_dtype),
    "behavior_type": lambda value, _: _text(value),
    "event_time": time_of,
    "value": lambda value, _: _value(value),
    "created_time": time_of,
    "dedup_id": lambda value, _: _dedup_id(value),
}

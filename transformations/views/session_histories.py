"""A request's own behaviors, merged into stored histories exactly as a tick would merge them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from feast_embeddings.models.encoder import HistoryBatch
from feast_embeddings.models.errors import BehaviorSourceError
from feast_embeddings.models.types import Bools, Float32s, Float64s, Ids, Int32s, Int64s
from feast_embeddings.transformations.behaviors import (
    BehaviorContract,
    Behaviors,
    CleaningRules,
    canonical_schema,
    clean,
    concat_ids,
    lex_order,
    ranks,
    starts_of_runs,
    time_of,
)
from feast_embeddings.transformations.histories import Arrivals, merged
from feast_embeddings.transformations.views.session import SESSION_INPUTS, Columns, SessionSpec
from feast_embeddings.transformations.views.tags import HISTORY_FEATURES

SKEW_US: Final = 60_000_000
"""Clocks of clients may run ahead by so much; a behavior that lies further in the future is refused."""
_FIRST_US: Final = (2**63 - 1) // 1_000  # what nanoseconds can hold, as in a validated table
_FLOAT32_MAX: Final = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True)
class Sessions:
    """Merged histories of the B rows of a request, and what became of the behaviors that came with it.

    Attributes:
        histories: B histories as of now, or right after a row's latest behavior where that is later.
        items: Items of the request's own behaviors that are in the histories [N].
        counts: ``read = applied + deduplicated + refused``.
    """

    histories: HistoryBatch
    items: Ids
    counts: dict[str, int]


def session_histories(spec: SessionSpec, inputs: Columns, now_us: int, length: int) -> Sessions:
    """Merge the behaviors of a request into the histories that were stored, row by row.

    The union is idempotent: a behavior of the request that stands in the stored history already, because a tick has
    applied it meanwhile, counts once. The declared cleaning rules judge the request's behaviors by themselves.

    Args:
        spec: The session view's declaration.
        inputs: Columns of the request: the history view's features and the session's, one list (or None) per row.
        now_us: Present time, microseconds since the epoch, UTC.
        length: Longest history to keep: what the encoder looks at.

    Raises:
        BehaviorSourceError: Lists of one row differ in length, or hold ids of another type than declared, a behavior
            type that is not declared, or what is no time.
    """
    stored = _stored(spec.contract, inputs, now_us)
    given = _given(spec, inputs)
    good = (given.times <= now_us + SKEW_US) & (given.times >= -_FIRST_US)
    good &= ~(np.abs(given.values) > _FLOAT32_MAX)
    if given.items.dtype == object:
        good &= given.items != ""
    fresh = given.where(good)
    unseen = fresh.where(_unseen(stored, fresh, spec.with_values))
    new = _cleaned(unseen, spec.contract, spec.rules)
    as_of = stored.as_of.copy()
    np.maximum.at(as_of, new.owner, new.times + 1)
    histories = merged(stored, replace(new, values=_as_stored(new.values)), length, as_of)
    counts = {
        "read": len(given),
        "applied": len(new),
        "deduplicated": len(fresh) - len(unseen),
        "refused": len(given) - len(fresh) + len(unseen) - len(new),
    }
    return Sessions(histories, new.items, counts)


def _stored(contract: BehaviorContract, inputs: Columns, now_us: int) -> HistoryBatch:
    items, types, times, values = (inputs[name] for name in HISTORY_FEATURES)
    lengths = _lengths(items)
    return HistoryBatch(
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        items=_flat_ids(items, contract.item_dtype == "string", HISTORY_FEATURES[0]),
        behavior_types=_flat(types, np.int32),
        times=_flat(times, np.int64),
        values=_flat(values, np.float32),
        as_of=np.full(len(lengths), now_us, np.int64),
    )


def _given(spec: SessionSpec, inputs: Columns) -> Arrivals:
    names = SESSION_INPUTS if spec.with_values else SESSION_INPUTS[:3]
    items, types, times, *values = (inputs[name] for name in names)
    lengths = [_lengths(inputs[name]) for name in names]
    for name, found in zip(names, lengths, strict=True):
        unequal = np.flatnonzero(found != lengths[0])
        if len(unequal):
            row = int(unequal[0])
            raise BehaviorSourceError(
                f"Row {row} of the request to {spec.view!r} has {lengths[0][row]} {names[0]} and {found[row]} {name}: "
                "give one of each per behavior."
            )
    rows = np.repeat(np.arange(len(lengths[0]), dtype=np.int64), lengths[0])
    return Arrivals(
        owner=rows,
        items=_flat_ids(items, spec.contract.item_dtype == "string", names[0]),
        behavior_types=_codes(types, spec),
        times=_times(times, spec.contract),
        values=_flat(values[0], np.float64) + 0.0 if values else np.full(len(rows), np.nan),  # no negative zero
    )


def _unseen(stored: HistoryBatch, given: Arrivals, with_values: bool) -> Bools:
    """Which behaviors of the request are neither stored already nor given before: bool [N].

    Without values in the request, behaviors are the same by time, item and type.
    """
    known = len(stored.items)
    owner = np.concatenate([stored.owner, given.owner])
    items = ranks(concat_ids([stored.items, given.items]))
    types = np.concatenate([stored.behavior_types, given.behavior_types])
    keys = [owner, np.concatenate([stored.times, given.times]), items, types]
    if with_values:
        keys.append(np.concatenate([stored.values, _as_stored(given.values)]))
    order = lex_order(*keys)  # stable: what is stored comes before what is given
    first = np.zeros(len(order), np.bool_)
    first[order] = starts_of_runs(*(key[order] for key in keys))
    return first[known:]


def _behaviors(given: Arrivals) -> Behaviors:
    """The canonical table, with the rows of the request as entities: one person may stand in several rows."""
    item = pa.array(given.items, pa.string() if given.items.dtype == object else pa.int64())
    schema = canonical_schema(pa.int64(), item.type)
    columns = {
        "entity": pa.array(given.owner),
        "item": item,
        "behavior_type": pa.array(given.behavior_types),
        "event_time": pa.array(given.times).cast(schema.field("event_time").type),
        "value": pa.array(given.values, mask=np.isnan(given.values)),
        "created_time": pa.nulls(len(given), schema.field("created_time").type),
        "dedup_id": pa.nulls(len(given), pa.string()),
    }
    return Behaviors(pa.table(columns, schema=schema))


def _cleaned(given: Arrivals, contract: BehaviorContract, rules: CleaningRules) -> Arrivals:
    """What the cleaning rules leave."""
    limits = [limit for limit in (rules.max_per_day, rules.burst and rules.burst[0]) if limit is not None]
    cancels = rules.cancellations and contract.cancellations
    if not cancels and len(given) <= min(limits, default=len(given)):
        return given  # no rule can refuse any of so few
    left = clean(_behaviors(given), contract, rules)
    row = np.repeat(left.entities, np.diff(left.offsets)).astype(np.int64)
    return Arrivals(row, left.items, left.behavior_types, left.times_us, left.values.astype(np.float64))


def _lengths(lists: Sequence[Any]) -> Int64s:
    return np.fromiter((0 if each is None else len(each) for each in lists), np.int64, len(lists))


def _flat(lists: Sequence[Any], dtype: type[np.generic]) -> npt.NDArray[Any]:
    # np.fromiter reads None as NaN into floats, and nothing else than numbers into integers
    return np.fromiter(chain.from_iterable(each for each in lists if each is not None), dtype)


def _flat_ids(lists: Sequence[Any], text: bool, name: str) -> Ids:
    flat = list(chain.from_iterable(each for each in lists if each is not None))
    try:
        return np.asarray(pa.array(flat, pa.string()), dtype=object) if text else np.array(flat, np.int64)
    except (pa.ArrowTypeError, pa.ArrowInvalid, ValueError, TypeError, OverflowError) as error:
        raise BehaviorSourceError(
            f"Request data {name!r} holds other ids than {'strings' if text else 'int64'} ({error}): pass item ids as "
            "the contract declares them."
        ) from error


def _times(lists: Sequence[Any], contract: BehaviorContract) -> Int64s:
    """Times in microseconds; a client may also write them as a behavior's JSON does, in ISO 8601."""
    cells = list(chain.from_iterable(each for each in lists if each is not None))
    try:
        return np.array(
            [time_of(cell.item() if isinstance(cell, np.integer) else cell, contract) for cell in cells], np.int64
        )
    except (ValueError, OverflowError, pa.ArrowException) as error:
        raise BehaviorSourceError(
            f"Request data {SESSION_INPUTS[2]!r} holds what is no time ({str(error)[:120]}): pass whole microseconds "
            "since the epoch, UTC, or ISO 8601 with a zone."
        ) from error


def _codes(lists: Sequence[Any], spec: SessionSpec) -> Int32s:
    """Codes of behavior types by name or alias."""
    names = pa.array(chain.from_iterable(each for each in lists if each is not None), pa.string())
    known = spec.contract.type_codes
    position = pc.index_in(names, pa.array(known, pa.string()))
    if position.null_count:
        unknown = pc.unique(names.filter(position.is_null())).to_pylist()
        raise BehaviorSourceError(
            f"Request data {SESSION_INPUTS[1]!r} of {spec.view!r} names the type {str(unknown[0])[:40]!r}, which is "
            f"not declared: pass one of {', '.join(known)}, or add it at the end of the contract's types."
        )
    codes: Int32s = np.array([*known.values()], np.int32)[position.to_numpy(zero_copy_only=False)]
    return codes


def _as_stored(values: Float32s | Float64s) -> Float32s:
    """Values as histories hold them: float32, and no negative zero, to which tiny negative values round."""
    return values.astype(np.float32) + np.float32(0.0)

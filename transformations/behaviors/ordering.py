"""The total order on behaviors, and searches in sorted segments, all without a loop per row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from feast_embeddings.models.types import Bools, Ids, Int64s


def to_ids(column: pa.Array | pa.ChunkedArray) -> Ids:
    """An id column as int64, or as Python strings in an object array."""
    values = column.to_numpy(zero_copy_only=False) if isinstance(column, pa.Array) else column.to_numpy()
    return np.asarray(values, dtype=np.int64 if pa.types.is_integer(column.type) else object)


def ranks(ids: Ids | pa.Array | pa.ChunkedArray) -> Int64s:
    """int64 [N] that compare as the ids do; nulls first. Strings compare by code point."""
    if isinstance(ids, np.ndarray):
        if ids.dtype != object:
            return np.asarray(ids, dtype=np.int64)
        ids = pa.array(ids, pa.string())
    if pa.types.is_integer(ids.type):
        return np.asarray(ids.to_numpy(), dtype=np.int64)
    return _string_ranks(ids)


def _string_ranks(strings: pa.Array | pa.ChunkedArray) -> Int64s:
    encoded = strings.dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    if isinstance(encoded, pa.ChunkedArray):  # no chunk at all
        return np.empty(0, dtype=np.int64)
    order = pc.array_sort_indices(encoded.dictionary).to_numpy()
    rank_of_code = np.empty(len(order) + 1, dtype=np.int64)
    rank_of_code[order] = np.arange(1, len(order) + 1)
    rank_of_code[-1] = 0  # the null
    codes: Int64s = encoded.indices.fill_null(len(order)).to_numpy()
    return rank_of_code[codes]


def lex_order(*keys: npt.NDArray[Any]) -> Int64s:
    """Row numbers in the order of the keys, the first key weighing most; stable. NaN comes last."""
    first, rest = keys[:2], keys[2:]
    order = np.lexsort(first[::-1]).astype(np.int64)
    if not rest or not len(order):
        return order
    # Two keys nearly decide: only rows that tie in both are worth sorting by the others.
    start = starts_of_runs(*(key[order] for key in first))
    alone = start & np.append(start[1:], True)
    tied = np.flatnonzero(~alone)
    run = np.cumsum(start)[tied]
    rows = order[tied]
    order[tied] = rows[np.lexsort((*(key[rows] for key in reversed(rest)), run))]
    return order


def is_ordered(*keys: npt.NDArray[Any]) -> bool:
    """Whether the rows already stand in the order of ``lex_order``, without sorting them."""
    if len(keys[0]) < 2:
        return True
    undecided = np.ones(len(keys[0]) - 1, dtype=np.bool_)
    for key in keys:
        before, after = key[:-1], key[1:]
        nan_before, nan_after = before != before, after != after
        if bool(np.any(undecided & ((before > after) | (nan_before & ~nan_after)))):
            return False
        undecided &= (before == after) | (nan_before & nan_after)
    return True


def starts_of_runs(*keys: npt.NDArray[Any]) -> Bools:
    """Where runs begin, bool [N]: a key differs from the row before. Two NaN are equal."""
    start = np.ones(len(keys[0]), dtype=np.bool_)
    if len(start):
        start[1:] = False
    for key in keys:
        before, after = key[:-1], key[1:]
        start[1:] |= (before != after) & ~((before != before) & (after != after))
    return start


def rank_in_run(start: Bools) -> Int64s:
    """int64 [N]: how many rows of its run stand before each row."""
    rows = np.arange(len(start), dtype=np.int64)
    return rows - np.maximum.accumulate(np.where(start, rows, 0)) if len(start) else rows


def bisect_segments(values: Int64s, low: Int64s, high: Int64s, targets: Int64s) -> Int64s:
    """First row in ``[low, high)`` whose value is not below the target, ``high`` if none.

    All segments are searched together: log2 of the longest segment in steps.

    Args:
        values: int64 [N], sorted inside each segment.
        low: int64 [B], start of each segment.
        high: int64 [B], its end.
        targets: int64 [B].

    Returns:
        int64 [B], row numbers.
    """
    low, high = low.copy(), high.copy()
    if not len(values):
        return high
    for _ in range(int((high - low).max(initial=0)).bit_length()):
        middle = (low + high) // 2
        below = (low < high) & (values[np.minimum(middle, len(values) - 1)] < targets)
        low, high = np.where(below, middle + 1, low), np.where(below, high, middle)
    return low


def concat_ids(parts: Sequence[Ids]) -> Ids:
    """Ids end to end; an empty part's dtype does not count."""
    filled: list[npt.NDArray[Any]] = [part for part in parts if len(part)] or list(parts[:1])
    return np.concatenate(filled)

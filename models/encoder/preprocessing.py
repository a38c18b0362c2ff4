"""The parts of an encoder that are not weights: item rows, normalized values, time-gap buckets."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal, cast, get_args

import numpy as np
import pandas as pd

from feast_embeddings.models.errors import BehaviorSourceError, DeclarationError
from feast_embeddings.models.types import Bools, Float32s, Float64s, Ids, Int64s

UNKNOWN_ROW = 0
"""Row of every item that is not in the index; known items start at row 1."""

GAP_BUCKETS = 32
"""One bucket per doubling of seconds: 0 s, 1–2 s, 3–6 s, … ; the last begins at 2^31 s, so nothing real
saturates."""

_MICROSECONDS = 1_000_000

ValueKind = Literal["log1p-zscore", "zscore"]


def lookup_of(ids: Ids) -> pd.Index[Any]:
    """An index over distinct ids, ready to be asked by several threads.

    pandas builds its table at the first question, and an index that a second thread asks meanwhile may take itself
    for one with duplicates. So the first question is asked here.
    """
    index = pd.Index(ids)
    index.get_indexer(index[:1])
    return index


@dataclass(frozen=True)
class ItemIndex:
    """Raw item ids to rows of the item table and back.

    Attributes:
        ids: Distinct raw ids [n], int64 or strings; ``ids[r - 1]`` stands in row ``r``, row 0 is the
            unknown item.
    """

    ids: Ids

    @classmethod
    def of(cls, items: Ids, min_count: int = 1) -> ItemIndex:
        """The sorted distinct ids of ``items`` [N] that occur at least ``min_count`` times."""
        ids, counts = np.unique(items, return_counts=True)
        return cls(cast(Ids, ids[counts >= min_count]))

    def __len__(self) -> int:
        """Number of known items, without the unknown row."""
        return len(self.ids)

    def rows(self, items: Ids) -> Int64s:
        """Rows int64 [n] of raw ids [n]; `UNKNOWN_ROW` for ids that are not in the index.

        Raises:
            BehaviorSourceError: The ids are integers where the index holds strings, or the other way round.
        """
        if len(items) and len(self.ids) and (items.dtype == np.int64) != (self.ids.dtype == np.int64):
            raise BehaviorSourceError(
                f"Item ids arrive as {items.dtype}, but the encoder's item index holds {self.ids.dtype}: "
                "declare the item column's dtype in the contract as it was at training, or train again."
            )
        found: Int64s = self._lookup.get_indexer(pd.Index(items)).astype(np.int64)
        return found + 1

    def vectors(self, items: Ids, table: Float32s) -> tuple[Float32s, Bools]:
        """Of a ``table`` [V, dim] of the known items the rows of raw ids [n], float32 [n, dim], and which are known.

        The others are zero.
        """
        rows = self.rows(items)
        known = rows > 0
        vectors = np.zeros((len(rows), table.shape[1]), np.float32)
        vectors[known] = table[rows[known] - 1]
        return vectors, known

    @cached_property
    def _lookup(self) -> pd.Index[Any]:
        return lookup_of(self.ids)


@dataclass(frozen=True, slots=True)
class ValueNormalizer:
    """Brings raw values (price, rating, seconds) near zero mean and unit variance; missing stays missing.

    Attributes:
        kind: ``zscore``, or ``log1p-zscore``, which first takes sign(v)·log(1 + |v|), for prices and counts.
        mean: Mean of the (log) values at fit.
        scale: Standard deviation of the (log) values at fit; 1 where they do not vary.
    """

    kind: ValueKind
    mean: float
    scale: float

    @classmethod
    def fit(cls, kind: ValueKind, values: Float32s) -> ValueNormalizer:
        """The normalizer of finite ``values`` [N]; without any, it has mean 0 and scale 1.

        Raises:
            DeclarationError: Unknown ``kind``.
        """
        if kind not in get_args(ValueKind):
            kinds = ", ".join(get_args(ValueKind))
            raise DeclarationError(f"Value normalizer {kind!r} is unknown: choose one of {kinds}, or None.")
        finite = _shaped(kind, values[np.isfinite(values)])
        scale = float(finite.std()) if len(finite) else 0.0
        return cls(kind, float(finite.mean()) if len(finite) else 0.0, scale or 1.0)

    def transform(self, values: Float32s) -> Float32s:
        """Normalized values, float32 [N]; NaN and infinities become NaN, which means missing."""
        normalized = (_shaped(self.kind, values) - self.mean) / self.scale
        return np.where(np.isfinite(values), normalized, np.nan).astype(np.float32)

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


def _shaped(kind: ValueKind, values: Float32s) -> Float64s:
    wide = values.astype(np.float64)
    return np.sign(wide) * np.log1p(np.abs(wide)) if kind == "log1p-zscore" else wide


def gap_buckets(times: Int64s, offsets: Int64s, as_of: Int64s) -> Int64s:
    """Bucket of the time from each behavior to the next one, and from a history's last one to its ``as_of``.

    So a position knows when the prediction is asked for, in training (the next behavior's time) as in
    serving.

    Args:
        times: int64 [N], microseconds.
        offsets: int64 [B + 1], history b is ``offsets[b]:offsets[b + 1]``.
        as_of: int64 [B], microseconds.

    Returns:
        int64 [N] in ``0 … GAP_BUCKETS - 1``: floor(log2(1 + seconds)), at most the last bucket.
    """
    following = np.empty_like(times)
    following[:-1] = times[1:]
    filled = np.diff(offsets) > 0
    following[offsets[1:][filled] - 1] = as_of[filled]
    seconds = np.maximum(following - times, 0) // _MICROSECONDS
    exponent = np.frexp((seconds + 1).astype(np.float64))[1] - 1
    buckets: Int64s = np.minimum(exponent, GAP_BUCKETS - 1).astype(np.int64)
    return buckets

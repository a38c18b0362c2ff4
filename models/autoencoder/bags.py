"""Histories as sparse vectors over the catalogue: which items, by which behavior types, how recently."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from feast_embeddings.models.encoder import HistoryBatch, ItemIndex, segments
from feast_embeddings.models.errors import DeclarationError
from feast_embeddings.models.types import Float32s, Int64s

_DAY_US = 86_400_000_000


@dataclass(frozen=True, slots=True)
class Bags:
    """B sparse rows of C columns, the columns of a row ascending.

    Attributes:
        offsets: int64 [B + 1].
        columns: int64 [N].
        weights: float32 [N], above 0.
        size: C.
    """

    offsets: Int64s
    columns: Int64s
    weights: Float32s
    size: int

    def __len__(self) -> int:
        """Number of rows, B."""
        return len(self.offsets) - 1

    def take(self, rows: Int64s) -> Bags:
        """The rows at ``rows`` (int64 [R]), in that order."""
        flat, offsets = segments(self.offsets[:-1][rows], np.diff(self.offsets)[rows])
        return Bags(offsets, self.columns[flat], self.weights[flat], self.size)

    def normalized(self) -> Bags:
        """The same rows at Euclidean length 1."""
        if not len(self.weights):
            return self
        filled = np.diff(self.offsets) > 0
        norms = np.ones(len(self))
        norms[filled] = np.sqrt(np.add.reduceat(self.weights.astype(np.float64) ** 2, self.offsets[:-1][filled]))
        weights = (self.weights / np.repeat(norms, np.diff(self.offsets))).astype(np.float32)
        return Bags(self.offsets, self.columns, weights, self.size)

    def dense(self) -> torch.Tensor:
        """The rows as float32 (B, C): for batches, never for everyone."""
        rows = torch.zeros(len(self), self.size)
        owner = np.repeat(np.arange(len(self)), np.diff(self.offsets))
        rows[torch.from_numpy(owner), torch.from_numpy(self.columns)] = torch.from_numpy(self.weights)
        return rows


@dataclass(frozen=True, slots=True)
class Bagger:
    """Makes bags of histories.

    An item's weight in a bag is the largest over its behaviors of: weight of the behavior's type · 0.5^(age /
    half-life). Unknown items, types of weight 0 and types younger than the encoder leave no trace.

    Attributes:
        items: The known items, V.
        type_weights: Weight of each behavior type, 0 or more.
        stacked: Whether each type has columns of its own (C = T · V, column t · V + row − 1) or all share V.
        half_life_days: In which the weight of a behavior halves; None: age does not matter.

    Raises:
        DeclarationError: A weight is negative or not finite, all are 0, or the half-life is not positive.
    """

    items: ItemIndex
    type_weights: tuple[float, ...]
    stacked: bool = False
    half_life_days: float | None = None

    def __post_init__(self) -> None:
        weights = np.asarray(self.type_weights, np.float64)
        if not np.isfinite(weights).all() or (weights < 0).any() or not (weights > 0).any():
            raise DeclarationError(
                f"Behavior types weigh {self.type_weights}: give finite weights of 0 or more, one of them above 0."
            )
        if self.half_life_days is not None and not self.half_life_days > 0:
            raise DeclarationError(f"half_life_days is {self.half_life_days}: give days above 0, or None.")

    @property
    def size(self) -> int:
        """Columns of a bag, C."""
        return len(self.items) * (len(self.type_weights) if self.stacked else 1)

    def bags(self, batch: HistoryBatch) -> Bags:
        """Bags of B histories."""
        owner = batch.owner
        rows = self.items.rows(batch.items)
        weights = self._weights(batch, owner)
        kept = np.flatnonzero((rows > 0) & (weights > 0))
        columns = rows[kept] - 1
        if self.stacked:
            columns += batch.behavior_types[kept].astype(np.int64) * len(self.items)
        key = owner[kept] * max(self.size, 1) + columns
        order = np.lexsort([weights[kept], key])
        key, weights = key[order], weights[kept][order]
        last = np.ones(len(key), dtype=bool)
        last[:-1] = key[1:] != key[:-1]  # the largest weight of each item
        owner, columns = np.divmod(key[last], max(self.size, 1))
        offsets = np.searchsorted(owner, np.arange(len(batch) + 1)).astype(np.int64)
        return Bags(offsets, columns.astype(np.int64), weights[last], self.size)

    def per_item(self, columns: torch.Tensor) -> torch.Tensor:
        """What C columns of a table (C, …) say of the V items: the sum over types, weighted, where they are stacked."""
        if not self.stacked:
            return columns
        parts = columns.view(len(self.type_weights), len(self.items), *columns.shape[1:])
        total = torch.zeros_like(parts[0])
        for weight, part in zip(self.type_weights, parts, strict=True):
            total = total + weight * part
        return total

    def _weights(self, batch: HistoryBatch, owner: Int64s) -> Float32s:
        """Of each behavior: float32 [N]."""
        known = batch.behavior_types < len(self.type_weights)
        table = np.asarray(self.type_weights, np.float32)
        weights = np.where(known, table[np.where(known, batch.behavior_types, 0)], np.float32(0))
        if self.half_life_days is not None:
            age = np.maximum(batch.as_of[owner] - batch.times, 0) / _DAY_US
            weights = weights * np.exp2(-age / self.half_life_days)
        return weights.astype(np.float32)


def type_weights_of(types: Sequence[str], weights: Sequence[float] | None) -> tuple[float, ...]:
    """One weight per type, 1 by default.

    Raises:
        DeclarationError: Types and weights do not match.
    """
    if weights is None:
        return (1.0,) * len(types)
    if len(weights) != len(types):
        raise DeclarationError(f"{len(types)} behavior types have {len(weights)} weights: give one per type.")
    return tuple(float(weight) for weight in weights)

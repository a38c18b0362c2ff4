"""Behaviors as an encoder's numbers: one token per behavior, flat for a whole batch, padded for a chunk."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from feast_embeddings.models.encoder.batch import HistoryBatch, segments
from feast_embeddings.models.encoder.device import to_device
from feast_embeddings.models.encoder.preprocessing import ItemIndex, ValueNormalizer, gap_buckets
from feast_embeddings.models.types import Int64s


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens of N behaviors, or of R padded histories of width L.

    Attributes:
        items: Item rows, int64 [N] or [R, L]; 0 is the unknown item.
        types: Behavior-type codes, same shape, int64.
        gaps: Time-gap buckets, same shape, int64.
        values: Normalized value and 1, or 0 and 0 where there is none: float32 [N, 2] or [R, L, 2].
    """

    items: torch.Tensor
    types: torch.Tensor
    gaps: torch.Tensor
    values: torch.Tensor

    @classmethod
    def of(cls, batch: HistoryBatch, index: ItemIndex, normalizer: ValueNormalizer | None, n_types: int) -> Tokens:
        """Flat tokens of a batch; type codes the encoder was not trained with become ``n_types``."""
        values = np.zeros((len(batch.items), 2), np.float32)
        if normalizer is not None:
            normalized = normalizer.transform(batch.values)
            present = ~np.isnan(normalized)
            values[:, 0], values[:, 1] = np.where(present, normalized, 0.0), present
        return cls(
            items=torch.from_numpy(index.rows(batch.items)),
            types=torch.from_numpy(np.minimum(batch.behavior_types, n_types).astype(np.int64)),
            gaps=torch.from_numpy(gap_buckets(batch.times, batch.offsets, batch.as_of)),
            values=torch.from_numpy(values),
        )

    @property
    def parts(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Items, types, gaps and values."""
        return self.items, self.types, self.gaps, self.values

    def padded(self, starts: torch.Tensor, lengths: torch.Tensor, width: int) -> Tokens:
        """Tokens ``starts[r] … starts[r] + lengths[r] - 1`` of R histories, padded on the right to ``width``.

        Args:
            starts: int64 [R].
            lengths: int64 [R], at most ``width``; 0 makes a row of padding.
            width: L.

        Returns:
            Padded tokens [R, L]; padding is the unknown item of type 0.
        """
        column = torch.arange(width)
        real = column < lengths[:, None]  # (R, L)
        at = (starts[:, None] + column) * real  # (R, L), padding reads token 0
        return Tokens(
            items=self.items[at] * real,
            types=self.types[at] * real,
            gaps=self.gaps[at] * real,
            values=self.values[at] * real[..., None],
        )

    def reordered(self, order: Int64s) -> Tokens:
        """Flat tokens with items, types and values in another ``order`` [N]; the gaps stay where they are."""
        at = torch.from_numpy(order)
        return Tokens(self.items[at], self.types[at], self.gaps, self.values[at])

    def to(self, device: torch.device) -> Tokens:
        """The same tokens on ``device``."""
        return Tokens(*(to_device(part, device) for part in self.parts))


def latest(batch: HistoryBatch, context: int) -> HistoryBatch:
    """The same histories cut to their last ``context`` behaviors."""
    lengths = np.minimum(batch.lengths, context)
    if np.array_equal(lengths, batch.lengths):
        return batch
    return batch.gathered(*segments(batch.offsets[1:] - lengths, lengths), batch.as_of)

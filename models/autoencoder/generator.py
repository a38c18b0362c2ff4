"""A generator of histories: noise, and what is known of an entity, to items that it may as well have behaved on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from feast_embeddings.models.autoencoder.bags import Bagger
from feast_embeddings.models.encoder import HistoryBatch, ItemIndex, segments
from feast_embeddings.models.errors import DeclarationError
from feast_embeddings.models.types import Ids, Int32s, Int64s

_CHUNK_ROWS = 512
_SECOND_US = 1_000_000


@dataclass(frozen=True, slots=True)
class GeneratorConfig:
    """Architecture of a `BehaviorGenerator`."""

    latent: int = 64  # of the noise
    condition: int = 128  # of what is known of the entity
    hidden: int = 256

    def __post_init__(self) -> None:
        """Refuses sizes that cannot be built."""
        if min(self.latent, self.condition, self.hidden) < 1:
            raise DeclarationError(f"{self} cannot be built: sizes must be positive.")


class BehaviorGenerator(nn.Module):
    """Draws histories from a latent prior N(0, 1), given the bag of a history, which may be empty.

    Its output is a bag over columns (behavior type, item), each between 0 and 1: as a critic saw real ones. A synthetic
    history is drawn from it without replacement, a column as likely as its weight (Gumbel top-k,
    https://arxiv.org/abs/1903.06059).

    Args:
        config: Architecture.
        behavior_types: Names behind the behavior-type codes.
        items: The known items.
    """

    def __init__(self, config: GeneratorConfig, behavior_types: tuple[str, ...], items: ItemIndex) -> None:
        super().__init__()
        self.config, self.behavior_types, self.items = config, behavior_types, items
        self.bagger = Bagger(items, (1.0,) * len(behavior_types), stacked=True)
        self.known = nn.Linear(self.bagger.size, config.condition)
        self.first = nn.Linear(config.latent + config.condition, config.hidden)
        self.last = nn.Linear(config.hidden, self.bagger.size)
        nn.init.constant_(self.last.bias, -4.0)  # bags are sparse: begin near empty ones

    def forward(self, noise: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        """Bags (B, C) in 0 … 1 from noise (B, latent) and bags of what is known (B, C)."""
        condition = torch.relu(self.known(known))
        return torch.sigmoid(self.last(torch.relu(self.first(torch.cat([noise, condition], dim=1)))))

    def generate(self, lengths: Int64s, seed: int = 0) -> HistoryBatch:
        """Synthetic histories of ``lengths`` (int64 [B]) distinct behaviors, out of nothing but the prior.

        They end at the epoch, a second apart; values are missing. The same seed gives the same histories.
        """
        return self.complete(HistoryBatch.empty(self.items.ids, np.zeros(len(lengths), np.int64)), lengths, seed)

    def complete(self, histories: HistoryBatch, lengths: Int64s, seed: int = 0) -> HistoryBatch:
        """Histories filled up to ``lengths`` (int64 [B]) behaviors with synthetic ones, given the behaviors they have.

        Synthetic behaviors come before the real ones, a second apart, on columns that the history does not hold yet.
        A history that is long enough stays as it is.
        """
        missing = np.maximum(np.asarray(lengths, np.int64) - histories.lengths, 0)
        missing = np.minimum(missing, self.bagger.size - np.minimum(histories.lengths, self.bagger.size))
        columns = np.concatenate([np.empty(0, np.int64), *self._drawn(histories, missing, seed)])
        types, items = np.divmod(columns, max(len(self.items), 1))
        return _prepended(histories, missing, self.items.ids[items], types.astype(np.int32))

    def _drawn(self, histories: HistoryBatch, missing: Int64s, seed: int) -> list[Int64s]:
        """Columns of the synthetic behaviors, an array per chunk of histories, in the histories' order."""
        bags = self.bagger.bags(histories)
        generator = torch.Generator().manual_seed(seed)
        drawn = []
        for start in range(0, len(histories), _CHUNK_ROWS):
            rows = np.arange(start, min(start + _CHUNK_ROWS, len(histories)))
            known = bags.take(rows).dense()
            noise = torch.randn(len(rows), self.config.latent, generator=generator)
            gumbel = -torch.log(-torch.log(torch.rand(known.shape, generator=generator).clamp(1e-9, 1 - 1e-7)))
            with torch.inference_mode():
                bag = self(noise.to(self.last.weight.device), known.to(self.last.weight.device)).cpu()
            scores = torch.log(bag.clamp(min=1e-12)) + gumbel
            scores[known > 0] = -torch.inf
            longest = int(missing[rows].max(initial=0))
            best = scores.topk(longest, dim=1).indices.numpy()  # (R, longest)
            drawn.append(best[np.arange(longest) < missing[rows][:, None]])
        return drawn


def _prepended(histories: HistoryBatch, missing: Int64s, items: Ids, types: Int32s) -> HistoryBatch:
    """Histories with ``missing`` behaviors each put before their own, a second apart."""
    rows, offsets = segments(np.zeros(len(missing), np.int64), missing)  # the place of each within its history
    own = np.append(histories.times, 0)[np.minimum(histories.offsets[:-1], len(histories.times))]
    first = np.where(histories.lengths > 0, own, histories.as_of)
    times = np.repeat(first, missing) - (np.repeat(missing, missing) - rows) * _SECOND_US
    values = np.full(len(items), np.nan, np.float32)
    return HistoryBatch(offsets, items, types, times, values, histories.as_of).followed_by(histories)

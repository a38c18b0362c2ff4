"""The autoencoder: a history as a bag of items, squeezed into a code from which the bag can be told again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from feast_embeddings.models.autoencoder.bags import Bagger, Bags, type_weights_of
from feast_embeddings.models.autoencoder.config import Activation, AutoEncoderConfig
from feast_embeddings.models.encoder import (
    Device,
    EncoderModule,
    EncoderState,
    HistoryBatch,
    ItemIndex,
    latest,
    register_encoder,
)
from feast_embeddings.models.types import Bools, Float32s, Ids

# Histories per chunk: every matrix product has the same shape whatever the batch, because one of another shape
# may add in another order. Small enough on a CPU for one history to be quick.
_CHUNK_ROWS = {"cpu": 64, "mps": 256, "cuda": 1024}


@register_encoder("autoencoder")
class AutoEncoder(EncoderModule):
    """An `Encoder`: the code of a history's bag, and for an item the decoder's column.

    The decoder is one linear layer, so the inner product of a history's vector and an item's is exactly the weight
    that the reconstruction gives the item: vectors of histories end in 1, those of items in the item's bias. With
    stacked behavior types an item's vector is the weighted sum of its columns. A history of unknown items alone gets
    the code of the empty bag; only a history without behaviors gets zeros.

    Args:
        config: Architecture.
        behavior_types: Names behind the behavior-type codes.
        items: The known items.
        type_weights: Weight of each type in the bag, default 1; a type of weight 0 leaves no trace.
    """

    kind = "autoencoder"

    def __init__(
        self,
        config: AutoEncoderConfig,
        behavior_types: tuple[str, ...],
        items: ItemIndex,
        type_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__(behavior_types, items, config.dim, config.context)
        self.config = config
        weights = type_weights_of(behavior_types, type_weights)
        self.bagger = Bagger(items, weights, config.stacked, config.half_life_days)
        widths = (*config.hidden, config.dim - 1)
        self.bag_table = nn.EmbeddingBag(max(self.bagger.size, 1), widths[0], mode="sum")  # first layer, sparse inputs
        self.bag_bias = nn.Parameter(torch.zeros(widths[0]))
        self.layers = nn.ModuleList(nn.Linear(below, above) for below, above in pairwise(widths))
        self.decoder = nn.Linear(config.dim - 1, max(self.bagger.size, 1))
        nn.init.xavier_normal_(self.bag_table.weight)
        nn.init.xavier_normal_(self.decoder.weight)
        nn.init.normal_(self.decoder.bias, std=1e-3)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Codes (B, dim − 1) of dense bags (B, C): the path of training."""
        return self._above(F.linear(rows, self.bag_table.weight.T))

    def reconstruct(self, codes: torch.Tensor) -> torch.Tensor:
        """Bags (B, C) of codes (B, dim − 1); with ``config.logits``, logits."""
        bags: torch.Tensor = self.decoder(codes)
        return bags

    def bags(self, batch: HistoryBatch) -> Bags:
        """What the encoder looks at: bags of the last ``context`` behaviors, as they enter the first layer."""
        bags = self.bagger.bags(latest(batch, self.context))
        return bags.normalized() if self.config.normalize else bags

    def encode(self, batch: HistoryBatch) -> Float32s:
        """Vectors of histories, float32 [B, dim]: code and 1, zeros where there are no behaviors.

        On one machine a vector is bit for bit the same in every batch, order and neighborhood. Memory is bounded by
        the chunk, not by the catalogue.
        """
        bags = self.bags(batch)
        vectors = np.zeros((len(batch), self.dim), np.float32)
        filled = np.flatnonzero(batch.lengths > 0)
        size = _CHUNK_ROWS[self.device.type]
        with torch.inference_mode():
            for start in range(0, len(filled), size):
                rows = filled[start : start + size]
                vectors[rows, :-1] = self._codes(bags.take(rows), size)
                vectors[rows, -1] = 1.0
        return vectors

    def _codes(self, bags: Bags, size: int) -> Float32s:
        """Codes of up to ``size`` bags, computed as ``size`` bags of which the last may be empty."""
        starts = np.full(size, len(bags.columns))
        starts[: len(bags)] = bags.offsets[:-1]
        summed = F.embedding_bag(
            torch.from_numpy(bags.columns).to(self.device),
            self.bag_table.weight,
            torch.from_numpy(starts).to(self.device),
            mode="sum",
            per_sample_weights=torch.from_numpy(bags.weights).to(self.device),
        )  # (size, width)
        return self._above(summed)[: len(bags)].cpu().numpy()

    def _above(self, summed: torch.Tensor) -> torch.Tensor:
        """From the sums of the first layer (B, width) to codes (B, dim − 1)."""
        code = _activated(summed + self.bag_bias, self.config.activation)
        for layer in self.layers:
            code = _activated(layer(code), self.config.activation)
        return code

    def encode_items(self, items: Ids) -> tuple[Float32s, Bools]:
        """Columns of the decoder and biases, float32 [n, dim], and which ids are known, bool [n]; others are zero."""
        with torch.inference_mode():
            columns = torch.cat([self.decoder.weight, self.decoder.bias[:, None]], dim=1)  # (C, dim)
            return self.items.vectors(items, self.bagger.per_item(columns).cpu().numpy())

    def state(self) -> EncoderState:
        """What an artifact stores."""
        architecture, weights = asdict(self.config), list(self.bagger.type_weights)
        architecture["hidden"] = list(self.config.hidden)
        return self.state_as(self.kind, {"architecture": architecture, "type_weights": weights})

    @classmethod
    def from_state(cls, state: EncoderState, device: Device = None, precision: str | None = None) -> Self:
        """The encoder of a stored state, in evaluation mode; it runs in float32 whatever ``precision`` says."""
        encoder = cls(
            AutoEncoderConfig(**state.config["architecture"]),
            state.behavior_types,
            ItemIndex(state.item_ids),
            tuple(state.config["type_weights"]),
        )
        return encoder.restored(state, device)


def _activated(x: torch.Tensor, activation: Activation) -> torch.Tensor:
    if activation == "relu":
        return F.relu(x)
    return F.softsign(x) if activation == "softsign" else x

"""The causal transformer that a `SequenceEncoder` runs histories through."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from feast_embeddings.models.encoder import GAP_BUCKETS, EncoderModule, ItemIndex, Precision, Tokens, ValueNormalizer
from feast_embeddings.models.sequence.attention import Block
from feast_embeddings.models.sequence.config import SequenceConfig


class Transformer(EncoderModule):
    """Tables of what is known of a behavior, and blocks of attention upon their sum; see `SequenceEncoder`."""

    def __init__(
        self,
        config: SequenceConfig,
        behavior_types: tuple[str, ...],
        items: ItemIndex,
        normalizer: ValueNormalizer | None = None,
        precision: Precision = "float32",
    ) -> None:
        super().__init__(behavior_types, items, config.dim, config.context, precision)
        self.config, self.normalizer = config, normalizer
        self.item_table = nn.Embedding(len(items) + 1, config.dim)  # row 0 is the unknown item
        self.type_table = nn.Embedding(len(behavior_types) + 1, config.dim)  # last row: types younger than the encoder
        self.gap_table = nn.Embedding(GAP_BUCKETS, config.dim)
        self.value_projection = nn.Linear(2, config.dim, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(config.dim)
        self.apply(_initialize)

    @property
    def layers(self) -> list[Block]:
        """The blocks, bottom first."""
        return [cast(Block, block) for block in self.blocks]

    def forward(self, tokens: Tokens) -> torch.Tensor:
        """Final-normed states (B, L, D) of padded tokens [B, L]."""
        x = self.embedded(tokens)
        for block in self.layers:
            x = block(x, block.causal_bias(x.shape[1]))
        states: torch.Tensor = self.norm(x)
        return states

    def last_states(self, tokens: Tokens, last: torch.Tensor, biases: list[torch.Tensor]) -> torch.Tensor:
        """Final-normed states (B, D) at columns ``last`` (B,) of padded tokens [B, L].

        The ``biases`` are `Block.causal_bias` of all blocks but the last.
        """
        x = self.embedded(tokens)
        *before, final = self.layers
        for block, bias in zip(before, biases, strict=True):
            x = block(x, bias)
        states: torch.Tensor = self.norm(final.last(x, last))
        return states

    def embedded(self, tokens: Tokens) -> torch.Tensor:
        """What enters the blocks (B, L, D): the sum of what is known of each behavior."""
        items = tokens.items
        if self.training and self.config.item_dropout:
            items = items.masked_fill(torch.rand(items.shape, device=items.device) < self.config.item_dropout, 0)
        x = self.item_table(items) * self.dim**0.5  # (B, L, D)
        x = x + self.type_table(tokens.types) + self.gap_table(tokens.gaps)
        if self.normalizer is not None:
            x = x + self.value_projection(tokens.values)
        embedded: torch.Tensor = self.dropout(x)
        return embedded


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)

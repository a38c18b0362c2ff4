"""The sequence encoder: a causal transformer over a history, trained to name the next item."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from feast_embeddings.models.artifact import register_encoder
from feast_embeddings.models.batch import Float32s, HistoryBatch, Ids, Int64s
from feast_embeddings.models.device import Precision, autocast, choose_device, choose_precision, numeric_path
from feast_embeddings.models.encoder import Bools, EncoderState, space_of
from feast_embeddings.models.errors import DeclarationError
from feast_embeddings.models.preprocessing import GAP_BUCKETS, ItemIndex, ValueKind, ValueNormalizer
from feast_embeddings.models.tokens import Tokens, latest

# Widths to which a history is padded, chosen from its own length only, so that its vector cannot depend on
# its neighbors.
_WIDTHS = (8, 16, 32, 50, 64, 100, 128, 200, 256, 384, 512, 768, 1024)

# Tokens per chunk: every chunk of a width has the same shape, whatever the batch, because a matrix product
# of another shape may add in another order. Small enough on a CPU for one history to be quick, large enough
# on a GPU to fill it.
_CHUNK_TOKENS = {"cpu": 1024, "mps": 16384, "cuda": 65536}

# Matrix products of fewer rows are shared among threads in another way, and so add in another order.
_LEAST_ROWS = 64


@dataclass(frozen=True, slots=True)
class SequenceConfig:
    """Architecture of a `SequenceEncoder`."""

    dim: int = 64  # the usual size of a served embedding; its bytes in Redis double with it
    context: int = 100  # behaviors looked at; cost grows with it, and few users have more that matter
    blocks: int = 2  # more gain little on histories of this length
    heads: int = 2  # 32 dimensions per head
    hidden: int = 128  # of the gated layer: with its three matrices, the parameters of a plain layer of 192
    dropout: float = 0.1  # on embeddings and on the two branches of each block
    item_dropout: float = 0.01  # share of inputs replaced by the unknown item, which is how its row is trained
    value_normalizer: ValueKind | None = None  # None: values are not looked at

    def __post_init__(self) -> None:
        """Refuses sizes that cannot be built."""
        if min(self.dim, self.context, self.blocks, self.heads, self.hidden) < 1 or self.dim % self.heads:
            raise DeclarationError(f"{self} cannot be built: sizes must be positive, and dim a multiple of heads.")


class Block(nn.Module):
    """Pre-norm block: causal attention, then a gated feed-forward layer."""

    def __init__(self, config: SequenceConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.attention_norm = nn.LayerNorm(config.dim)
        self.attention_in = nn.Linear(config.dim, 3 * config.dim, bias=False)
        self.attention_out = nn.Linear(config.dim, config.dim, bias=False)
        self.forward_norm = nn.LayerNorm(config.dim)
        self.forward_in = nn.Linear(config.dim, 2 * config.hidden, bias=False)
        self.forward_out = nn.Linear(config.hidden, config.dim, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """States (B, L, D) to states (B, L, D)."""
        x = x + self.dropout(self.attend(self.attention_norm(x)))
        out: torch.Tensor = x + self.dropout(self.feed_forward(self.forward_norm(x)))
        return out

    def last(self, x: torch.Tensor, at: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """What ``forward`` gives at P positions (rows, columns), states (P, D), for about half of its work."""
        x = x[at] + self.attention_out(self.mix(self.attention_norm(x))[at])
        out: torch.Tensor = x + self.feed_forward(self.forward_norm(x))
        return out

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        """Causal attention (B, L, D) to (B, L, D)."""
        out: torch.Tensor = self.attention_out(self.mix(x))
        return out

    def mix(self, x: torch.Tensor) -> torch.Tensor:
        """Attention before its output layer; padding is on the right, so no real position ever sees it."""
        rows, width, dim = x.shape
        heads = self.attention_in(x).view(rows, width, 3, self.heads, dim // self.heads)
        q, k, v = heads.permute(2, 0, 3, 1, 4)  # each (B, H, L, D / H)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # (B, H, L, D / H)
        return mixed.transpose(1, 2).reshape(rows, width, dim)

    def feed_forward(self, x: torch.Tensor) -> torch.Tensor:
        """ReGLU (https://arxiv.org/abs/2002.05202): ReLU, unlike a sigmoid, rounds alike in vector and scalar code."""
        gate, value = self.forward_in(x).chunk(2, dim=-1)  # each (B, L, hidden)
        out: torch.Tensor = self.forward_out(F.relu(gate) * value)
        return out


@register_encoder("sequence")
class SequenceEncoder(nn.Module):
    """An `Encoder`: a history is the last state of a causal transformer, an item its row of the tied item table.

    The score of an item for a user is the inner product of the two, as in SASRec (https://arxiv.org/abs/1808.09781).

    Args:
        config: Architecture.
        behavior_types: Names behind the behavior-type codes.
        items: The known items.
        normalizer: Of values, where the config asks for one.
        precision: Of ``encode``; bf16 is faster on hardware made for it and agrees with float32 to about
            two digits.
    """

    def __init__(
        self,
        config: SequenceConfig,
        behavior_types: tuple[str, ...],
        items: ItemIndex,
        normalizer: ValueNormalizer | None = None,
        precision: Precision = "float32",
    ) -> None:
        super().__init__()
        self.config, self.items, self.normalizer = config, items, normalizer
        self.behavior_types = behavior_types
        self.precision = precision
        self.item_table = nn.Embedding(len(items) + 1, config.dim)  # row 0 is the unknown item
        self.type_table = nn.Embedding(len(behavior_types) + 1, config.dim)  # last row: types younger than the encoder
        self.gap_table = nn.Embedding(GAP_BUCKETS, config.dim)
        self.position_table = nn.Embedding(config.context, config.dim)
        self.value_projection = nn.Linear(2, config.dim, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(config.dim)
        self._space: tuple[tuple[tuple[int, int], ...], str] | None = None
        self.apply(_initialize)

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self.config.dim

    @property
    def context(self) -> int:
        """Behaviors a vector depends on, at most."""
        return self.config.context

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.item_table.weight.device

    @property
    def numeric_path(self) -> str:
        """Device and dtype of ``encode``, such as ``cpu/float32``."""
        return numeric_path(self.device, self.precision)

    @property
    def space(self) -> str:
        """Identity of the vector space; computed again only after a weight was changed in place."""
        versions = tuple((weight.data_ptr(), weight._version) for weight in self.parameters())
        if self._space is None or self._space[0] != versions:
            self._space = (versions, space_of(self.state()))
        return self._space[1]

    def forward(self, tokens: Tokens) -> torch.Tensor:
        """Final-normed states (B, L, D) of padded tokens [B, L]."""
        x = self._embed(tokens)
        for block in self.blocks:
            x = block(x)
        states: torch.Tensor = self.norm(x)
        return states

    def _last_states(self, tokens: Tokens, last: torch.Tensor) -> torch.Tensor:
        """Final-normed states (B, D) at positions ``last`` (B,)."""
        x = self._embed(tokens)
        for block in self.blocks[:-1]:
            x = block(x)
        rows = torch.arange(max(len(last), _LEAST_ROWS), device=last.device) % len(last)
        x = cast(Block, self.blocks[-1]).last(x, (rows, last[rows]))  # (max(B, least), D)
        states: torch.Tensor = self.norm(x)[: len(last)]
        return states

    def _embed(self, tokens: Tokens) -> torch.Tensor:
        """What enters the blocks (B, L, D): the sum of what is known of each behavior."""
        items = tokens.items
        if self.training and self.config.item_dropout:
            items = items.masked_fill(torch.rand(items.shape, device=items.device) < self.config.item_dropout, 0)
        x = self.item_table(items) * self.dim**0.5  # (B, L, D)
        x = x + self.position_table.weight[: items.shape[1]]
        x = x + self.type_table(tokens.types) + self.gap_table(tokens.gaps)
        if self.normalizer is not None:
            x = x + self.value_projection(tokens.values)
        embedded: torch.Tensor = self.dropout(x)
        return embedded

    def encode(self, batch: HistoryBatch) -> Float32s:
        """Vectors of histories, float32 [B, dim]: from the last ``context`` behaviors, zeros where there are none.

        On one machine and numeric path a vector is bit for bit the same in every batch, order and
        neighborhood. Memory is bounded by the chunk, not by the batch.
        """
        batch = latest(batch, self.context)
        tokens = Tokens.of(batch, self.items, self.normalizer, len(self.behavior_types))
        vectors = np.zeros((len(batch), self.dim), np.float32)
        was_training = self.training
        self.eval()
        with torch.inference_mode(), autocast(self.device, self.precision):
            for rows, width in self._chunks(batch.lengths):
                vectors[rows] = self._encode_chunk(tokens, batch, rows, width)
        self.train(was_training)
        return vectors

    def _chunks(self, lengths: Int64s) -> Iterator[tuple[Int64s, int]]:
        widths = np.array([*(width for width in _WIDTHS if width < self.context), self.context])
        width_of = np.searchsorted(widths, lengths)
        for position, width in enumerate(widths.tolist()):
            rows = np.flatnonzero((width_of == position) & (lengths > 0))
            size = self._chunk_rows(width)
            for start in range(0, len(rows), size):
                yield rows[start : start + size], width

    def _chunk_rows(self, width: int) -> int:
        return max(1, _CHUNK_TOKENS[self.device.type] // width)

    def _encode_chunk(self, tokens: Tokens, batch: HistoryBatch, rows: Int64s, width: int) -> Float32s:
        starts, lengths = np.zeros((2, self._chunk_rows(width)), np.int64)  # rows beyond the chunk's are padding
        starts[: len(rows)], lengths[: len(rows)] = batch.offsets[rows], batch.lengths[rows]
        padded = tokens.padded(torch.from_numpy(starts), torch.from_numpy(lengths), width)
        last = torch.from_numpy(np.maximum(lengths - 1, 0)).to(self.device)
        states = self._last_states(padded.to(self.device), last)  # (R, D)
        vectors: Float32s = states[: len(rows)].float().cpu().numpy()
        return vectors

    def encode_items(self, items: Ids) -> tuple[Float32s, Bools]:
        """Rows of the item table, float32 [n, dim], and which ids are known, bool [n]; the others are zero."""
        rows = self.items.rows(items)
        known = rows > 0
        vectors = self.item_table.weight.detach()[torch.from_numpy(rows).to(self.device)].float().cpu().numpy()
        vectors[~known] = 0
        return vectors, known

    def item_ids(self) -> Ids:
        """Raw ids of the known items, in the order of the item table."""
        return self.items.ids

    def state(self) -> EncoderState:
        """What an artifact stores."""
        normalizer = self.normalizer.to_json() if self.normalizer else None
        return EncoderState(
            kind="sequence",
            config={"architecture": asdict(self.config), "normalizer": normalizer},
            behavior_types=self.behavior_types,
            dim=self.dim,
            context=self.context,
            tensors=dict(self.state_dict()),
            item_ids=self.items.ids,
        )

    @classmethod
    def from_state(
        cls, state: EncoderState, device: str | torch.device | None = None, precision: str | None = None
    ) -> SequenceEncoder:
        """The encoder of a stored state, in evaluation mode."""
        normalizer: dict[str, Any] | None = state.config["normalizer"]
        encoder = cls(
            SequenceConfig(**state.config["architecture"]),
            state.behavior_types,
            ItemIndex(state.item_ids),
            ValueNormalizer(**normalizer) if normalizer else None,
            choose_precision(precision),
        )
        encoder.load_state_dict(state.tensors)
        return encoder.to(choose_device(device)).eval()


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)

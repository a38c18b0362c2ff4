"""The sequence encoder: a causal transformer over a history, trained to name the next item."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import nn

from feast_embeddings.models.encoder.artifact import register_encoder
from feast_embeddings.models.encoder.batch import Float32s, HistoryBatch, Ids
from feast_embeddings.models.encoder.device import Precision, autocast, choose_device, choose_precision, numeric_path
from feast_embeddings.models.encoder.preprocessing import GAP_BUCKETS, ItemIndex, ValueKind, ValueNormalizer
from feast_embeddings.models.encoder.protocol import Bools, EncoderState, space_of
from feast_embeddings.models.encoder.row_blocks import in_chunks, widths_to
from feast_embeddings.models.encoder.tokens import Tokens, latest
from feast_embeddings.models.errors import DeclarationError
from feast_embeddings.models.sequence.attention import Block
from feast_embeddings.models.sequence.cached import CachedState, empty_state, extended

_COMPILED_SHAPES = 256
"""Widths that a process compiles, of all its encoders; torch's own limit is 8."""


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

    @property
    def span(self) -> int:
        """Behaviors that one block attends to: as many as make all blocks together look at ``context`` at most."""
        return (self.context - 1) // self.blocks + 1


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
        self.value_projection = nn.Linear(2, config.dim, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(config.dim)
        self._space: tuple[tuple[tuple[int, int], ...], str] | None = None
        self._compiled: Callable[..., torch.Tensor] | None = None
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
        """Device and dtype of ``encode``, such as ``cpu/float32`` or, compiled, ``cpu/float32/compiled``."""
        return numeric_path(self.device, self.precision) + ("/compiled" if self._compiled else "")

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compiles what ``encode`` runs from now on, with `torch.compile` and its arguments.

        The first history of each width then takes seconds to a minute, so it pays where many are encoded. Vectors are
        on a numeric path of their own; requests and cached states stay as they are.
        """
        from torch._dynamo import config

        config.recompile_limit = max(config.recompile_limit, _COMPILED_SHAPES)
        config.fail_on_recompile_limit_hit = True  # or the shapes beyond it would be eager, on another numeric path
        self._compiled = torch.compile(self.last_states, *args, dynamic=False, **kwargs)

    @property
    def space(self) -> str:
        """Identity of the vector space; computed again only after a weight was changed in place."""
        versions = tuple((weight.data_ptr(), weight._version) for weight in self.parameters())
        if self._space is None or self._space[0] != versions:
            self._space = (versions, space_of(self.state()))
        return self._space[1]

    def forward(self, tokens: Tokens) -> torch.Tensor:
        """Final-normed states (B, L, D) of padded tokens [B, L]."""
        x = self.embedded(tokens)
        for block in self._blocks():
            x = block(x, block.causal_bias(x.shape[1]))
        states: torch.Tensor = self.norm(x)
        return states

    def last_states(self, tokens: Tokens, last: torch.Tensor, biases: list[torch.Tensor]) -> torch.Tensor:
        """Final-normed states (B, D) at columns ``last`` (B,) of padded tokens [B, L].

        The ``biases`` are `Block.causal_bias` of all blocks but the last.
        """
        x = self.embedded(tokens)
        *before, final = self._blocks()
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

    def _blocks(self) -> list[Block]:
        return [cast(Block, block) for block in self.blocks]

    def encode(self, batch: HistoryBatch) -> Float32s:
        """Vectors of histories, float32 [B, dim]: from the last ``context`` behaviors, zeros where there are none.

        On one machine and numeric path a vector is bit for bit the same in every batch, order and
        neighborhood. Memory is bounded by the chunk, not by the batch.
        """
        return self._encode(batch, fixed=True)

    def encode_now(self, batch: HistoryBatch) -> Float32s:
        """The vectors of ``encode`` for a request that waits: no row or column of padding is computed for its own sake.

        A vector may differ from that of ``encode`` in its last bits, and with its batch: it answers, and is
        never stored.
        """
        return self._encode(batch, fixed=False)

    def encode_with_state(self, batch: HistoryBatch) -> tuple[Float32s, CachedState]:
        """Vectors of histories as ``encode`` gives them, within 1e-5 in float32, and what extends them later."""
        return self.extend_state(empty_state(self, batch), batch)

    def extend_state(self, state: CachedState, new: HistoryBatch) -> tuple[Float32s, CachedState]:
        """Vectors float32 [U, dim] after each user's ``new`` behaviors, as of ``new.as_of``, and the state then.

        Costs O(context) per new behavior, also when older ones leave the window, and equals the encode of the whole
        history within 1e-5 in float32. Without new behaviors it is the vector as of a later time. A row's
        result does not depend on its neighbors. The state given stays as it was.

        Args:
            state: Of U users, from here or from ``encode_with_state``.
            new: U histories of what happened since, none older than the state's last behavior.

        Raises:
            SpaceError: The state is of another encoder or numeric path.
            BehaviorSourceError: A new behavior is too old, or the numbers of users differ.
        """
        return extended(self, state, new)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Meanwhile the encoder is in evaluation mode and its precision, and nothing is recorded for gradients."""
        was_training = self.training
        if was_training:  # walking all modules takes a tenth of a request
            self.eval()
        try:
            with torch.inference_mode(), autocast(self.device, self.precision):
                yield
        finally:
            if was_training:
                self.train()

    def _encode(self, batch: HistoryBatch, *, fixed: bool) -> Float32s:
        batch = latest(batch, self.context)
        tokens = Tokens.of(batch, self.items, self.normalizer, len(self.behavior_types))
        biases: dict[int, list[torch.Tensor]] = {}
        states = self._compiled if fixed and self._compiled else self.last_states

        def compute(padded: Tokens, lengths: torch.Tensor) -> torch.Tensor:
            width = padded.items.shape[1]
            if width not in biases:
                biases.clear()  # chunks of a width follow one another
                biases[width] = [block.causal_bias(width) for block in self._blocks()[:-1]]
            return states(padded, (lengths - 1).clamp(min=0), biases[width])

        with self.evaluating():
            return in_chunks(batch, tokens, widths_to(self.context), self.dim, compute, self.device, fixed=fixed)

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

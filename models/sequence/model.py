"""The sequence encoder: a causal transformer over a history, trained to name the next item."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Self

import torch

from feast_embeddings.models.encoder import (
    Device,
    EncoderState,
    HistoryBatch,
    ItemIndex,
    Tokens,
    ValueNormalizer,
    choose_precision,
    in_chunks,
    latest,
    register_encoder,
    widths_to,
)
from feast_embeddings.models.sequence.cached import CachedState, empty_state, extended
from feast_embeddings.models.sequence.config import SequenceConfig
from feast_embeddings.models.sequence.transformer import Transformer
from feast_embeddings.models.types import Float32s

_COMPILED_SHAPES = 256
"""Widths that a process compiles, of all its encoders; torch's own limit is 8."""


@register_encoder("sequence")
class SequenceEncoder(Transformer):
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

    _compiled: Callable[..., torch.Tensor] | None = None

    @property
    def numeric_path(self) -> str:
        """Device and dtype of ``encode``, such as ``cpu/float32`` or, compiled, ``cpu/float32/compiled``."""
        return super().numeric_path + ("/compiled" if self._compiled else "")

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compiles what ``encode`` runs from now on, with `torch.compile` and its arguments.

        The first history of each width then takes seconds to a minute, so it pays where many are encoded. Vectors are
        on a numeric path of their own; requests and cached states stay as they are.
        """
        from torch._dynamo import config

        config.recompile_limit = max(config.recompile_limit, _COMPILED_SHAPES)
        config.fail_on_recompile_limit_hit = True  # or the shapes beyond it would be eager, on another numeric path
        self._compiled = torch.compile(self.last_states, *args, dynamic=False, **kwargs)

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

    def _encode(self, batch: HistoryBatch, *, fixed: bool) -> Float32s:
        batch = latest(batch, self.context)
        tokens = Tokens.of(batch, self.items, self.normalizer, len(self.behavior_types))
        biases: dict[int, list[torch.Tensor]] = {}
        states = self._compiled if fixed and self._compiled else self.last_states

        def compute(padded: Tokens, lengths: torch.Tensor) -> torch.Tensor:
            width = padded.items.shape[1]
            if width not in biases:
                biases.clear()  # chunks of a width follow one another
                biases[width] = [block.causal_bias(width) for block in self.layers[:-1]]
            return states(padded, (lengths - 1).clamp(min=0), biases[width])

        with self.evaluating():
            return in_chunks(batch, tokens, widths_to(self.context), self.dim, compute, self.device, fixed=fixed)

    def state(self) -> EncoderState:
        """What an artifact stores."""
        normalizer = self.normalizer.to_json() if self.normalizer else None
        return self.state_as("sequence", {"architecture": asdict(self.config), "normalizer": normalizer})

    @classmethod
    def from_state(cls, state: EncoderState, device: Device = None, precision: str | None = None) -> Self:
        """The encoder of a stored state, in evaluation mode."""
        normalizer: dict[str, Any] | None = state.config["normalizer"]
        encoder = cls(
            SequenceConfig(**state.config["architecture"]),
            state.behavior_types,
            ItemIndex(state.item_ids),
            ValueNormalizer(**normalizer) if normalizer else None,
            choose_precision(precision),
            **cls.options_of(state),
        )
        return encoder.restored(state, device)

    @classmethod
    def options_of(cls, state: EncoderState) -> dict[str, Any]:
        """Further arguments of the constructor, as a subclass stored them."""
        return {}

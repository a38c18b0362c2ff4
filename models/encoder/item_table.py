"""The base of a small encoder of one's own: items are rows of a table, a history is what ``pooled`` makes of it."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import nn

from feast_embeddings.models.encoder.artifact import ENCODER_KINDS
from feast_embeddings.models.encoder.batch import HistoryBatch
from feast_embeddings.models.encoder.device import Device, choose_precision
from feast_embeddings.models.encoder.module import EncoderModule
from feast_embeddings.models.encoder.preprocessing import ItemIndex
from feast_embeddings.models.encoder.protocol import EncoderState
from feast_embeddings.models.encoder.row_blocks import in_chunks, widths_to
from feast_embeddings.models.encoder.tokens import Tokens, latest
from feast_embeddings.models.errors import DeclarationError
from feast_embeddings.models.types import Float32s


class TableEncoder(EncoderModule):
    """An `Encoder` to derive from: everything but the model itself.

    A subclass says ``pooled``, is registered with `register_encoder`, and passes every argument of its constructor
    on, those of its own as ``settings``: an artifact stores them, and makes the encoder of them again.

    Args:
        behavior_types: Names behind the behavior-type codes.
        items: The known items; ``item_table`` has the unknown one in row 0 and these from row 1 on.
        dim: Length of a vector.
        context: Behaviors looked at.
        settings: JSON values that the subclass was made with.
    """

    def __init__(
        self, behavior_types: tuple[str, ...], items: ItemIndex, *, dim: int, context: int, **settings: Any
    ) -> None:
        super().__init__(behavior_types, items, dim, context)
        self.settings = settings
        self.item_table = nn.Embedding(len(items) + 1, dim)

    def pooled(self, tokens: Tokens, lengths: torch.Tensor) -> torch.Tensor:
        """Vectors (R, D) of padded histories [R, L]; what stands at ``lengths`` (R,) and beyond is padding.

        A row must depend on that row alone. A row of length 0 may give anything finite; ``encode`` gives zeros.
        """
        raise NotImplementedError

    def encode(self, batch: HistoryBatch) -> Float32s:
        """Vectors of histories, float32 [B, dim], zeros for empty ones; in chunks of fixed shapes."""
        batch = latest(batch, self.context)
        tokens = Tokens.of(batch, self.items, None, len(self.behavior_types))
        with self.evaluating():
            return in_chunks(batch, tokens, widths_to(self.context), self.dim, self.pooled, self.device, fixed=True)

    def state(self) -> EncoderState:
        """What an artifact stores.

        Raises:
            DeclarationError: The class is not registered.
        """
        kinds = [kind for kind, registered in ENCODER_KINDS.items() if registered is type(self)]
        if not kinds:
            raise DeclarationError(
                f"Encoder class {type(self).__name__} has no kind to be stored under: "
                'decorate it with @register_encoder("a-name").'
            )
        return self.state_as(kinds[0], {"settings": self.settings})

    @classmethod
    def from_state(cls, state: EncoderState, device: Device = None, precision: str | None = None) -> Self:
        """The encoder of a stored state, in evaluation mode."""
        index = ItemIndex(state.item_ids)
        encoder = cls(state.behavior_types, index, dim=state.dim, context=state.context, **state.config["settings"])
        encoder.precision = choose_precision(precision)
        return encoder.restored(state, device)

"""The base of a small encoder of one's own: items are rows of a table, a history is what ``pooled`` makes of it."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import nn

from feast_embeddings.models.encoder.artifact import ENCODER_KINDS
from feast_embeddings.models.encoder.batch import Float32s, HistoryBatch, Ids
from feast_embeddings.models.encoder.device import autocast, choose_device, choose_precision, numeric_path
from feast_embeddings.models.encoder.preprocessing import ItemIndex
from feast_embeddings.models.encoder.protocol import Bools, EncoderState, space_of
from feast_embeddings.models.encoder.row_blocks import in_chunks, widths_to
from feast_embeddings.models.encoder.tokens import Tokens, latest
from feast_embeddings.models.errors import DeclarationError


class TableEncoder(nn.Module):
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
        super().__init__()
        self.behavior_types, self.items = tuple(behavior_types), items
        self.dim, self.context, self.settings = dim, context, settings
        self.precision = choose_precision(None)
        self.item_table = nn.Embedding(len(items) + 1, dim)

    def pooled(self, tokens: Tokens, lengths: torch.Tensor) -> torch.Tensor:
        """Vectors (R, D) of padded histories [R, L]; what stands at ``lengths`` (R,) and beyond is padding.

        A row must depend on that row alone. A row of length 0 may give anything finite; ``encode`` gives zeros.
        """
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.item_table.weight.device

    @property
    def numeric_path(self) -> str:
        """Device and dtype of ``encode``."""
        return numeric_path(self.device, self.precision)

    @property
    def space(self) -> str:
        """Identity of the vector space."""
        return space_of(self.state())

    def encode(self, batch: HistoryBatch) -> Float32s:
        """Vectors of histories, float32 [B, dim], zeros for empty ones; in chunks of fixed shapes."""
        batch, was_training = latest(batch, self.context), self.training
        tokens = Tokens.of(batch, self.items, None, len(self.behavior_types))
        self.eval()
        try:
            with torch.inference_mode(), autocast(self.device, self.precision):
                widths = widths_to(self.context)
                return in_chunks(batch, tokens, widths, self.dim, self.pooled, self.device, fixed=True)
        finally:
            self.train(was_training)

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
        return EncoderState(
            kind=kinds[0],
            config={"settings": self.settings},
            behavior_types=self.behavior_types,
            dim=self.dim,
            context=self.context,
            tensors=dict(self.state_dict()),
            item_ids=self.items.ids,
        )

    @classmethod
    def from_state(
        cls, state: EncoderState, device: str | torch.device | None = None, precision: str | None = None
    ) -> Self:
        """The encoder of a stored state, in evaluation mode."""
        index = ItemIndex(state.item_ids)
        encoder = cls(state.behavior_types, index, dim=state.dim, context=state.context, **state.config["settings"])
        encoder.load_state_dict(state.tensors)
        encoder.precision = choose_precision(precision)
        return encoder.to(choose_device(device)).eval()

"""What encoders with weights of their own share: all but how they encode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import nn

from feast_embeddings.models.encoder.device import Device, Precision, autocast, choose_device, numeric_path
from feast_embeddings.models.encoder.preprocessing import ItemIndex
from feast_embeddings.models.encoder.protocol import EncoderState, space_of
from feast_embeddings.models.types import Bools, Float32s, Ids


class EncoderModule(nn.Module):
    """An ``nn.Module`` that is an `Encoder` once a subclass says ``encode``, ``state`` and ``from_state``.

    Args:
        behavior_types: Names behind the behavior-type codes.
        items: The known items; ``item_table`` has the unknown one in row 0 and these from row 1 on.
        dim: Length of a vector.
        context: Behaviors a vector depends on, at most.
        precision: Of ``encode``.
    """

    item_table: nn.Embedding

    def __init__(
        self,
        behavior_types: tuple[str, ...],
        items: ItemIndex,
        dim: int,
        context: int,
        precision: Precision = "float32",
    ) -> None:
        super().__init__()
        self.behavior_types, self.items = tuple(behavior_types), items
        self.dim, self.context, self.precision = dim, context, precision
        self._space: tuple[tuple[tuple[int, int], ...], str] | None = None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def numeric_path(self) -> str:
        """Device and dtype of ``encode``, such as ``cpu/float32``."""
        return numeric_path(self.device, self.precision)

    @property
    def space(self) -> str:
        """Identity of the vector space; computed again only after a tensor was changed in place."""
        versions = tuple((tensor.data_ptr(), tensor._version) for tensor in (*self.parameters(), *self.buffers()))
        if self._space is None or self._space[0] != versions:
            self._space = (versions, space_of(self.state()))
        return self._space[1]

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

    def state(self) -> EncoderState:
        """What an artifact stores; a subclass must say."""
        raise NotImplementedError

    def state_as(self, kind: str, config: dict[str, Any]) -> EncoderState:
        """What an artifact of a ``kind`` stores: a ``config`` of JSON values, the tensors and the items."""
        return EncoderState(
            kind=kind,
            config=config,
            behavior_types=self.behavior_types,
            dim=self.dim,
            context=self.context,
            tensors=dict(self.state_dict()),
            item_ids=self.items.ids,
        )

    def restored(self, state: EncoderState, device: Device) -> Self:
        """This encoder with the tensors of a state, on ``device``, in evaluation mode."""
        self.load_state_dict(state.tensors)
        return self.to(choose_device(device)).eval()

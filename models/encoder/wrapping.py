"""What an encoder made from another one takes over from it, and how the other one's state is kept inside its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from feast_embeddings.models.encoder.artifact import ENCODER_KINDS, StorableEncoder
from feast_embeddings.models.encoder.batch import HistoryBatch
from feast_embeddings.models.encoder.device import Device
from feast_embeddings.models.encoder.protocol import EncoderState, space_of
from feast_embeddings.models.errors import ArtifactError
from feast_embeddings.models.types import Bools, Float32s, Ids

_PREFIX = "inner."


class WrappingEncoder(nn.Module):
    """An `Encoder` that is its inner one until a subclass says otherwise.

    Args:
        inner: The encoder.
    """

    def __init__(self, inner: StorableEncoder) -> None:
        super().__init__()
        self.inner = inner
        self._space: tuple[tuple[object, ...], str] | None = None

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self.inner.dim

    @property
    def context(self) -> int:
        """Behaviors a vector depends on, at most."""
        return self.inner.context

    @property
    def behavior_types(self) -> tuple[str, ...]:
        """Names behind the behavior-type codes."""
        return self.inner.behavior_types

    @property
    def numeric_path(self) -> str:
        """That of the inner encoder."""
        return self.inner.numeric_path

    @property
    def space(self) -> str:
        """Identity of the vector space, never that of the inner encoder."""
        own = tuple((tensor.data_ptr(), tensor._version) for tensor in self.buffers(recurse=False))
        made_of = (self.inner.space, *own)
        if self._space is None or self._space[0] != made_of:
            self._space = (made_of, space_of(self.state()))
        return self._space[1]

    def encode(self, batch: HistoryBatch) -> Float32s:
        """Vectors of histories, float32 [B, dim]."""
        return self.inner.encode(batch)

    def encode_items(self, items: Ids) -> tuple[Float32s, Bools]:
        """Vectors of items, float32 [n, dim], and which ids are known, bool [n]; the others are zero."""
        return self.inner.encode_items(items)

    def item_ids(self) -> Ids:
        """Raw ids of the known items."""
        return self.inner.item_ids()

    def state(self) -> EncoderState:
        """What an artifact stores; a subclass must say."""
        raise NotImplementedError

    def state_as(self, kind: str, config: dict[str, Any], **changes: Any) -> EncoderState:
        """What an artifact of a ``kind`` stores: all of the inner encoder and this one's tensors, and a ``config``."""
        inner = self.inner.state()
        facts, tensors = nested(inner)
        tensors |= dict(self.named_buffers(recurse=False))
        return replace(inner, kind=kind, config={"inner": facts, **config}, **{"tensors": tensors, **changes})


def nested(state: EncoderState) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """An inner encoder's state as a part of an outer one's: JSON for its config, and tensors by prefixed name."""
    facts = {
        "kind": state.kind,
        "config": state.config,
        "dim": state.dim,
        "context": state.context,
        "items": len(state.item_ids),
    }
    return facts, {_PREFIX + name: tensor for name, tensor in state.tensors.items()}


def inner_of(outer: EncoderState, device: Device = None, precision: str | None = None) -> StorableEncoder:
    """The inner encoder that a stored state holds; its item ids are the first of the outer one's.

    Raises:
        ArtifactError: The inner encoder's class is not registered.
    """
    facts: dict[str, Any] = outer.config["inner"]
    kind, items = facts["kind"], facts["items"]
    if kind not in ENCODER_KINDS:
        raise ArtifactError(
            f"The {outer.kind} encoder holds one of kind {kind!r}, known are "
            f"{', '.join(sorted(ENCODER_KINDS))}: import the module that registers it with register_encoder first."
        )
    tensors = {name.removeprefix(_PREFIX): t for name, t in outer.tensors.items() if name.startswith(_PREFIX)}
    parts = {name: facts[name] for name in ("kind", "config", "dim", "context")}
    state = replace(outer, **parts, tensors=tensors, item_ids=outer.item_ids[:items])
    return ENCODER_KINDS[kind].from_state(state, device, precision)

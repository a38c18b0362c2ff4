"""What an encoder is to the rest of the package, and the state that identifies its vector space."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from feast_embeddings.models.encoder.batch import HistoryBatch
from feast_embeddings.models.types import Bools, Float32s, Ids

SPACE_LENGTH = 16
"""Hex digits of a space: 64 bits, far beyond any number of encoders a team will train."""


@runtime_checkable
class Encoder(Protocol):
    """Maps histories and items to float32 vectors of one space.

    Laws (``tests/models/test_encoder_laws.py``): the vector of a history is bit for bit the same alone, in
    any batch, in any order and beside any neighbors; only the last ``context`` behaviors matter; an empty
    history gives the zero vector.
    """

    @property
    def dim(self) -> int:
        """Length of a vector."""

    @property
    def context(self) -> int:
        """The most behaviors a vector can depend on."""

    @property
    def behavior_types(self) -> tuple[str, ...]:
        """Names behind the behavior-type codes; a later contract may only append."""

    @property
    def space(self) -> str:
        """Identity of the vector space, see `space_of`."""

    @property
    def numeric_path(self) -> str:
        """Device and dtype that produce the vectors, such as ``cpu/float32``."""

    def encode(self, batch: HistoryBatch) -> Float32s:
        """Vectors of B histories, float32 [B, dim]; an empty history gives zeros."""

    def encode_items(self, items: Ids) -> tuple[Float32s, Bools]:
        """Vectors float32 [n, dim] of raw item ids and which are known, bool [n]; unknown ones are zero."""

    def item_ids(self) -> Ids:
        """Raw ids of every item the encoder knows; empty for one that knows items only by their content."""


@dataclass(frozen=True, slots=True)
class EncoderState:
    """Everything that makes an encoder what it is: what an artifact stores and a space identifies.

    Attributes:
        kind: Name under which the class is registered, see `artifact.register_encoder`.
        config: JSON values: the architecture and the fitted preprocessing.
        behavior_types: Names behind the behavior-type codes.
        dim: Length of a vector.
        context: The most behaviors a vector can depend on.
        tensors: Weights by name, on any device.
        item_ids: Raw item ids, int64 or strings, in the order of the item table.
    """

    kind: str
    config: dict[str, Any]
    behavior_types: tuple[str, ...]
    dim: int
    context: int
    tensors: dict[str, torch.Tensor]
    item_ids: Ids


def space_of(state: EncoderState) -> str:
    """Identity of the space a state produces: the first 16 hex digits of a SHA-256.

    Covers the weights, the item table's ids and the configuration of architecture and preprocessing; never
    the layout of files, the device or the version of the package.
    """
    digest = hashlib.sha256()
    facts = [state.kind, state.config, list(state.behavior_types), state.dim, state.context]
    digest.update(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode())
    if state.item_ids.dtype == np.int64:
        digest.update(b"int64" + np.ascontiguousarray(state.item_ids).tobytes())
    else:
        digest.update(json.dumps(state.item_ids.tolist()).encode())
    for name in sorted(state.tensors):
        tensor = state.tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:SPACE_LENGTH]

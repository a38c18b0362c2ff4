"""Smaller encoders and smaller vectors: weights of 16 or 8 bits, prefixes of vectors, vectors of 16 or 8 bits."""

from __future__ import annotations

from dataclasses import replace
from typing import Final, Literal, get_args

import numpy as np
import torch

from feast_embeddings.models.encoder import (
    Device,
    EncoderState,
    HistoryBatch,
    StorableEncoder,
    WrappingEncoder,
    inner_of,
    nested,
    register_encoder,
)
from feast_embeddings.models.errors import DeclarationError
from feast_embeddings.models.types import Bools, Float32s, Ids

Weights = Literal["bf16", "int8"]

_SCALE: Final = ".scale"
_INT8: Final = 127


@register_encoder("compressed")
class CompressedEncoder(WrappingEncoder):
    """An `Encoder` whose artifact holds its inner one's weights in fewer bits; it computes with them as rounded.

    Vectors are those of the rounded weights, of a space of their own; on the numeric path of the inner encoder.

    Args:
        inner: The encoder with rounded weights.
        weights: What they are stored as.
        stored: The stored tensors, named as those of the state.
    """

    def __init__(self, inner: StorableEncoder, weights: Weights, stored: dict[str, torch.Tensor]) -> None:
        super().__init__(inner)
        self.weights, self._stored = weights, stored

    def state(self) -> EncoderState:
        """What an artifact stores: the inner encoder's state with its tensors in fewer bits."""
        return self.state_as("compressed", {"weights": self.weights}, tensors=self._stored)

    @classmethod
    def from_state(cls, state: EncoderState, device: Device = None, precision: str | None = None) -> CompressedEncoder:
        """The encoder of a stored state, in evaluation mode."""
        whole = replace(state, tensors=_unpacked(state.tensors))
        return cls(inner_of(whole, device, precision), state.config["weights"], state.tensors).eval()


def compressed(encoder: StorableEncoder, weights: Weights) -> CompressedEncoder:
    """The encoder with every matrix of weights rounded: to bf16, or to 8 bits with one scale per row.

    Vectors (norms, biases) stay as they are. An artifact of bf16 has about half of the bytes, of int8 about a quarter.

    Raises:
        DeclarationError: Other weights than ``bf16`` or ``int8``.
    """
    if weights not in get_args(Weights):
        raise DeclarationError(f"Weights {weights!r} are unknown: choose one of {', '.join(get_args(Weights))}.")
    state = encoder.state()
    facts, tensors = nested(state)
    packed: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        packed |= _packed(name, tensor.detach().cpu(), weights)
    stored = replace(state, kind="compressed", config={"inner": facts, "weights": weights}, tensors=packed)
    precision = "bf16" if encoder.numeric_path.endswith("bfloat16") else None
    return CompressedEncoder.from_state(stored, encoder.numeric_path.partition("/")[0], precision)


@register_encoder("prefix")
class PrefixEncoder(WrappingEncoder):
    """An `Encoder` whose vectors are the first dimensions of another one's, for `TrainingConfig.matryoshka`.

    Args:
        inner: The encoder.
        size: Dimensions kept, at least 1 and less than the inner encoder's.

    Raises:
        DeclarationError: The size is not such a number.
    """

    def __init__(self, inner: StorableEncoder, size: int) -> None:
        super().__init__(inner)
        if not 0 < size < inner.dim:
            raise DeclarationError(
                f"A prefix of {size} of the {inner.dim} dimensions of encoder {inner.space} is none: "
                "choose a size from 1 up to less than that."
            )
        self.size = size

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self.size

    def encode(self, batch: HistoryBatch) -> Float32s:
        """Vectors of histories, float32 [B, size]."""
        return np.ascontiguousarray(self.inner.encode(batch)[:, : self.size])

    def encode_items(self, items: Ids) -> tuple[Float32s, Bools]:
        """Vectors of items, float32 [n, size], and which ids are known, bool [n]; the others are zero."""
        vectors, known = self.inner.encode_items(items)
        return np.ascontiguousarray(vectors[:, : self.size]), known

    def state(self) -> EncoderState:
        """What an artifact stores: all of the inner encoder, and the size."""
        return self.state_as("prefix", {"size": self.size}, dim=self.size)

    @classmethod
    def from_state(cls, state: EncoderState, device: Device = None, precision: str | None = None) -> PrefixEncoder:
        """The encoder of a stored state, in evaluation mode."""
        return cls(inner_of(state, device, precision), state.config["size"]).eval()


def _packed(name: str, tensor: torch.Tensor, weights: Weights) -> dict[str, torch.Tensor]:
    if not tensor.is_floating_point() or tensor.dim() < 2:
        return {name: tensor}
    if weights == "bf16":
        return {name: tensor.to(torch.bfloat16)}
    scale = tensor.float().abs().amax(dim=-1, keepdim=True) / _INT8  # of a row of zeros 0: it stays zero
    rounded = torch.round(tensor / scale.clamp(min=1e-30)).clamp(-_INT8, _INT8).to(torch.int8)
    return {name: rounded, name + _SCALE: scale}


def _unpacked(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    whole = {}
    for name, tensor in tensors.items():
        scale = tensors.get(name + _SCALE)
        if name.endswith(_SCALE) and name.removesuffix(_SCALE) in tensors:
            continue
        if scale is not None:
            tensor = tensor.float() * scale  # noqa: PLW2901
        whole[name] = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
    return whole

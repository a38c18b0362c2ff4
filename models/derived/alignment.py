"""Brings a new encoder's vectors into an older encoder's coordinates, so that what was learned on those keeps working.

The map is a rotation (or reflection), so that distances and inner products among the new vectors stay what they
are: the orthogonal Procrustes problem, solved by Schönemann 1966, https://doi.org/10.1007/BF02289451. The result is
an encoder of its own, with a space of its own: its vectors lie near the old ones, and are not the old ones.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from feast_embeddings.models.encoder import (
    Device,
    Encoder,
    EncoderState,
    HistoryBatch,
    StorableEncoder,
    WrappingEncoder,
    inner_of,
    register_encoder,
)
from feast_embeddings.models.errors import SpaceError
from feast_embeddings.models.types import Bools, Float32s, Float64s, Ids, Int64s

MAX_RESIDUAL: Final = 0.8
"""Between vectors of equal lengths it stands for a cosine of 1 − 0.8² / 2 = 0.68. Measured, on items left out: 0.42
for another seed and 0.46 for half of the users (MovieLens-1M, 32 dimensions), 1.41 and more for unrelated spaces."""
NEIGHBORS: Final = 10
_ROWS: Final = 256  # rotated at a time, to stay in a core's cache
_SAMPLE: Final = 2000  # items whose neighbors are compared


@dataclass(frozen=True, slots=True)
class Alignment:
    """What was aligned with what, and how well.

    Attributes:
        source_space: Space of the encoder that was rotated, the new one.
        target_space: Space it was rotated towards, the old one.
        items: Items that both know.
        residual: ‖S·R − T‖ / ‖T‖ over those items, Frobenius norms: 0 for one space in two coordinate systems.
        held_out_residual: The same on items that the rotation was not fitted on: each half by the other's.
        overlap_before: Mean share of common items among the 10 nearest (by cosine, itself left out, among the old
            vectors) of an item's new vector as it is, and of its old vector.
        overlap_after: The same, of the rotated new vector.
    """

    source_space: str
    target_space: str
    items: int
    residual: float
    held_out_residual: float
    overlap_before: float
    overlap_after: float

    def __str__(self) -> str:
        """One line for people."""
        return (
            f"{self.items:,} shared items, relative residual {self.residual:.3f} ({self.held_out_residual:.3f} on "
            f"items left out), common neighbors {self.overlap_before:.0%} before and {self.overlap_after:.0%} after"
        )


@register_encoder("aligned")
class AlignedEncoder(WrappingEncoder):
    """An `Encoder` whose vectors are another encoder's, rotated; its space names both parents.

    Args:
        inner: The encoder.
        rotation: float32 (dim, dim), orthogonal; a vector v becomes v · rotation, in float32 on the CPU.
        alignment: Where the rotation comes from.
    """

    rotation: torch.Tensor

    def __init__(self, inner: StorableEncoder, rotation: torch.Tensor, alignment: Alignment) -> None:
        super().__init__(inner)
        self.alignment = alignment
        self.register_buffer("rotation", rotation)

    def encode(self, batch: HistoryBatch) -> Float32s:
        """Vectors of histories, float32 [B, dim]; bit for bit the same in every batch if the inner encoder's are."""
        return rotated(self.inner.encode(batch), self.rotation.cpu().numpy())

    def encode_items(self, items: Ids) -> tuple[Float32s, Bools]:
        """Vectors of items, float32 [n, dim], and which ids are known, bool [n]; the others are zero."""
        vectors, known = self.inner.encode_items(items)
        return rotated(vectors, self.rotation.cpu().numpy()), known

    def state(self) -> EncoderState:
        """What an artifact stores: all of the inner encoder, the rotation, and the names of both parent spaces."""
        return self.state_as("aligned", {"alignment": asdict(self.alignment)})

    @classmethod
    def from_state(cls, state: EncoderState, device: Device = None, precision: str | None = None) -> AlignedEncoder:
        """The encoder of a stored state.

        Raises:
            ArtifactError: The inner encoder is of a kind that is not registered.
        """
        inner = inner_of(state, device, precision)
        return cls(inner, state.tensors["rotation"], Alignment(**state.config["alignment"])).eval()


def align(
    source_encoder: StorableEncoder, target_encoder: Encoder, *, max_residual: float = MAX_RESIDUAL
) -> AlignedEncoder:
    """The new encoder, rotated into the coordinates of the old one by the items that both know.

    Args:
        source_encoder: The new encoder, which will do the encoding.
        target_encoder: The old one, whose vectors consumers were made for.
        max_residual: The largest ``held_out_residual`` to accept. 0 is one space in two coordinate systems; where
            two spaces have nothing in common it is above 1.

    Returns:
        An encoder with a space of its own; ``alignment`` has the figures.

    Raises:
        SpaceError: The dimensions differ, fewer than twice as many items as dimensions are shared, or the spaces
            have too little in common to be aligned.
    """
    new, old = _shared(source_encoder, target_encoder)
    rotation = procrustes(new, old)
    alignment = Alignment(
        source_space=source_encoder.space,
        target_space=target_encoder.space,
        items=len(new),
        residual=_residual(new @ rotation, old),
        held_out_residual=_held_out_residual(new, old),
        overlap_before=_overlap(new, old),
        overlap_after=_overlap(new @ rotation, old),
    )
    if not alignment.held_out_residual <= max_residual:
        raise SpaceError(
            f"Space {source_encoder.space} cannot be aligned with space {target_encoder.space}: {alignment}; on items "
            f"left out, at most {max_residual:.3f} is accepted. Serve the new encoder without alignment, and train "
            "again what reads its vectors."
        )
    return AlignedEncoder(source_encoder, torch.from_numpy(rotation.astype(np.float32)), alignment)


def procrustes(source: Float64s, target: Float64s) -> Float64s:
    """The orthogonal R (d, d) that makes ‖source · R − target‖ least, for float64 [n, d].

    With U Σ Vᵀ the singular value decomposition of sourceᵀ · target, R = U Vᵀ
    (https://doi.org/10.1007/BF02289451).
    """
    left, _, right = np.linalg.svd(source.T @ target)
    out: Float64s = left @ right
    return out


def rotated(vectors: Float32s, rotation: Float32s) -> Float32s:
    """``vectors · rotation``, float32 [n, dim], each row bit for bit the same whatever the others are.

    A library's matrix product adds in an order that depends on the shape and on the row's place in it; here
    every row is added up element by element, one column of ``vectors`` after the other.
    """
    out = np.zeros(vectors.shape, np.float32)
    scratch = np.empty((_ROWS, vectors.shape[1]), np.float32)
    for start in range(0, len(vectors), _ROWS):
        part, total = vectors[start : start + _ROWS], out[start : start + _ROWS]
        product = scratch[: len(part)]
        for column, row in enumerate(rotation):
            np.multiply(part[:, column, None], row, out=product)
            total += product
    return out


def _shared(source: Encoder, target: Encoder) -> tuple[Float64s, Float64s]:
    """Vectors float64 [n, dim] of the items that both know, in both spaces."""
    if source.dim != target.dim:
        raise SpaceError(
            f"Space {source.space} has {source.dim} dimensions and space {target.space} has {target.dim}: no rotation "
            "leads from one to the other. Train the new encoder with the dimensions of the old one."
        )
    ids, others = source.item_ids(), target.item_ids()
    common: Any = np.intersect1d(ids, others) if (ids.dtype == object) == (others.dtype == object) else ids[:0]
    new, known = source.encode_items(common)
    old, known_before = target.encode_items(common)
    both = known & known_before
    if both.sum() < 2 * source.dim:
        raise SpaceError(
            f"Spaces {source.space} and {target.space} share {int(both.sum())} items, and their alignment needs "
            f"{2 * source.dim}, twice their dimensions. Train the new encoder on behaviors with more of the old items."
        )
    return new[both].astype(np.float64), old[both].astype(np.float64)


def _residual(source: Float64s, target: Float64s) -> float:
    size = float(np.linalg.norm(target))
    return float(np.linalg.norm(source - target)) / size if size else float("inf")


def _held_out_residual(source: Float64s, target: Float64s) -> float:
    moved = np.empty_like(source)
    for half in (slice(0, None, 2), slice(1, None, 2)):
        other = slice(1 - (half.start or 0), None, 2)
        moved[half] = source[half] @ procrustes(source[other], target[other])
    return _residual(moved, target)


def _overlap(vectors: Float64s, target: Float64s) -> float:
    """Mean share of common nearest targets of ``vectors`` and of ``target``, over a sample of evenly spaced rows."""
    k = min(NEIGHBORS, len(target) - 1)
    rows = np.unique(np.linspace(0, len(target) - 1, min(_SAMPLE, len(target))).astype(np.int64))
    shared = 0
    for part in np.array_split(rows, -(-len(rows) // _ROWS)):
        one, other = (_nearest(each, target, part, k) for each in (vectors, target))
        shared += int((one[:, :, None] == other[:, None, :]).sum())
    return shared / (len(rows) * k)


def _nearest(vectors: Float64s, target: Float64s, rows: Int64s, k: int) -> npt.NDArray[np.intp]:
    scores = _unit(vectors[rows]) @ _unit(target).T
    scores[np.arange(len(rows)), rows] = -np.inf
    return np.argpartition(-scores, k - 1, axis=1)[:, :k]


def _unit(vectors: Float64s) -> Float64s:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)

"""Which behaviors made a vector: `explain`, for any encoder, and more closely for one with gradients and attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, cast, get_args

import numpy as np

from feast_embeddings.models.encoder import Encoder, HistoryBatch, WrappingEncoder, latest
from feast_embeddings.models.errors import DeclarationError
from feast_embeddings.models.explanation.attribution import (
    attention_rollout,
    checked_layer,
    deletion,
    integrated_gradients,
    states_after,
    sums,
)
from feast_embeddings.models.sequence import SequenceEncoder
from feast_embeddings.models.types import Bools, Float32s, Float64s, Int64s

Method = Literal["integrated_gradients", "attention", "deletion"]

TOLERANCE: Final = 0.01
"""Attributions count as complete where they miss the difference that they explain by at most this share of it."""


@dataclass(frozen=True)
class Explanation:
    """Attributions of the behaviors of B histories.

    What is explained, f, is the inner product of the vector with a target: without one, with the vector's own
    direction, so that f is its length, and a behavior with a large attribution is why it points there.

    Attributes:
        method: How they were found.
        layer: After how many blocks; None for an encoder without.
        histories: The behaviors that the vectors depend on, N of them.
        attributions: float64 [N]. Of integrated gradients: they sum to f − baseline. Of deletion: what f loses
            without the behavior. Of attention: shares that sum to 1.
        value: f, float64 [B].
        baseline: f of a history of as many unknown items, float64 [B]; 0 but for integrated gradients.
        steps: Gradients taken along the path per history, int64 [B]; 0 but for integrated gradients.
    """

    method: Method
    layer: int | None
    histories: HistoryBatch
    attributions: Float64s
    value: Float64s
    baseline: Float64s
    steps: Int64s

    @property
    def gap(self) -> Float64s:
        """Of integrated gradients, sum of attributions − (f − baseline): float64 [B]; of others NaN."""
        if self.method != "integrated_gradients":
            return np.full(len(self.value), np.nan)
        return sums(self.attributions, self.histories.offsets) - (self.value - self.baseline)

    @property
    def complete(self) -> Bools:
        """Whether the gap is within `TOLERANCE` of the difference it explains, bool [B]; of other methods False."""
        if self.method != "integrated_gradients":
            return np.zeros(len(self.value), np.bool_)
        return np.asarray(np.abs(self.gap) <= TOLERANCE * np.abs(self.value - self.baseline), np.bool_)

    def top(self, row: int, k: int) -> Int64s:
        """Positions in ``histories`` of the ``k`` behaviors of a history with the largest attributions, best first."""
        start, stop = self.histories.offsets[row : row + 2].tolist()
        order = np.argsort(-self.attributions[start:stop], kind="stable")[:k]
        return np.asarray(start + order, np.int64)


def explain(
    encoder: Encoder,
    histories: HistoryBatch,
    method: Method | None = None,
    *,
    target: Float32s | None = None,
    layer: int | None = None,
) -> Explanation:
    """Which behaviors made these vectors.

    Args:
        encoder: Any; integrated gradients and attention are of a `SequenceEncoder`, or of one that encodes
            histories by it.
        histories: B histories; of each the last ``context`` behaviors count.
        method: ``integrated_gradients`` (with the check that nothing is left unexplained), ``attention`` (rollout:
            what was looked at) or ``deletion`` (what happens without each behavior). Default: the first that the
            encoder has.
        target: What the vectors are held against, float32 [B, dim] or [dim], such as an item's vector: then it is
            the item's score that is explained. Default: each vector's own direction.
        layer: Explain the state after so many blocks instead, with the final norm upon it; 0 is what enters the first.

    Raises:
        DeclarationError: The encoder cannot be asked so, or the target has another shape.
    """
    sequence = sequence_of(encoder)
    chosen = method or ("integrated_gradients" if sequence is not None else "deletion")
    _check(encoder, sequence, chosen, layer)
    batch = latest(histories, encoder.context)
    at = None if sequence is None else checked_layer(sequence, layer)
    vectors = (
        encoder.encode(batch) if sequence is None or layer is None else states_after(sequence, batch, int(at or 0))
    )
    targets = _targets(vectors, target)
    zero, none = np.zeros(len(batch)), np.zeros(len(batch), np.int64)
    value = np.einsum("ij,ij->i", vectors, targets, dtype=np.float64)
    if chosen == "deletion":
        return Explanation(chosen, at, batch, deletion(encoder, batch, targets), value, zero, none)
    inner, depth = cast(SequenceEncoder, sequence), cast(int, at)
    if chosen == "attention":
        return Explanation(chosen, at, batch, attention_rollout(inner, batch, depth), value, zero, none)
    found, value, baseline, steps = integrated_gradients(inner, batch, targets, depth, TOLERANCE)
    return Explanation(chosen, at, batch, found, value, baseline, steps)


def sequence_of(encoder: Encoder) -> SequenceEncoder | None:
    """The `SequenceEncoder` that makes an encoder's vectors of histories; None where they are made otherwise."""
    if isinstance(encoder, SequenceEncoder):
        return encoder
    if isinstance(encoder, WrappingEncoder) and type(encoder).encode is WrappingEncoder.encode:
        return sequence_of(encoder.inner)
    return None


def _check(encoder: Encoder, sequence: SequenceEncoder | None, method: str, layer: int | None) -> None:
    if method not in get_args(Method):
        raise DeclarationError(f"Explanation method {method!r} is unknown: choose {', '.join(get_args(Method))}.")
    if sequence is None and (method != "deletion" or layer is not None):
        raise DeclarationError(
            f"{type(encoder).__name__} has no attention or layers to be asked for: use method='deletion', layer=None."
        )
    if method == "deletion" and layer is not None:
        raise DeclarationError(
            "Deletion explains whole vectors: leave out layer, or ask for 'integrated_gradients' or 'attention'."
        )


def _targets(vectors: Float32s, target: Float32s | None) -> Float32s:
    if target is None:
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    targets = np.asarray(target, np.float32)
    if targets.shape not in (vectors.shape, vectors.shape[1:]):
        raise DeclarationError(
            f"The target has the shape {targets.shape}, vectors have {vectors.shape}: give one vector of as many "
            "dimensions, or one per history."
        )
    return np.ascontiguousarray(np.broadcast_to(targets, vectors.shape))

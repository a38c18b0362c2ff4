"""How much each behavior of a history has to do with a number made from its vector: three ways to ask."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import torch

from feast_embeddings.models.encoder import Encoder, HistoryBatch, Tokens, segments, width_chunks, widths_to
from feast_embeddings.models.errors import DeclarationError
from feast_embeddings.models.sequence import Block, SequenceEncoder
from feast_embeddings.models.types import Float32s, Float64s, Int64s

STEPS: Final = (32, 128, 512)
"""Points of the path at which gradients are taken; more where fewer leave too large a gap."""
_CHUNK_TOKENS: Final = 1 << 15  # positions × steps at a time
_DELETED: Final = 1 << 18  # behaviors of shortened histories at a time


def deletion(encoder: Encoder, batch: HistoryBatch, targets: Float32s) -> Float64s:
    """What is lost of each vector's inner product with its target where one behavior is left out: float64 [N].

    Of any encoder; the sum over a history means nothing. Costs one encode per behavior.
    """
    full = _products(encoder.encode(batch), targets)
    out = np.zeros(len(batch.items))
    for rows in _bounded(batch.lengths):
        part = batch.take(rows)
        shorter = without_each(part)
        lost = full[rows][part.owner] - _products(encoder.encode(shorter), targets[rows][part.owner])
        out[segments(batch.offsets[:-1][rows], part.lengths)[0]] = lost
    return out


def without_each(batch: HistoryBatch) -> HistoryBatch:
    """For each of N behaviors its history without it: N histories, in the order of the behaviors."""
    owner = batch.owner
    copies = batch.take(owner)
    position = np.arange(len(owner)) - batch.offsets[:-1][owner]
    mask = np.ones(len(copies.items), np.bool_)
    mask[copies.offsets[:-1] + position] = False
    return copies.where(mask)


def attention_rollout(encoder: SequenceEncoder, batch: HistoryBatch, layer: int) -> Float64s:
    """Shares of each history's behaviors in its last state after ``layer`` blocks, float64 [N], summing to 1.

    Attention of all heads is averaged, half of a state is taken to be the residual branch, and blocks are multiplied
    (Abnar and Zuidema 2020, https://arxiv.org/abs/2005.00928).
    """
    out = np.zeros(len(batch.items))
    with encoder.evaluating():
        for rows, tokens, last in _padded(encoder, batch, _CHUNK_TOKENS):
            x = encoder.embedded(tokens)
            width = x.shape[1]
            rollout = torch.eye(width, device=x.device).expand(len(rows), -1, -1)
            for block in encoder.layers[:layer]:
                bias = block.causal_bias(width)
                rollout = (0.5 * _attention(block, x, bias) + 0.5 * torch.eye(width, device=x.device)) @ rollout
                x = block(x, bias)
            shares = rollout[torch.arange(len(rows)), last].double().cpu().numpy()  # (R, L)
            _scatter(out, batch, rows, shares)
    return out


def integrated_gradients(
    encoder: SequenceEncoder, batch: HistoryBatch, targets: Float32s, layer: int, tolerance: float
) -> tuple[Float64s, Float64s, Float64s, Int64s]:
    """Attributions float64 [N] of inner products with targets to behaviors, and how complete they are.

    Along the straight path from histories of unknown items (of type 0, no time apart, no value) to the embedded
    histories (Sundararajan et al. 2017, https://arxiv.org/abs/1703.01365), by captum.

    Returns:
        Attributions; f(history) and f(baseline), float64 [B] each; and the steps that were needed, int64 [B]: the
        first of `STEPS` that leaves a gap of at most ``tolerance`` · |f(history) − f(baseline)|, else the last.
    """
    attributions, steps = np.zeros(len(batch.items)), np.zeros(len(batch), np.int64)
    value, baseline = np.zeros(len(batch)), np.zeros(len(batch))
    pending = np.flatnonzero(batch.lengths > 0)
    for count in STEPS:
        part = batch.take(pending)
        found, high, low = _path_integral(encoder, part, targets[pending], layer, count)
        at, _ = segments(batch.offsets[:-1][pending], part.lengths)
        attributions[at], value[pending], baseline[pending], steps[pending] = found, high, low, count
        gap = np.abs(sums(found, part.offsets) - (high - low))
        pending = pending[gap > tolerance * np.abs(high - low)]
        if not len(pending):
            break
    return attributions, value, baseline, steps


def states_after(encoder: SequenceEncoder, batch: HistoryBatch, layer: int) -> Float32s:
    """Final-normed states float32 [B, dim] of each history's last behavior after ``layer`` blocks.

    After all blocks it is the vector. Zeros where a history is empty.
    """
    out = np.zeros((len(batch), encoder.dim), np.float32)
    with encoder.evaluating():
        for rows, tokens, last in _padded(encoder, batch, _CHUNK_TOKENS):
            out[rows] = _state(encoder, encoder.embedded(tokens), last, layer).float().cpu().numpy()
    return out


def checked_layer(encoder: SequenceEncoder, layer: int | None) -> int:
    """The layer, all blocks where it is None.

    Raises:
        DeclarationError: The encoder has no such layer.
    """
    blocks = len(encoder.blocks)
    if layer is not None and not 0 <= layer <= blocks:
        raise DeclarationError(
            f"Encoder {encoder.space} has {blocks} blocks, there is no layer {layer}: name one from 0, what enters the "
            f"first block, to {blocks}."
        )
    return blocks if layer is None else layer


def sums(values: Float64s, offsets: Int64s) -> Float64s:
    """Sums [B] of the parts of ``values`` [N] between ``offsets`` [B + 1]."""
    running = np.concatenate([[0.0], np.cumsum(values)])
    return np.asarray(running[offsets[1:]] - running[offsets[:-1]])


def _path_integral(
    encoder: SequenceEncoder, batch: HistoryBatch, targets: Float32s, layer: int, steps: int
) -> tuple[Float64s, Float64s, Float64s]:
    captum = _captum()
    out, value, baseline = np.zeros(len(batch.items)), np.zeros(len(batch)), np.zeros(len(batch))
    was_training = encoder.training
    encoder.eval()
    for rows, tokens, last in _padded(encoder, batch, _CHUNK_TOKENS // steps):
        with torch.no_grad():
            x, start = encoder.embedded(tokens), encoder.embedded(Tokens(*map(torch.zeros_like, tokens.parts)))
        target = torch.from_numpy(targets[rows]).to(x.device)

        def score(x: torch.Tensor, last: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return (_state(encoder, x, last, layer) * target).sum(-1)

        with torch.enable_grad():
            shares = captum.IntegratedGradients(score).attribute(
                x, baselines=start, additional_forward_args=(last, target), n_steps=steps
            )
        _scatter(out, batch, rows, shares.sum(-1).double().detach().cpu().numpy())
        with torch.no_grad():
            value[rows] = score(x, last, target).double().cpu().numpy()
            baseline[rows] = score(start, last, target).double().cpu().numpy()
    encoder.train(was_training)
    return out, value, baseline


def _captum() -> Any:
    try:
        import captum.attr
    except ImportError as error:
        raise DeclarationError(
            "Integrated gradients need captum: pip install 'feast-embeddings[explain]', or ask for method='deletion' "
            "or 'attention'."
        ) from error
    return captum.attr


def _state(encoder: SequenceEncoder, x: torch.Tensor, last: torch.Tensor, layer: int) -> torch.Tensor:
    """Normed states (R, D) at columns ``last`` of embedded behaviors (R, L, D), after ``layer`` blocks."""
    for block in encoder.layers[:layer]:
        x = block(x, block.causal_bias(x.shape[1]))
    out: torch.Tensor = encoder.norm(x[torch.arange(len(x), device=x.device), last])
    return out


def _attention(block: Block, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Attention (R, L, L) of states (R, L, D), the mean over heads."""
    q, k, _ = block.projected(x)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2) + bias
    return torch.softmax(scores.float(), dim=-1).mean(dim=1)


def _padded(
    encoder: SequenceEncoder, batch: HistoryBatch, tokens_at_once: int
) -> Iterator[tuple[Int64s, Tokens, torch.Tensor]]:
    """Rows, padded tokens and columns of the last behaviors, a chunk at a time."""
    tokens = Tokens.of(batch, encoder.items, encoder.normalizer, len(encoder.behavior_types))
    for rows, width in width_chunks(
        batch.lengths, widths_to(encoder.context), lambda width: max(1, tokens_at_once // width)
    ):
        starts, lengths = torch.from_numpy(batch.offsets[rows]), torch.from_numpy(batch.lengths[rows])
        yield rows, tokens.padded(starts, lengths, width).to(encoder.device), (lengths - 1).to(encoder.device)


def _scatter(out: Float64s, batch: HistoryBatch, rows: Int64s, shares: Float64s) -> None:
    """Puts what stands in the columns of ``shares`` [R, L] beside the behaviors of ``rows``."""
    lengths = batch.lengths[rows]
    column = np.arange(shares.shape[1])
    real = column < lengths[:, None]
    out[(batch.offsets[:-1][rows][:, None] + column)[real]] = shares[real]


def _bounded(lengths: Int64s) -> Iterator[Int64s]:
    """Rows whose shortened histories have a bounded number of behaviors together."""
    group = np.cumsum(lengths * lengths) // _DELETED
    for number in np.unique(group):
        yield np.flatnonzero(group == number).astype(np.int64)


def _products(vectors: Float32s, targets: Float32s) -> Float64s:
    return np.asarray(np.einsum("ij,ij->i", vectors, targets, dtype=np.float64))

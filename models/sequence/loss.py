"""Cross-entropy over the catalogue, or over a sample of a large one, in bounded memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

_CHUNK_SCORES = 1 << 21
"""Scores alive at once: 4 MiB in bf16, so that a chunk's passes stay in the cache of a core or two."""


class ChunkedCrossEntropy(torch.autograd.Function):
    """Weighted sum of cross-entropies of states against every item, a few positions at a time.

    The gradients are made in the forward pass while a chunk's scores are at hand, so the [P, V] scores
    never exist as a whole and are computed once.
    """

    @staticmethod
    def forward(
        ctx: Any,
        states: torch.Tensor,
        table: torch.Tensor,
        targets: torch.Tensor,
        weights: torch.Tensor,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        """Loss, a scalar, of states [P, D] and table [V, D] for targets [P] weighted by weights [P]."""
        narrow = table.to(dtype)
        state_gradient = torch.empty_like(states, dtype=torch.float32)
        table_gradient = torch.zeros_like(table, dtype=torch.float32)
        loss = torch.zeros((), device=states.device)
        size = max(16, _CHUNK_SCORES // len(table))
        for start in range(0, len(states), size):
            part = slice(start, start + size)
            state, target, weight = states[part].to(dtype), targets[part, None], weights[part, None]
            shares = torch.softmax(state @ narrow.T, dim=-1)  # (p, V)
            loss -= (shares.gather(1, target).float().clamp_min(1e-30).log() * weight).sum()
            shares *= weight.to(dtype)  # minus the weighted one-hot of the target: the gradient of the scores
            state_gradient[part] = shares @ narrow
            table_gradient += shares.T @ state
        state_gradient -= weights[:, None] * table[targets]
        table_gradient.index_add_(0, targets, -weights[:, None] * states)
        ctx.save_for_backward(state_gradient, table_gradient)
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Scales the gradients made in ``forward``."""
        state_gradient, table_gradient = ctx.saved_tensors
        return state_gradient * gradients[0], table_gradient * gradients[0], None, None, None


def full_softmax_loss(
    states: torch.Tensor, table: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """Mean weighted cross-entropy over the whole catalogue.

    Args:
        states: float32 [P, D], only the positions that have a target.
        table: float32 [V, D], item vectors.
        targets: int64 [P], rows of ``table``.
        weights: float32 [P], of the targets' behavior types.
        dtype: Of the matrix products, float32 or bfloat16.

    Returns:
        A scalar: the weighted sum divided by the sum of weights.
    """
    total: torch.Tensor = ChunkedCrossEntropy.apply(states, table, targets, weights, dtype)  # type: ignore[no-untyped-call]
    return total / weights.sum()


@dataclass(frozen=True, slots=True)
class NegativeSampler:
    """Draws items half by how often they are targets, half uniformly, and knows how likely each draw was.

    It lives on the CPU, where the draws of a seed are the same for every device.

    Attributes:
        cumulative: float64 [V], cumulative share of each item among the targets.
        log_expected: float32 [V], log of how often an item is expected among the ``size`` draws.
        size: Draws per batch, K.
    """

    cumulative: torch.Tensor
    log_expected: torch.Tensor
    size: int

    @classmethod
    def of(cls, target_counts: torch.Tensor, size: int) -> NegativeSampler:
        """A sampler of ``size`` draws from how often each item is a target, int64 [V]."""
        shares = target_counts.double() / target_counts.sum()
        mixed = 0.5 * shares + 0.5 / len(shares)
        return cls(mixed.cumsum(0), (mixed * size).log().float(), size)

    def draw(self) -> torch.Tensor:
        """Item rows int64 [K], with replacement."""
        at = torch.rand(self.size, dtype=torch.float64)
        return torch.searchsorted(self.cumulative, at * self.cumulative[-1]).clamp(max=len(self.cumulative) - 1)


def sampled_softmax_loss(
    states: torch.Tensor, table: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, sampler: NegativeSampler
) -> torch.Tensor:
    """Mean weighted cross-entropy with the sum over the catalogue estimated from one shared sample.

    A drawn item j stands for 1 / E[draws of j] of the sum (the logQ correction of Bengio and Senécal, 2008,
    https://doi.org/10.1109/TNN.2007.912312), the target for itself, and a draw that hits the target is left
    out, which makes the estimate of the sum unbiased.

    Args:
        states: float32 [P, D].
        table: float32 [V, D].
        targets: int64 [P].
        weights: float32 [P].
        sampler: Of the negatives.
    """
    drawn = sampler.draw()  # (K,)
    expected, drawn = sampler.log_expected[drawn].to(states.device), drawn.to(states.device)
    scores = states @ table[drawn].T  # (P, K)
    scores = scores.float() - expected
    scores = scores.masked_fill(drawn == targets[:, None], float("-inf"))
    target_scores = (states * table[targets]).sum(-1, keepdim=True).float()  # (P, 1)
    losses = torch.logsumexp(torch.cat([target_scores, scores], dim=1), dim=1) - target_scores[:, 0]
    return (losses * weights).sum() / weights.sum()

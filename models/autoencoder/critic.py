"""What adversarial training shares: a critic, its loss, and the penalty that keeps its slope near one."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

_TINY = 1e-12  # under the root of a norm: the root's own slope is infinite at zero


class Critic(nn.Module):
    """Scores rows (B, width) by how real they look: two hidden layers, no normalization, which the penalty forbids."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, hidden)
        self.second = nn.Linear(hidden, hidden)
        self.last = nn.Linear(hidden, 1)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Scores (B,), higher is more real."""
        x = F.leaky_relu(self.first(rows), 0.2)
        x = F.leaky_relu(self.second(x), 0.2)
        scores: torch.Tensor = self.last(x).squeeze(1)
        return scores


def gradient_penalty(critic: Critic, real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """Mean of (‖∇ critic‖ − 1)² at random points between real and fake rows (B, width).

    From WGAN-GP (https://arxiv.org/abs/1704.00028). Finite, with finite gradients, also where rows are empty or equal;
    0 for a batch without rows.
    """
    if not len(real):
        return real.new_zeros(())
    share = torch.rand(len(real), 1, device=real.device)
    between = (share * real.detach() + (1 - share) * fake.detach()).requires_grad_()
    (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    norm = (slope.square().sum(dim=1) + _TINY).sqrt()
    return (norm - 1).square().mean()


def critic_loss(critic: Critic, real: torch.Tensor, fake: torch.Tensor, weight: float) -> torch.Tensor:
    """What the critic minimizes: fake scores less real ones, and ``weight`` times the penalty."""
    if not len(real):
        return real.new_zeros(())
    loss: torch.Tensor = critic(fake.detach()).mean() - critic(real).mean()
    return loss + weight * gradient_penalty(critic, real, fake)


def descend(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    """One step of an optimizer on the gradients of a loss."""
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()

"""The block of the sequence encoder: attention over the last few behaviors, by how far back each one lies."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from feast_embeddings.models.sequence.config import SequenceConfig

# Matrix products of fewer rows are shared among threads in another way, and so add in another order.
_LEAST_ROWS = 64


@dataclass(frozen=True, slots=True)
class KeysValues:
    """What a block keeps of behaviors that it has seen, so that later ones can attend to them.

    Attributes:
        keys: [R, H, S, D / H], oldest first, flush right.
        values: Same shape.
    """

    keys: torch.Tensor
    values: torch.Tensor


class Block(nn.Module):
    """Pre-norm block: causal attention to the last ``span`` behaviors, then a gated feed-forward layer.

    Attention knows only how far back a behavior lies, by a learned bias per head and distance (as in T5,
    https://arxiv.org/abs/1910.10683): a state depends on a fixed number of behaviors before it and on no count
    of behaviors from some beginning, so it stays right when older behaviors leave the window.
    """

    def __init__(self, config: SequenceConfig) -> None:
        super().__init__()
        self.heads, self.span = config.heads, config.span
        self.distance_bias = nn.Parameter(torch.zeros(config.heads, config.span))
        self.attention_norm = nn.LayerNorm(config.dim)
        self.attention_in = nn.Linear(config.dim, 3 * config.dim, bias=False)
        self.attention_out = nn.Linear(config.dim, config.dim, bias=False)
        self.forward_norm = nn.LayerNorm(config.dim)
        self.forward_in = nn.Linear(config.dim, 2 * config.hidden, bias=False)
        self.forward_out = nn.Linear(config.hidden, config.dim, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """States (B, L, D) to states (B, L, D), with the ``bias`` (H, L, L) of `causal_bias`."""
        q, k, v = self.projected(x)
        return self.joined(x, mixed(q, k, v, bias))

    def last(self, x: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """What ``forward`` gives at one of the ``columns`` (B,) of each row: states (B, D), for half of the work.

        Padding is on the right, so no real position ever sees it.
        """
        rows = torch.arange(len(x), device=x.device)
        q, k, v = self.projected(x)
        asked = q[rows, :, columns][:, :, None]  # (B, H, 1, D / H)
        distance = columns[:, None, None] - torch.arange(x.shape[1], device=x.device)  # (B, 1, L)
        attended = mixed(asked, k, v, self.bias_of(distance).transpose(0, 1))[:, 0]  # (B, D)
        padded = torch.arange(max(len(x), _LEAST_ROWS), device=x.device) % len(x)
        return self.joined(x[rows, columns][padded], attended[padded])[: len(x)]

    def following(self, x: torch.Tensor, past: KeysValues, bias: torch.Tensor) -> tuple[torch.Tensor, KeysValues]:
        """States (R, L, D) that come after a ``past`` of S behaviors, and keys and values of all S + L.

        The ``bias`` is (R, H, L, S + L).
        """
        q, k, v = self.projected(x)
        every = KeysValues(torch.cat([past.keys, k], dim=2), torch.cat([past.values, v], dim=2))
        return self.joined(x, mixed(q, every.keys, every.values, bias)), every

    def causal_bias(self, width: int) -> torch.Tensor:
        """Bias (H, L, L) of L behaviors, queries first: -inf where a query may not look."""
        distance = width - 1 - torch.arange(2 * width - 1, device=self.distance_bias.device)
        return self.bias_of(distance).unfold(1, width, 1).flip(1)  # row i of a Toeplitz matrix begins at -i

    def bias_of(self, distance: torch.Tensor) -> torch.Tensor:
        """Bias (H, …) of keys that lie ``distance`` (…) behaviors back; -inf before 0 and from ``span`` on."""
        outside = (distance < 0) | (distance >= self.span)
        return self.distance_bias[:, distance.clamp(0, self.span - 1)].masked_fill(outside, float("-inf"))

    def projected(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values of states (B, L, D), each (B, H, L, D / H)."""
        rows, width, dim = x.shape
        split = self.attention_in(self.attention_norm(x)).view(rows, width, 3, self.heads, dim // self.heads)
        q, k, v = split.permute(2, 0, 3, 1, 4)
        return q, k, v

    def joined(self, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """States (…, D) with the two branches added to them; ``attended`` (…, D) is attention's."""
        x = x + self.dropout(self.attention_out(attended))
        out: torch.Tensor = x + self.dropout(self.feed_forward(self.forward_norm(x)))
        return out

    def feed_forward(self, x: torch.Tensor) -> torch.Tensor:
        """ReGLU (https://arxiv.org/abs/2002.05202): ReLU, unlike a sigmoid, rounds alike in vector and scalar code."""
        gate, value = self.forward_in(x).chunk(2, dim=-1)  # each (…, hidden)
        out: torch.Tensor = self.forward_out(F.relu(gate) * value)
        return out


def mixed(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Attention (B, Q, D) of queries (B, H, Q, D / H) to keys and values (B, H, K, D / H).

    Written out in training: with a bias that learns, torch has no fused kernel for a CPU, and its fused one without
    a bias is slower in the backward pass at these lengths. For a single query as well: the fused one then divides the
    keys among threads, and adds in an order that depends on their number.
    """
    if not torch.is_grad_enabled() and q.shape[2] > 1:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        return out.transpose(1, 2).flatten(2)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)  # (B, H, Q, K)
    shares = torch.softmax(scores + bias, dim=-1).to(v.dtype)  # in float32, where the bias is
    return (shares @ v).transpose(1, 2).flatten(2)

"""Matrix factorization of implicit feedback by alternating least squares.

Hu, Koren and Volinsky, 2008 (https://doi.org/10.1109/ICDM.2008.22), with the objective and the regularization by
frequency of Rendle et al., 2021 (https://arxiv.org/abs/2110.14037).
"""

from __future__ import annotations

import numpy as np
import torch

from feast_embeddings.models.encoder import HistoryBatch, ItemIndex
from feast_embeddings.models.evaluation.ranking import Ragged, Scorer
from feast_embeddings.models.evaluation.splits import distinct_items

_CHUNK_TOKENS = 1 << 17
_CHUNK_ROWS = 1 << 12
"""Of the systems of dim × dim that are solved together: 64 MiB at 64 dimensions."""


def matrix_factorization(
    histories: HistoryBatch,
    index: ItemIndex,
    dim: int = 64,
    unobserved: float = 0.1,
    regularization: float = 0.003,
    sweeps: int = 8,
    *,
    asked: HistoryBatch | None = None,
) -> Scorer:
    """Scores by inner product of user and item factors.

    The factors minimize Σ over what users did of (u·v − 1)² + ``unobserved`` · Σ over all pairs of (u·v)²
    + ``regularization`` · Σ over rows of (count + ``unobserved`` · size of the other side) · ‖row‖². Who is asked about
    is folded in: one least squares against the items' factors, so nobody has to be in ``histories``.

    Args:
        histories: To learn from.
        index: The items, V.
        dim: Length of a factor.
        unobserved: Weight of the pairs that did not happen.
        regularization: λ.
        sweeps: Times that both sides are solved.
        asked: Histories to score. Default: ``histories``.
    """
    done = distinct_items(histories, index)
    done_to = _transposed(done, len(index))
    generator = torch.Generator().manual_seed(0)
    items = torch.randn((len(index), dim), generator=generator) * (0.1 / dim**0.5)
    for _ in range(sweeps):
        users = _solved(done, items, unobserved, regularization)
        items = _solved(done_to, users, unobserved, regularization)
    held = done if asked is None else distinct_items(asked, index)
    vectors = _solved(held, items, unobserved, regularization).numpy()
    table = items.numpy()
    return lambda part: vectors[part] @ table.T


def _solved(held: Ragged, other: torch.Tensor, unobserved: float, regularization: float) -> torch.Tensor:
    """Rows of one side [n, dim] given the other side's [m, dim]: rows of like count are solved together."""
    dim = other.shape[1]
    everything = unobserved * (other.T @ other)
    counts = np.diff(held.offsets)
    padded = torch.cat([other, torch.zeros((1, dim))])  # the last row stands for padding
    flat = torch.from_numpy(held.rows)
    solved = torch.zeros((len(held), dim))
    order = np.argsort(counts, kind="stable")
    order = order[counts[order] > 0]
    stop = len(order)
    while stop > 0:
        width = int(counts[order[stop - 1]])
        rows = order[max(0, stop - min(_CHUNK_ROWS, max(1, _CHUNK_TOKENS // width))) : stop]
        stop -= len(rows)
        column = torch.arange(width)
        count = torch.from_numpy(counts[rows])[:, None]
        at = torch.where(column < count, torch.from_numpy(held.offsets[rows])[:, None] + column, 0)
        gathered = padded[torch.where(column < count, flat[at], len(other))]  # (R, L, dim)
        weight = regularization * (count[:, :, None] + unobserved * len(other))
        left = gathered.transpose(1, 2) @ gathered + everything + weight * torch.eye(dim)  # (R, dim, dim)
        right = gathered.sum(dim=1)[:, :, None]  # (R, dim, 1)
        solved[torch.from_numpy(rows)] = torch.cholesky_solve(right, torch.linalg.cholesky(left))[:, :, 0]
    return solved


def _transposed(held: Ragged, n_items: int) -> Ragged:
    order = np.argsort(held.rows, kind="stable")
    offsets = np.searchsorted(held.rows[order], np.arange(n_items + 1))
    return Ragged(offsets.astype(np.int64), held.owner[order])

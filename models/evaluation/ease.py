"""EASE: a linear item-to-item model in closed form (H. Steck, 2019, https://arxiv.org/abs/1905.03375)."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

from feast_embeddings.models.encoder import HistoryBatch, ItemIndex
from feast_embeddings.models.evaluation.ranking import Ragged, Scorer
from feast_embeddings.models.types import Float32s, Int64s

MAX_ITEMS = 8192
"""Beyond these, the most frequent ones stand in the model: its inverse takes V³ operations and V² numbers."""

_CHUNK = 1 << 23
"""Numbers of a dense block, or pairs, at a time."""

_PAIRS_PER_PRODUCT = 16
"""So many multiplications of a dense product take as long as one pair that is counted by itself, in root."""


def ease(
    histories: HistoryBatch,
    index: ItemIndex,
    regularization: float = 500.0,
    max_items: int = MAX_ITEMS,
    *,
    asked: HistoryBatch | None = None,
) -> Scorer:
    """Scores items by a linear map of which items a user's history holds.

    With X the users × items matrix of ones, and P = (XᵀX + λ)⁻¹, the weights are −P / diag(P) with a zero diagonal:
    they answer the least squares of X ≈ X·B. A user's scores are the sum of the rows of its items.

    Args:
        histories: To learn from.
        index: The items, V; those beyond the ``max_items`` most frequent ones score 0.
        regularization: λ.
        max_items: Largest model: 8192 items take a minute on one core, and 0.8 GiB.
        asked: Histories to score. Default: ``histories``.
    """
    rows = index.rows(histories.items)
    kept = _most_frequent(rows, len(index), max_items)
    place = np.full(len(index) + 1, -1)
    place[kept] = np.arange(len(kept))
    weights = _weights(_held(histories, place[rows], len(kept)), len(kept), regularization)
    asked = histories if asked is None else asked
    held = _held(asked, place[index.rows(asked.items)], len(kept))

    def score(part: slice) -> Float32s:
        first, last = held.offsets[part.start], held.offsets[part.stop]
        offsets = torch.from_numpy(held.offsets[part] - first)
        summed = F.embedding_bag(torch.from_numpy(held.rows[first:last]), weights, offsets, mode="sum")
        scores = np.zeros((len(summed), len(index)), np.float32)
        scores[:, kept - 1] = summed.numpy()
        return scores

    return score


def _most_frequent(rows: Int64s, n_items: int, size: int) -> Int64s:
    """Rows of the ``size`` most frequent items that occur at all, ascending."""
    counts = np.bincount(rows, minlength=n_items + 1)[1:]
    most = np.argsort(-counts, kind="stable")[:size] + 1
    return np.sort(most[counts[most - 1] > 0])


def _held(histories: HistoryBatch, places: Int64s, n_items: int) -> Ragged:
    """Which of the model's items each history holds; place −1 is left out."""
    return Ragged(histories.offsets, places).where(places >= 0).distinct(n_items)


def _weights(held: Ragged, n_items: int, regularization: float) -> torch.Tensor:
    """B, float32 [V, V]."""
    gram = _gram(held, n_items)
    gram.diagonal().add_(regularization)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
    weights = inverse / -inverse.diagonal()
    weights.fill_diagonal_(0.0)
    return weights


def _gram(held: Ragged, n_items: int) -> torch.Tensor:
    """How many users hold both items, float32 [V, V]: short histories pair by pair, long ones as dense rows."""
    counts = np.diff(held.offsets)
    gram = torch.zeros((n_items, n_items))
    dense = counts > n_items / _PAIRS_PER_PRODUCT
    for rows in _chunks(np.flatnonzero(dense), np.full(len(counts), n_items)):
        part = held.where(np.repeat(np.isin(np.arange(len(counts)), rows), counts))
        block = torch.zeros((len(rows), n_items))
        block[torch.from_numpy(np.searchsorted(rows, part.owner)), torch.from_numpy(part.rows)] = 1.0
        gram.addmm_(block.T, block)
    for rows in _chunks(np.flatnonzero(~dense), counts**2):
        part = held.where(np.repeat(np.isin(np.arange(len(counts)), rows), counts))
        length = np.repeat(counts[part.owner], counts[part.owner])
        first = np.repeat(np.arange(len(part.rows)), counts[part.owner])
        start = part.offsets[part.owner[first]]
        second = start + np.arange(len(first)) - np.repeat(np.cumsum(counts[part.owner]), counts[part.owner]) + length
        pairs = torch.from_numpy(part.rows[first] * n_items + part.rows[second])
        gram.view(-1).index_add_(0, pairs, torch.ones(len(pairs)))
    return gram


def _chunks(rows: Int64s, cost: Int64s) -> list[Int64s]:
    """``rows`` in runs whose costs come to about `_CHUNK` each."""
    if not len(rows):
        return []
    run = np.cumsum(cost[rows]) // _CHUNK
    return np.split(rows, np.flatnonzero(np.diff(run)) + 1)

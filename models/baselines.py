"""What an encoder has to beat: popularity, repeat purchase, and a Markov table."""

from __future__ import annotations

import numpy as np
import torch

from feast_embeddings.models.batch import Float32s, HistoryBatch, Int64s
from feast_embeddings.models.preprocessing import ItemIndex
from feast_embeddings.models.ranking import Scorer

_DENSE_ITEMS = 8192
"""Up to this catalogue a Markov table is a dense matrix (256 MiB), beyond it a sparse one."""


def popularity(histories: HistoryBatch, index: ItemIndex, since_us: int | None = None) -> Scorer:
    """The same scores for every user: how often an item occurs.

    With ``since_us`` (microseconds) only behaviors from then on count. Scores are [u, V], over the rows 1 … V of
    the index, as in every function here.
    """
    recent = slice(None) if since_us is None else histories.times >= since_us
    counts = np.bincount(index.rows(histories.items[recent]), minlength=len(index) + 1)[1:].astype(np.float32)
    users = len(histories)
    return lambda part: np.broadcast_to(counts, (len(range(*part.indices(users))), len(counts)))


def repeat_purchase(histories: HistoryBatch, index: ItemIndex) -> Scorer:
    """Scores a user's own items: by how often, and among equals by how late, they occur in the history."""
    rows = index.rows(histories.items)

    def score(part: slice) -> Float32s:
        owner, kept, age = _recent_rows(histories, rows, part, depth=None)
        scores = np.zeros((part.stop - part.start, len(index) + 1), np.float32)
        np.add.at(scores, (owner, kept), 1.0)
        np.add.at(scores, (owner, kept), 0.5 ** (age + 2.0))  # under 1 / 2 in sum: orders equals only
        return scores[:, 1:]

    return score


def markov_table(
    histories: HistoryBatch,
    index: ItemIndex,
    distance: int = 5,
    damping: float = 20.0,
    decay: float = 0.8,
    depth: int = 5,
) -> Scorer:
    """Scores items by what followed each of the user's last behaviors.

    The table counts, over all histories, pairs (i, then j at distance d ≤ ``distance``) weighted 1 / d; a row
    is divided by its sum + ``damping``. A user's score is Σ over the last ``depth`` behaviors, k before now, of
    ``decay``ᵏ · row.
    """
    rows = index.rows(histories.items)
    table = _transitions(rows, histories, len(index) + 1, distance)
    table = _normalized(table, damping)

    def score(part: slice) -> Float32s:
        owner, kept, age = _recent_rows(histories, rows, part, depth)
        recent = np.zeros((part.stop - part.start, len(index) + 1), np.float32)
        np.add.at(recent, (owner, kept), decay**age)
        recent[:, 0] = 0
        scores = (table.T @ torch.from_numpy(recent).T).T
        return scores[:, 1:].numpy()

    return score


def _transitions(rows: Int64s, histories: HistoryBatch, size: int, distance: int) -> torch.Tensor:
    owner = np.repeat(np.arange(len(histories)), histories.lengths)
    pairs, weights = [], []
    for gap in range(1, distance + 1):
        together = owner[:-gap] == owner[gap:]
        pairs.append(np.stack([rows[:-gap][together], rows[gap:][together]]))
        weights.append(np.full(pairs[-1].shape[1], 1 / gap, np.float32))
    indices, values = (
        torch.from_numpy(np.concatenate(pairs, axis=1)),
        torch.from_numpy(np.concatenate(weights)),
    )
    counted = torch.sparse_coo_tensor(indices, values, (size, size), check_invariants=False).coalesce()
    return counted.to_dense() if size <= _DENSE_ITEMS else counted


def _normalized(table: torch.Tensor, damping: float) -> torch.Tensor:
    if not table.is_sparse:
        return table / (table.sum(dim=1, keepdim=True) + damping)
    sums = torch.sparse.sum(table, dim=1).to_dense() + damping
    values = table.values() / sums[table.indices()[0]]
    return torch.sparse_coo_tensor(table.indices(), values, table.shape, check_invariants=False).coalesce()


def _recent_rows(
    histories: HistoryBatch, rows: Int64s, part: slice, depth: int | None
) -> tuple[Int64s, Int64s, Int64s]:
    """Last ``depth`` behaviors of a slice of users: owner within the slice, item row, behaviors since."""
    offsets = histories.offsets[part.start : part.stop + 1]
    starts, stops = offsets[:-1], offsets[1:]
    lengths = stops - starts if depth is None else np.minimum(stops - starts, depth)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    age = np.repeat(np.cumsum(lengths), lengths) - np.arange(lengths.sum()) - 1
    return owner, rows[stops[owner] - 1 - age], age

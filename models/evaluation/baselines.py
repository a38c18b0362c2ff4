"""What an encoder has to beat: popularity, repeat purchase, and a Markov table.

Each learns from ``histories`` and scores ``asked``, which are the same histories where nothing else is given. Scores
are float32 [u, V], over the rows 1 … V of the index.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

from feast_embeddings.models.encoder import HistoryBatch, ItemIndex, segments
from feast_embeddings.models.evaluation.ranking import Scorer
from feast_embeddings.models.types import Float32s, Int64s

_DENSE_ITEMS = 8192
"""Up to this catalogue a Markov table is a dense matrix (256 MiB), beyond it a sparse one."""


def popularity(
    histories: HistoryBatch, index: ItemIndex, since_us: int | None = None, *, asked: HistoryBatch | None = None
) -> Scorer:
    """The same scores for every user: how often an item occurs; with ``since_us`` (microseconds), from then on."""
    recent = slice(None) if since_us is None else histories.times >= since_us
    counts = np.bincount(index.rows(histories.items[recent]), minlength=len(index) + 1)[1:].astype(np.float32)
    users = len(histories if asked is None else asked)
    return lambda part: np.broadcast_to(counts, (len(range(*part.indices(users))), len(counts)))


def recent_popularity(
    histories: HistoryBatch, index: ItemIndex, share: float = 0.1, *, asked: HistoryBatch | None = None
) -> Scorer:
    """Popularity among the latest ``share`` of all behaviors, by event time."""
    since = int(np.quantile(histories.times, 1 - share)) if len(histories.times) else 0
    return popularity(histories, index, since, asked=asked)


def repeat_purchase(histories: HistoryBatch, index: ItemIndex, *, asked: HistoryBatch | None = None) -> Scorer:
    """Scores a user's own items: by how often, and among equals by how late, they occur in the history."""
    histories = histories if asked is None else asked
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
    *,
    asked: HistoryBatch | None = None,
) -> Scorer:
    """Scores items by what followed each of the user's last behaviors.

    The table counts, over all histories, pairs (i, then j at distance d ≤ ``distance``) weighted 1 / d; a row
    is divided by its sum + ``damping``. A user's score is Σ over the last ``depth`` behaviors, k before now, of
    ``decay``ᵏ · row.
    """
    table = _transitions(index.rows(histories.items), histories, len(index) + 1, distance)
    table = _normalized(table, damping)
    histories = histories if asked is None else asked
    rows = index.rows(histories.items)

    def score(part: slice) -> Float32s:
        owner, kept, age = _recent_rows(histories, rows, part, depth)
        owner, kept, weight = owner[kept > 0], kept[kept > 0], (decay**age)[kept > 0].astype(np.float32)
        return _weighted_rows(table, owner, kept, weight, part.stop - part.start)[:, 1:]

    return score


def _weighted_rows(table: torch.Tensor, owner: Int64s, rows: Int64s, weight: Float32s, users: int) -> Float32s:
    """Weighted sums of a table's rows per user, float32 [users, V]; ``owner`` ascends."""
    if not table.is_sparse:
        offsets = torch.from_numpy(np.searchsorted(owner, np.arange(users)))
        chosen, weights = torch.from_numpy(rows), torch.from_numpy(weight)
        summed = F.embedding_bag(chosen, table, offsets, mode="sum", per_sample_weights=weights)
        return np.asarray(summed.numpy(), np.float32)
    indices, values = table.indices().numpy(), table.values().numpy()
    starts = np.searchsorted(indices[0], rows)
    lengths = np.searchsorted(indices[0], rows, side="right") - starts
    at, _ = segments(starts, lengths)
    flat = np.repeat(owner, lengths) * table.shape[1] + indices[1][at]
    scores = np.bincount(flat, np.repeat(weight, lengths) * values[at], users * table.shape[1])
    return scores.astype(np.float32).reshape(users, table.shape[1])


def _transitions(rows: Int64s, histories: HistoryBatch, size: int, distance: int) -> torch.Tensor:
    owner = histories.owner
    pairs, weights = [], []
    for gap in range(1, distance + 1):
        together = owner[:-gap] == owner[gap:]
        pairs.append(np.stack([rows[:-gap][together], rows[gap:][together]]))
        weights.append(np.full(pairs[-1].shape[1], 1 / gap, np.float32))
    indices, values = (torch.from_numpy(np.concatenate(pairs, axis=1)), torch.from_numpy(np.concatenate(weights)))
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

"""Ranking quality over the whole catalogue, never over a sample of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from feast_embeddings.models.batch import Float32s, Int64s

Scorer = Callable[[slice], Float32s]
"""Scores float32 [u, V] of every item for a slice of users."""

_CHUNK_SCORES = 1 << 23


@dataclass(frozen=True, slots=True)
class Ragged:
    """Item rows per user: user u has ``rows[offsets[u]:offsets[u + 1]]``.

    Attributes:
        offsets: int64 [U + 1].
        rows: int64 [N], columns of the score matrix.
    """

    offsets: Int64s
    rows: Int64s

    @classmethod
    def single(cls, rows: Int64s) -> Ragged:
        """One row per user: int64 [U]."""
        return cls(np.arange(len(rows) + 1), rows)

    def within(self, users: slice) -> tuple[Int64s, Int64s]:
        """User positions within the slice, int64 [n], and item rows, int64 [n]."""
        offsets = self.offsets[users.start : users.stop + 1]
        return np.repeat(np.arange(len(offsets) - 1), np.diff(offsets)), self.rows[offsets[0] : offsets[-1]]

    def __len__(self) -> int:
        """Number of users."""
        return len(self.offsets) - 1


@dataclass(frozen=True, slots=True)
class RankingScores:
    """Means over the users that have a target.

    Attributes:
        hr: Share of users with a target among the first k.
        ndcg: Discounted gain of the targets among the first k, over the best possible.
        recall: Share of a user's targets among the first k.
        mrr: Inverse rank of a user's best target.
        users: Users counted.
    """

    hr: dict[int, float]
    ndcg: dict[int, float]
    recall: dict[int, float]
    mrr: float
    users: int


def inner_products(users: Float32s, items: Float32s) -> Scorer:
    """Scores by inner product of user vectors float32 [U, d] and item vectors float32 [V, d]."""
    return lambda part: users[part] @ items.T


def evaluate_ranking(
    scorer: Scorer, n_items: int, targets: Ragged, seen: Ragged | None = None, ks: Sequence[int] = (5, 10, 20)
) -> RankingScores:
    """HR, NDCG, recall and MRR of the targets among all items.

    Args:
        scorer: Scores of a slice of users; called for at most about 8 million scores at a time.
        n_items: V.
        targets: Items to be found; a user without any is not counted.
        seen: Items taken out of a user's ranking (targets stay), or None.
        ks: Cut-offs.

    Returns:
        The means; tied items share the mean of their ranks, so a constant score earns nothing.
    """
    ranks = target_ranks(scorer, n_items, targets, seen)
    owner = np.repeat(np.arange(len(targets)), np.diff(targets.offsets))
    count = np.diff(targets.offsets)
    counted = count > 0
    best = np.full(len(targets), np.inf)
    np.minimum.at(best, owner, ranks)
    hr, ndcg, recall = {}, {}, {}
    for k in ks:
        hits = ranks <= k
        found = np.bincount(owner, hits, len(targets))[counted]
        gain = np.bincount(owner, hits / np.log2(ranks + 1), len(targets))[counted]
        ideal = np.cumsum(1 / np.log2(np.arange(2, k + 2)))[np.minimum(count[counted], k) - 1]
        hr[k] = float((found > 0).mean())
        ndcg[k] = float((gain / ideal).mean())
        recall[k] = float((found / count[counted]).mean())
    return RankingScores(hr, ndcg, recall, float((1 / best[counted]).mean()), int(counted.sum()))


def target_ranks(scorer: Scorer, n_items: int, targets: Ragged, seen: Ragged | None = None) -> npt.NDArray[np.float64]:
    """Rank of each target among its user's unseen items, float64 [N] from 1; a tie takes the mean rank."""
    size = max(1, _CHUNK_SCORES // n_items)
    ranks = []
    for start in range(0, len(targets), size):
        users = slice(start, min(start + size, len(targets)))
        scores = scorer(users)
        owner, rows = targets.within(users)
        wanted = scores[owner, rows]
        if seen is not None:
            scores = scores.copy()
            scores[seen.within(users)] = -np.inf
            scores[owner, rows] = wanted
        above = (scores[owner] > wanted[:, None]).sum(axis=1)
        tied = (scores[owner] == wanted[:, None]).sum(axis=1) - 1
        ranks.append(1 + above + tied / 2)
    return np.concatenate(ranks) if ranks else np.zeros(0)

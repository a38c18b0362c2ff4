"""Ranking quality over the whole catalogue, never over a sample of it.

Conventions, which hold wherever a ranking is measured here:

- Ranks count from 1. Tied items share the mean of their ranks, so a constant score earns nothing.
- An item is among the first k where its rank is at most k. So is it for coverage: items that tie across the k-th place
  are all in or all out, by their mean rank.
- Seen items that are taken out of a user's ranking have no rank; targets are always ranked.
- An item that a method cannot name scores −∞; nothing may score NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from feast_embeddings.models.encoder import segments
from feast_embeddings.models.errors import EvaluationError
from feast_embeddings.models.types import Bools, Float32s, Float64s, Int64s

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

    @property
    def owner(self) -> Int64s:
        """The user of each row: int64 [N]."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    def distinct(self, n_items: int) -> Ragged:
        """Each row once per user, ascending; rows are below ``n_items``."""
        flat = np.unique(self.owner * n_items + self.rows)
        offsets = np.searchsorted(flat, np.arange(len(self) + 1) * n_items)
        return Ragged(offsets.astype(np.int64), flat % max(n_items, 1))

    def take(self, users: Int64s) -> Ragged:
        """The rows of ``users`` (int64 [R]), in that order."""
        rows, offsets = segments(self.offsets[:-1][users], np.diff(self.offsets)[users])
        return Ragged(offsets, self.rows[rows])

    def where(self, mask: Bools) -> Ragged:
        """The rows where ``mask`` (bool [N]) is true; every user stays, some perhaps without rows."""
        before = np.concatenate([[0], np.cumsum(mask)]).astype(np.int64)
        return Ragged(before[self.offsets], self.rows[mask])

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


@dataclass(frozen=True, slots=True)
class Ranking:
    """What one method made of a task.

    Attributes:
        ranks: Rank of each target, float64 [N] from 1.
        coverage: k → share of the catalogue that is among the first k of any user.
    """

    ranks: Float64s
    coverage: dict[int, float]


def inner_products(users: Float32s, items: Float32s, known: Bools | None = None) -> Scorer:
    """Scores by inner product of user vectors float32 [U, d] and item vectors float32 [V, d].

    Items that are not ``known`` (bool [V], default: all are) score −∞.
    """

    def score(part: slice) -> Float32s:
        scores: Float32s = users[part] @ items.T
        if known is not None:
            scores[:, ~known] = -np.inf
        return scores

    return score


def evaluate_ranking(
    scorer: Scorer, n_items: int, targets: Ragged, seen: Ragged | None = None, ks: Sequence[int] = (5, 10, 20)
) -> RankingScores:
    """HR, NDCG, recall and MRR of the targets among all items, for one method and without intervals.

    Args:
        scorer: Scores of a slice of users; called for at most about 8 million scores at a time.
        n_items: V.
        targets: Items to be found; a user without any is not counted.
        seen: Items taken out of a user's ranking (targets stay), or None.
        ks: Cut-offs.

    Raises:
        EvaluationError: A target's score is NaN.
    """
    measured = measures(target_ranks(scorer, n_items, targets, seen), targets, ks)
    counted = ~np.isnan(measured["mrr"])
    means = {name: float(values[counted].mean()) if counted.any() else np.nan for name, values in measured.items()}
    hr, ndcg, recall = ({k: means[f"{name}@{k}"] for k in ks} for name in ("hr", "ndcg", "recall"))
    return RankingScores(hr, ndcg, recall, means["mrr"], int(counted.sum()))


def measures(ranks: Float64s, targets: Ragged, ks: Sequence[int]) -> dict[str, Float64s]:
    """``hr@k``, ``ndcg@k``, ``recall@k`` and ``mrr`` of each user, float64 [U]; NaN for one without a target.

    Args:
        ranks: Rank of each target, float64 [N].
        targets: Whose targets they are.
        ks: Cut-offs.
    """
    owner, count = targets.owner, np.diff(targets.offsets)
    divisor = np.where(count > 0, count, np.nan)
    best = np.full(len(targets), np.inf)
    np.minimum.at(best, owner, ranks)
    measured = {"mrr": np.where(count > 0, 1 / best, np.nan)}
    for k in ks:
        hits = ranks <= k
        found = np.bincount(owner, hits, len(targets))
        gain = np.bincount(owner, hits / np.log2(ranks + 1), len(targets))
        ideal = np.cumsum(1 / np.log2(np.arange(2, k + 2)))[np.clip(count, 1, k) - 1]
        measured[f"hr@{k}"] = np.where(count > 0, found > 0, np.nan)
        measured[f"ndcg@{k}"] = gain / np.where(count > 0, ideal, np.nan)
        measured[f"recall@{k}"] = found / divisor
    return measured


def target_ranks(scorer: Scorer, n_items: int, targets: Ragged, seen: Ragged | None = None) -> Float64s:
    """Rank of each target among its user's unseen items, float64 [N] from 1; a tie takes the mean rank."""
    return rank(scorer, n_items, targets, seen).ranks


def rank(scorer: Scorer, n_items: int, targets: Ragged, seen: Ragged | None = None, ks: Sequence[int] = ()) -> Ranking:
    """Ranks of the targets, and the catalogue's coverage by the first k of every user.

    Args:
        scorer: As for :func:`evaluate_ranking`.
        n_items: V.
        targets: Items to be found.
        seen: Items taken out of a user's ranking (targets stay), or None.
        ks: Cut-offs of coverage.

    Raises:
        EvaluationError: A target's score is NaN.
    """
    size = max(1, _CHUNK_SCORES // max(n_items, 1))
    ranks, covered = [], {k: np.zeros(n_items, np.bool_) for k in ks}
    for start in range(0, len(targets), size):
        users = slice(start, min(start + size, len(targets)))
        scores = scorer(users)
        owner, rows = targets.within(users)
        wanted = scores[owner, rows]
        if np.isnan(wanted).any():
            raise EvaluationError(
                f"Scores of users {users.start} to {users.stop} hold NaN: a method must score every item, and −∞ what "
                "it cannot name; look for empty histories that an encoder does not answer with zeros."
            )
        if seen is not None:
            scores = scores.copy()
            scores[seen.within(users)] = -np.inf
            scores[owner, rows] = wanted
        own = scores if np.array_equal(owner, np.arange(len(scores))) else scores[owner]  # one target each: no copy
        above = np.count_nonzero(own > wanted[:, None], axis=1)
        tied = np.count_nonzero(own == wanted[:, None], axis=1) - 1
        ranks.append(1 + above + tied / 2)
        for k in ks:
            covered[k] |= _among_first(scores, min(k, n_items))
    coverage = {k: float(items.mean()) if n_items else 0.0 for k, items in covered.items()}
    return Ranking(np.concatenate(ranks) if ranks else np.zeros(0), coverage)


def _among_first(scores: Float32s, k: int) -> Bools:
    """Which items are among the first k of any of these users, bool [V]."""
    lowest = torch.topk(torch.from_numpy(np.array(scores)), k, sorted=True).values[:, -1].numpy()[:, None]
    above, tied = scores > lowest, (scores == lowest) & (scores > -np.inf)
    mean_rank = np.count_nonzero(above, axis=1) + (np.count_nonzero(tied, axis=1) + 1) / 2
    covered: Bools = (above | (tied & (mean_rank <= k)[:, None])).any(axis=0)
    return covered

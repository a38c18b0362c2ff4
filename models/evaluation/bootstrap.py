"""Confidence intervals of mean scores, by resampling users (B. Efron, 1979, https://doi.org/10.1214/aos/1176344552)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from feast_embeddings.models.types import Float64s, Int64s

_CHUNK_DRAWS = 1 << 22


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and the percentile interval of its bootstrap distribution.

    Attributes:
        value: The mean over all queries; NaN where there was none.
        low: Lower bound; equal to ``value`` where no resamples were asked for.
        high: Upper bound.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"


def bootstrap(
    values: Float64s, users: Int64s, *, resamples: int = 1000, confidence: float = 0.95, seed: int = 0
) -> list[Estimate]:
    """Means of columns over queries, with intervals from resampling users with all their queries.

    The same users are drawn for every column, so the interval of a column of differences is a paired one. The same
    seed and users give the same draws.

    Args:
        values: float64 [Q, M], one column per measure; NaN where a measure does not count a query.
        users: int64 [Q], who asked each query: any numbers.
        resamples: How many times as many users are drawn, with replacement; 0 gives no interval.
        confidence: Share of the resampled means inside the interval.
        seed: Of the draws.

    Returns:
        One estimate per column.
    """
    counted = ~np.isnan(values)
    _, user = np.unique(users, return_inverse=True)
    sums, counts = (_per_user(column, user) for column in (np.where(counted, values, 0.0), counted.astype(np.float64)))
    means = _means(sums.sum(axis=0), counts.sum(axis=0))
    if not resamples or not len(sums):
        return [Estimate(float(mean), float(mean), float(mean)) for mean in means]
    drawn = _resampled(sums, counts, resamples, np.random.default_rng(seed))
    tail = (1 - confidence) / 2
    low, high = np.full((2, len(means)), np.nan)
    there = ~np.isnan(drawn).all(axis=0)
    low[there], high[there] = np.nanquantile(drawn[:, there], [tail, 1 - tail], axis=0)
    return [Estimate(*map(float, row)) for row in zip(means, low, high, strict=True)]


def _per_user(values: Float64s, user: Int64s) -> Float64s:
    """Sums [U, M] of the rows [Q, M] of each user."""
    users = int(user.max(initial=-1)) + 1
    columns = [np.bincount(user, column, users) for column in values.T]
    return np.stack(columns, axis=1) if columns else np.zeros((users, 0))


def _resampled(sums: Float64s, counts: Float64s, resamples: int, generator: np.random.Generator) -> Float64s:
    """Means [R, M] of so many draws of as many users."""
    users = len(sums)
    size = max(1, _CHUNK_DRAWS // users)
    means = []
    for start in range(0, resamples, size):
        rows = min(size, resamples - start)
        drawn = generator.integers(0, users, (rows, users)) + np.arange(rows)[:, None] * users
        times = np.bincount(drawn.ravel(), minlength=rows * users).reshape(rows, users).astype(np.float64)
        means.append(_means(times @ sums, times @ counts))
    return np.concatenate(means)


def _means(sums: Float64s, counts: Float64s) -> Float64s:
    return np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)

"""Behaviors at one time, such as the lines of a receipt, have no order: training must not learn one."""

from __future__ import annotations

import numpy as np

from feast_embeddings.models.types import Int64s


def tie_groups(offsets: Int64s, times: Int64s) -> Int64s | None:
    """Group of each behavior, int64 [N], the same for equal times of one history; None where no two are equal.

    Args:
        offsets: int64 [B + 1] of the flat behaviors.
        times: int64 [N], ordered within each history.
    """
    starts = np.ones(len(times), bool)
    starts[1:] = times[1:] != times[:-1]
    starts[offsets[:-1][np.diff(offsets) > 0]] = True
    return None if starts.all() else np.cumsum(starts, dtype=np.int64)


def shuffled_within(groups: Int64s, generator: np.random.Generator) -> Int64s:
    """A random order of the behaviors that keeps every group in its place: int64 [N]."""
    return np.lexsort((generator.random(len(groups)), groups)).astype(np.int64)

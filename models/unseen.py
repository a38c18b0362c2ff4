"""Vectors of items that an encoder never saw: the mean of the user vectors that stood before their behaviors."""

from __future__ import annotations

import numpy as np

from feast_embeddings.models.batch import Float32s, Int64s


def preceding_means(
    items: Int64s, vectors: Float32s, n_items: int, length: float | None = None
) -> tuple[Float32s, Int64s]:
    """Mean of the vectors that preceded each item's behaviors, in the space of the vectors.

    Args:
        items: int64 [N], the item of each behavior, in ``0 … n_items - 1``.
        vectors: float32 [N, dim], the user's vector just before it; zeros where there was none, which do not count.
        n_items: How many items there are.
        length: Euclidean length to which means are brought, or None. Inner products compare lengths: that of the
            trained items' vectors puts unseen ones on a par with them.

    Returns:
        float32 [n_items, dim], zeros for an item that nothing precedes, and how many vectors each mean is of, int64.
    """
    there = vectors.any(axis=1)
    counts = np.bincount(items[there], minlength=n_items)
    sums = np.zeros((n_items, vectors.shape[1]), np.float64)
    np.add.at(sums, items[there], vectors[there])
    means = sums / np.maximum(counts, 1)[:, None]
    if length is not None:
        norms = np.linalg.norm(means, axis=1, keepdims=True)
        means *= np.divide(length, norms, out=np.zeros_like(norms), where=norms > 0)
    return means.astype(np.float32), counts

"""Whether a generator learned or copied: how near synthetic histories are to real ones, and what they cover."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from feast_embeddings.models.autoencoder.bags import Bags
from feast_embeddings.models.errors import EvaluationError
from feast_embeddings.models.types import Bools, Float32s

_CHUNK_ROWS = 512


@dataclass(frozen=True, slots=True)
class Likeness:
    """How synthetic histories stand to real ones. Distances are Jaccard's: 1 − |A ∩ B| / |A ∪ B| of item sets.

    Attributes:
        synthetic_to_train: Median distance of a synthetic history to the nearest training history.
        real_to_train: The same of real histories that were not trained on: much less than this is copying.
        copies: Share of synthetic histories nearer to training than 99 in 100 real ones are.
        precision: Share of synthetic histories within the k-th-neighbor distance of some real history
            (https://arxiv.org/abs/1904.06991).
        coverage: Share of real histories that have a synthetic one within their k-th-neighbor distance
            (https://arxiv.org/abs/2002.09797).
        item_coverage: Share of the items of real histories that occur in synthetic ones.
        item_precision: Share of synthetic behaviors on an item that real histories hold.
    """

    synthetic_to_train: float
    real_to_train: float
    copies: float
    precision: float
    coverage: float
    item_coverage: float
    item_precision: float


def likeness(synthetic: Bags, real: Bags, train: Bags, *, neighbors: int = 5) -> Likeness:
    """Compares bags over the same columns; empty bags are left out.

    Args:
        synthetic: What a generator made.
        real: Histories that it was not trained on.
        train: Histories that it was trained on.
        neighbors: k.

    Raises:
        EvaluationError: One of them holds no history, or ``real`` at most k.
    """
    synthetic, real, train = (_filled(bags) for bags in (synthetic, real, train))
    if min(len(synthetic), len(train)) < 1 or len(real) <= neighbors:
        raise EvaluationError(
            f"Likeness needs synthetic, real and training histories, more than {neighbors} real ones; "
            f"there are {len(synthetic)}, {len(real)} and {len(train)}: give more."
        )
    made, held = (nearest_distances(bags, train)[:, 0] for bags in (synthetic, real))
    radius = nearest_distances(real, real, neighbors + 1)[:, -1]  # each is its own nearest
    within, covered = _balls(synthetic, real, radius)
    occurring = np.unique(real.columns)
    return Likeness(
        synthetic_to_train=float(np.median(made)),
        real_to_train=float(np.median(held)),
        copies=float((made < np.quantile(held, 0.01)).mean()),
        precision=float(within.mean()),
        coverage=float(covered.mean()),
        item_coverage=float(np.isin(occurring, synthetic.columns).mean()),
        item_precision=float(np.isin(synthetic.columns, occurring).mean()),
    )


def nearest_distances(bags: Bags, others: Bags, count: int = 1) -> Float32s:
    """Jaccard distances to the ``count`` nearest of ``others``, ascending: float32 [B, count]."""
    nearest = [np.sort(np.partition(part, count - 1, axis=1)[:, :count], axis=1) for part in _distances(bags, others)]
    return np.concatenate(nearest) if nearest else np.zeros((0, count), np.float32)


def _balls(bags: Bags, others: Bags, radius: Float32s) -> tuple[Bools, Bools]:
    """Which bags are in the ball of some other, and which others have one of the bags in theirs."""
    within, covered = [], np.zeros(len(others), np.bool_)
    for part in _distances(bags, others):
        inside = part <= radius
        within.append(inside.any(axis=1))
        covered |= inside.any(axis=0)
    return np.concatenate(within), covered


def _distances(bags: Bags, others: Bags) -> Iterator[Float32s]:
    """Of slices of bags to all others, float32 [slice, O]; the others are sparse, a slice is dense."""
    owner = np.repeat(np.arange(len(others)), np.diff(others.offsets))
    places = torch.from_numpy(np.stack([owner, others.columns]))
    ones, shape = torch.ones(len(owner)), (len(others), others.size)
    held = torch.sparse_coo_tensor(places, ones, shape, check_invariants=False, is_coalesced=True)
    sizes = np.diff(others.offsets).astype(np.float32)
    for start in range(0, len(bags), _CHUNK_ROWS):
        rows = bags.take(np.arange(start, min(start + _CHUNK_ROWS, len(bags))))
        dense = (rows.dense() > 0).float()
        common = torch.sparse.mm(held, dense.T).T.numpy()  # (slice, O)
        union = dense.sum(dim=1).numpy()[:, None] + sizes - common
        yield (1 - common / np.maximum(union, 1)).astype(np.float32)


def _filled(bags: Bags) -> Bags:
    return bags.take(np.flatnonzero(np.diff(bags.offsets) > 0))

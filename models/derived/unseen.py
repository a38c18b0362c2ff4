"""Vectors of items that the encoder never saw: the direction of the users who came to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, cast

import numpy as np

from feast_embeddings.models.encoder import Encoder
from feast_embeddings.models.errors import SpaceError
from feast_embeddings.models.types import Float32s, Ids, Int64s

_UNIT = 2.0**-30
"""Of the sums. Sums of integers do not depend on their order; they hold 8e9 vectors with components near 1."""


PRIOR: Final = 20.0
"""Users who count as much as an item's trained vector would; .282 HR@10 on unseen news against .070 without it."""


@dataclass(frozen=True, slots=True)
class UnseenItems:
    """Sums over the user vectors that preceded the behaviors on m unseen items.

    The score of an item for a user is their inner product, so an item like the users who came to it is near the
    next such user. Sums are whole numbers of a fixed unit: however behaviors are ordered, divided and merged,
    the vectors are the same, bit for bit.

    Attributes:
        space: Of the user vectors, and so of the items'.
        ids: Raw item ids [m], ascending.
        sums: int64 [m, dim], in units of 2^-30.
        support: int64 [m], user vectors in each sum.
    """

    space: str
    ids: Ids
    sums: Int64s
    support: Int64s

    @classmethod
    def of(cls, encoder: Encoder, items: Ids, users: Float32s) -> UnseenItems:
        """The unseen ones among the items of n behaviors.

        Args:
            encoder: Whose space the vectors are of. Items that it knows get their vector from it, never from here.
            items: Raw ids [n].
            users: float32 [n, dim], the vector that the user of each behavior had before it. A row of zeros, or
                one that is not finite, is a user without a vector and counts for nothing.

        Raises:
            SpaceError: The vectors have another dimension than the encoder's.
        """
        if users.ndim != 2 or users.shape[1] != encoder.dim:
            raise SpaceError(
                f"User vectors of shape {users.shape} cannot stand for items of encoder space {encoder.space}, "
                f"which has {encoder.dim} dimensions: read them from a view of that encoder."
            )
        counted = np.isfinite(users).all(axis=1) & users.any(axis=1)
        ids, item = np.unique(items[counted], return_inverse=True)
        unseen = ~encoder.encode_items(cast(Ids, ids))[1]
        units = np.rint(users[counted] / np.float64(_UNIT)).astype(np.int64)  # (n, dim)
        sums, support = _summed(units, np.ones(len(units), np.int64), item, len(ids))
        return cls(encoder.space, cast(Ids, ids[unseen]), sums[unseen], support[unseen])

    def merged(self, other: UnseenItems) -> UnseenItems:
        """The sums over the behaviors of both.

        Raises:
            SpaceError: They are of two spaces.
        """
        if self.space != other.space:
            raise SpaceError(
                f"Unseen items of space {self.space} cannot be merged with those of space {other.space}: "
                "sum the user vectors of one space."
            )
        ids, item = np.unique(np.concatenate([self.ids, other.ids]), return_inverse=True)
        sums = np.concatenate([self.sums, other.sums])
        support = np.concatenate([self.support, other.support])
        return UnseenItems(self.space, cast(Ids, ids), *_summed(sums, support, item, len(ids)))

    def means(self) -> Float32s:
        """Plain means of the users' vectors, float32 [m, dim]."""
        return self._means().astype(np.float32)

    def vectors(self, length: float) -> Float32s:
        """Vectors to be served beside those of trained items, float32 [m, dim].

        A user's vector is longer than an item's, or shorter; a mean of few users is a guess. So a mean keeps its
        direction, and gets the length of trained items times n / (n + 20), where n users came: one click is no
        match for a trained item. Plain means would outrank or vanish beside them, whoever asks.

        Args:
            length: Of trained items' vectors, see `trained_length`; 0, where there are none, leaves the means.
        """
        means = self._means()
        if not length:
            return self.means()
        own = np.linalg.norm(means, axis=1, keepdims=True)
        wanted = length * self.support[:, None] / (self.support[:, None] + PRIOR)
        vectors: Float32s = (means * np.divide(wanted, own, out=np.zeros_like(own), where=own > 0)).astype(np.float32)
        return vectors

    def _means(self) -> np.ndarray:
        return self.sums * _UNIT / self.support[:, None]


def trained_length(encoder: Encoder) -> float:
    """Mean length of the vectors of the items that an encoder knows by id; 0 where it knows none."""
    known, _ = encoder.encode_items(encoder.item_ids())
    return float(np.linalg.norm(known.astype(np.float64), axis=1).mean()) if len(known) else 0.0


def _summed(units: Int64s, counts: Int64s, group: Int64s, groups: int) -> tuple[Int64s, Int64s]:
    """Sums of rows [n, dim] and counts [n] per group, int64 [groups, dim] and [groups]; no group is empty."""
    if not groups:
        return units[:0], counts[:0]
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], np.arange(groups))
    sums: Int64s = np.add.reduceat(units[order], starts, axis=0)
    support: Int64s = np.add.reduceat(counts[order], starts)
    return sums, support

"""Rows for a ranker: (user, item) pairs with their embedding features, from history to learn, from online to serve.

The two sides are the two Feast calls that a team already makes; what they return for one moment is the same, bit for
bit, so a ranker that learned from the one may score the other.

    rows = historical_rows(store, pairs)             # pairs: user_id, item_id, event_timestamp
    ranker = fit(TwoTowerRanker(…), rows, labels)
    scores = score(ranker, online_rows(store, users, items, like=rows))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from feast import FeatureStore
from torch import nn

USER_FEATURES = ("user_embedding:user_vector",)
ITEM_FEATURES = ("item_embedding:item_vector",)

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Rows:
    """N pairs of a user and an item.

    Attributes:
        user_ids, item_ids: int64 [N].
        users, items: Their features side by side, float32 [N, U] and [N, I]; zeros where there are none.
    """

    user_ids: Ints
    item_ids: Ints
    users: Floats
    items: Floats

    def take(self, rows: npt.NDArray[np.int64]) -> Rows:
        """The pairs at ``rows``."""
        return Rows(self.user_ids[rows], self.item_ids[rows], self.users[rows], self.items[rows])

    def without_features(self) -> Rows:
        """The same pairs, of which nothing but the ids is known."""
        none = np.zeros((len(self.user_ids), 0), np.float32)
        return Rows(self.user_ids, self.item_ids, none, none)

    def beside(self, other: Rows) -> Rows:
        """The same pairs with the features of both, for instance of two encoders."""
        users, items = np.hstack([self.users, other.users]), np.hstack([self.items, other.items])
        return Rows(self.user_ids, self.item_ids, users, items)


def historical_rows(
    store: FeatureStore,
    pairs: pd.DataFrame,
    user_features: Sequence[str] = USER_FEATURES,
    item_features: Sequence[str] = ITEM_FEATURES,
) -> Rows:
    """Features of pairs (columns user_id, item_id, event_timestamp) as they were served then, in the pairs' order."""
    asked = pairs[["user_id", "item_id", "event_timestamp"]].reset_index(drop=True)
    asked = asked.assign(pair=np.arange(len(asked)))  # joins do not keep the order
    features = [*user_features, *item_features]
    table = store.get_historical_features(asked, features, full_feature_names=True).to_df().sort_values("pair")
    return _rows(asked, {name: table[name].tolist() for name in map(_column, features)}, user_features, item_features)


def online_rows(
    store: FeatureStore,
    user_ids: Ints,
    item_ids: Ints,
    user_features: Sequence[str] = USER_FEATURES,
    item_features: Sequence[str] = ITEM_FEATURES,
    *,
    like: Rows,
) -> Rows:
    """Features of pairs as they are served now; a side of which nothing is found is zeros, as wide as in ``like``."""
    entities = {"user_id": user_ids.tolist(), "item_id": item_ids.tolist()}
    features = [*user_features, *item_features]
    found = store.get_online_features(features, entity_rows=entities, full_feature_names=True).to_dict()
    rows = _rows(pd.DataFrame(entities), found, user_features, item_features)
    users, items = (np.zeros((len(user_ids), side.shape[1]), np.float32) for side in (like.users, like.items))
    users[:, : rows.users.shape[1]], items[:, : rows.items.shape[1]] = rows.users, rows.items
    return Rows(rows.user_ids, rows.item_ids, users, items)


def fit(
    ranker: nn.Module, rows: Rows, labels: npt.NDArray[np.bool_], *, epochs: int = 8, rate: float = 3e-3, seed: int = 0
) -> nn.Module:
    """Learns which pairs came true, by logistic loss over shuffled batches; the seed decides the shuffling."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(ranker.parameters(), lr=rate, weight_decay=1e-2)
    wanted = torch.from_numpy(labels.astype(np.float32))
    ranker.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(labels), generator=generator).split(256):
            scores = ranker(rows.take(batch.numpy()))
            loss = nn.functional.binary_cross_entropy_with_logits(scores, wanted[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return ranker.eval()


@torch.inference_mode()
def score(ranker: nn.Module, rows: Rows) -> Floats:
    """Scores of pairs, float32 [N]; higher is likelier."""
    return np.asarray(ranker(rows).numpy(), np.float32)


class IdTable(nn.Module):
    """A learned vector per id; ids that were not there at training share the first row."""

    def __init__(self, ids: Ints, dim: int) -> None:
        super().__init__()
        self.ids = np.unique(ids)
        self.table = nn.Embedding(len(self.ids) + 1, dim)
        nn.init.normal_(self.table.weight, std=0.02)

    def forward(self, ids: Ints) -> torch.Tensor:
        """Vectors (N, dim)."""
        place = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
        vectors: torch.Tensor = self.table(torch.from_numpy(np.where(self.ids[place] == ids, place + 1, 0)))
        return vectors


def _column(feature: str) -> str:
    return feature.replace(":", "__")


def _rows(
    pairs: pd.DataFrame, columns: dict[str, list[object]], user_features: Sequence[str], item_features: Sequence[str]
) -> Rows:
    sides = []
    for features in (user_features, item_features):
        parts = [_matrix(columns[_column(feature)]) for feature in features]
        sides.append(np.hstack(parts) if parts else np.zeros((len(pairs), 0), np.float32))
    return Rows(pairs["user_id"].to_numpy(np.int64), pairs["item_id"].to_numpy(np.int64), *sides)


def _matrix(column: list[object]) -> Floats:
    """Numbers or lists of numbers as columns, float32 [N, width]; what is missing is zero."""
    arrays = [None if value is None else np.atleast_1d(np.asarray(value, np.float32)) for value in column]
    width = max((len(array) for array in arrays if array is not None), default=0)
    rows = [np.zeros(width, np.float32) if array is None else np.nan_to_num(array) for array in arrays]
    return np.stack(rows) if rows else np.zeros((0, width), np.float32)

"""A small two-tower ranker: a network per side over an id's vector and what Feast serves, and their inner product.

As the score is an inner product, item towers can be computed ahead and searched; the towers see the features only
through `ranking_rows`, so they learn from ``get_historical_features`` and score ``get_online_features``.
"""

from __future__ import annotations

import torch
from ranking_rows import IdTable, Rows
from torch import nn


class TwoTowerRanker(nn.Module):
    """Scores pairs by the product of two towers' outputs.

    Args:
        rows: Training pairs: their ids get vectors, their widths decide the towers.
        dim: Length of a tower's output, and of an id's vector.
        hidden: Width of a tower.
    """

    def __init__(self, rows: Rows, dim: int = 32, hidden: int = 64) -> None:
        super().__init__()
        self.of_user, self.of_item = IdTable(rows.user_ids, dim), IdTable(rows.item_ids, dim)
        self.user_tower = _tower(dim + rows.users.shape[1], hidden, dim)
        self.item_tower = _tower(dim + rows.items.shape[1], hidden, dim)
        self.bias = IdTable(rows.item_ids, 1)

    def forward(self, rows: Rows) -> torch.Tensor:
        """Scores (N,)."""
        user = torch.cat([self.of_user(rows.user_ids), torch.from_numpy(rows.users)], dim=1)
        item = torch.cat([self.of_item(rows.item_ids), torch.from_numpy(rows.items)], dim=1)
        products = (self.user_tower(user) * self.item_tower(item)).sum(dim=1)
        scores: torch.Tensor = products + self.bias(rows.item_ids).squeeze(1)
        return scores


def _tower(width: int, hidden: int, dim: int) -> nn.Module:
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, dim))

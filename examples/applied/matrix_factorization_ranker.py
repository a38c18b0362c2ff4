"""Matrix factorization that takes embedding features in: a factor per id, and a linear map of what Feast serves.

A pair's score is (p_user + A · user features) · (q_item + B · item features) + item bias. With no features it is plain
matrix factorization under a logistic loss; with them, new users and items have factors too.
"""

from __future__ import annotations

import torch
from ranking_rows import IdTable, Rows
from torch import nn


class MatrixFactorizationRanker(nn.Module):
    """Scores pairs by the product of two factors.

    Args:
        rows: Training pairs: their ids get factors, their widths decide the maps.
        dim: Length of a factor.
    """

    def __init__(self, rows: Rows, dim: int = 32) -> None:
        super().__init__()
        self.of_user, self.of_item = IdTable(rows.user_ids, dim), IdTable(rows.item_ids, dim)
        self.bias = IdTable(rows.item_ids, 1)
        self.user_map = nn.Linear(rows.users.shape[1], dim, bias=False) if rows.users.shape[1] else None
        self.item_map = nn.Linear(rows.items.shape[1], dim, bias=False) if rows.items.shape[1] else None

    def forward(self, rows: Rows) -> torch.Tensor:
        """Scores (N,)."""
        user, item = self.of_user(rows.user_ids), self.of_item(rows.item_ids)
        if self.user_map is not None:
            user = user + self.user_map(torch.from_numpy(rows.users))
        if self.item_map is not None:
            item = item + self.item_map(torch.from_numpy(rows.items))
        scores: torch.Tensor = (user * item).sum(dim=1) + self.bias(rows.item_ids).squeeze(1)
        return scores

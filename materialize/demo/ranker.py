"""A small ranker: trained on historical features, fed from online ones; equal rows must get equal scores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from feast_embeddings.materialize.demo.reads import Rows
from feast_embeddings.models.types import Float32s


@dataclass(frozen=True)
class RankerReport:
    """How the ranker did.

    Attributes:
        rows: Rows whose features are equal online and offline.
        equal_scores: Those that also got the same score, bit for bit.
        auc: Of telling what is about to be bought from other products, on the last 30 % of the rows, fed online.
    """

    rows: int
    equal_scores: int
    auc: float


def rank(offline: Rows, online: Rows, bought: np.ndarray, equal: np.ndarray, seed: int) -> RankerReport:
    """Train on the first 70 % of the historical rows, score all rows from both sides.

    Args:
        offline: Historical features of n rows, in order of time.
        online: Online features of the same rows.
        bought: bool [n], the label.
        equal: bool [n], rows whose features are the same on both sides.
        seed: Of the ranker.
    """
    cut = len(bought) * 7 // 10
    model = _fit(_features(offline)[:cut], bought[:cut], seed)
    scores_offline, scores_online = _scores(model, offline), _scores(model, online)
    same = scores_offline.view(np.uint32) == scores_online.view(np.uint32)
    return RankerReport(int(equal.sum()), int((same & equal).sum()), _auc(scores_online[cut:], bought[cut:]))


def _features(rows: Rows) -> torch.Tensor:
    product = rows.users * rows.items
    return torch.from_numpy(np.concatenate([product, product.sum(axis=1, keepdims=True)], axis=1))


def _fit(features: torch.Tensor, bought: np.ndarray, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(features.shape[1], 32), nn.ReLU(), nn.Linear(32, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=1e-2)
    labels = torch.from_numpy(bought.astype(np.float32))
    for _ in range(200):
        optimizer.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(model(features).squeeze(1), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model.eval()


@torch.inference_mode()
def _scores(model: nn.Module, rows: Rows) -> Float32s:
    return np.asarray(model(_features(rows)).squeeze(1).numpy())


def _auc(scores: Float32s, positive: np.ndarray) -> float:
    """Share of (positive, negative) pairs in the right order, ties one half (Mann-Whitney)."""
    wanted, others = scores[positive], np.sort(scores[~positive])
    if not len(wanted) or not len(others):
        return float("nan")
    below = np.searchsorted(others, wanted, side="left") + np.searchsorted(others, wanted, side="right")
    return float(below.mean() / 2 / len(others))

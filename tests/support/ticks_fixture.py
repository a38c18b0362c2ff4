"""A repo that is live, its next ticks, and what they should come to, computed by hand."""

from __future__ import annotations

import numpy as np
from repo_fixture import USERS, MakeRepo, SmallRepo, at, day, shop, tiny_encoder

from feast_embeddings.transformations import Histories


def started(make_repo: MakeRepo, policy: str = "Incremental()", days: float = 4, **options: str) -> SmallRepo:
    """A repo whose two views are live as of ``days``."""
    repo = make_repo(policy=policy, **options)
    repo.deliver(shop(8), "shop")
    repo.encode_with(tiny_encoder(1))
    with at(day(days)):
        repo.run(day(days))
        repo.run(day(days), "item_embedding")
    return repo


def tick_at(repo: SmallRepo, days: float, view: str = "user_embedding", **options: bool) -> None:
    """Run a view's job at a day, up to that day."""
    with at(day(days)):
        repo.run(day(days), view, **options)


def encoded_by_hand(
    repo: SmallRepo, end: float, seed: int = 1, since: float | None = None, context: int = 10
) -> np.ndarray:
    """Vectors of all users by hand, of their behaviors in [since, end)."""
    behaviors = repo.behaviors(day(end))
    if since is not None:
        behaviors = behaviors.between(day(since), day(end))
    return tiny_encoder(seed, context=context).encode(Histories(behaviors).as_of(USERS, day(end), context))


def active_in(repo: SmallRepo, start: float, end: float) -> np.ndarray:
    """Which users behaved in [start, end) days, bool."""
    return np.isin(USERS, repo.behaviors(day(end)).between(day(start), day(end)).entities)

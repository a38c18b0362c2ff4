"""A repo whose item view follows its user view, and what it should come to, computed by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from repo_fixture import ITEMS, MakeRepo, SmallRepo, day, rows, tiny_encoder
from ticks_fixture import started, tick_at

from feast_embeddings.materialize.serving import Vectors, read_vectors

NEW, OTHER = 900, 901
PLAIN = 'item_embedding_view("item_embedding", entity=item, encoder=main)'
FOLLOWING = PLAIN.replace("encoder=main", "encoder=main, unseen=user_embedding")


def following(make_repo: MakeRepo, policy: str = "Incremental(alpha=0.5)", start: Any = started) -> SmallRepo:
    """A live repo whose item view follows its user view."""

    def make(**options: str) -> SmallRepo:
        repo = make_repo(**options)
        file = repo.folder / "definitions.py"
        assert PLAIN in file.read_text()
        file.write_text(file.read_text().replace(PLAIN, FOLLOWING))
        return repo

    repo: SmallRepo = start(make, policy)
    return repo


def came(repo: SmallRepo, users: Sequence[int], days: float, item: int = NEW) -> None:
    """Users came to an item at about a time."""
    times = [day(days) + number for number in range(len(users))]
    repo.deliver(rows(user=list(users), item=[item] * len(users), at=times), f"came-{item}-{days}")


def read(repo: SmallRepo, items: Sequence[int] = (NEW, OTHER)) -> Vectors:
    """What an online read of items returns."""
    return read_vectors(repo.store, "item_embedding:embedding", np.array(items, np.int64))


def users_before(repo: SmallRepo, users: Sequence[int]) -> np.ndarray:
    """Vectors of users as they are served now, float64 [n, dim]."""
    found = read_vectors(repo.store, "user_embedding:embedding", np.array(users, np.int64))
    assert found.found.all()
    return found.values.astype(np.float64)


def placed(vectors: np.ndarray, seed: int = 1) -> np.ndarray:
    """Where an item stands that n users [n, dim] came to, before whom the encoder of a seed was trained: float32 [dim].

    Summed in units of 2^-30, so that no order of the sum counts; as long as a trained item times n / (n + 20).
    """
    users = len(vectors)
    mean = np.rint(vectors * 2.0**30).sum(axis=0, keepdims=True) * 2.0**-30 / users
    known = tiny_encoder(seed).encode_items(ITEMS)[0].astype(np.float64)
    length = np.linalg.norm(known, axis=1).mean() * users / (users + 20.0)
    return (mean * (length / np.linalg.norm(mean, axis=1, keepdims=True)))[0].astype(np.float32)


def both(repo: SmallRepo, days: float) -> None:
    """Users' ticks, then those of the items."""
    tick_at(repo, days)
    tick_at(repo, days, "item_embedding")

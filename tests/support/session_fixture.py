"""A small live repo with a session view, and requests to it."""

from __future__ import annotations

import runpy
from collections.abc import Sequence
from typing import Any

import numpy as np
from feast import FeatureStore
from repo_fixture import TYPES, MakeRepo, SmallRepo
from ticks_fixture import started

from feast_embeddings.transformations import Behaviors, session_embedding_view

SESSION = "session_embedding:session_embedding"
INPUTS = ("session_items", "session_types", "session_times")


def declare_session(repo: SmallRepo, name: str = "session_embedding", **options: Any) -> FeatureStore:
    """Apply a session view beside what the repo declares; a store that knows it."""
    found = runpy.run_path(str(repo.folder / "definitions.py"))
    names = {key: found[key] for key in ("history", "behaviors")}
    view = session_embedding_view(name, **names, embedding=found["user_embedding"], **options)
    FeatureStore(".").apply([found["user"], found["behaviors"], found["history"], view])
    return FeatureStore(".")


def session_repo(make_repo: MakeRepo, policy: str = "Incremental()", **options: str) -> tuple[SmallRepo, FeatureStore]:
    """A repo whose views are live as of day 4, with a session view."""
    repo = started(make_repo, policy, **options)
    return repo, declare_session(repo, exact=True)


def rows_of(behaviors: Behaviors | None, users: Sequence[int]) -> dict[str, list[Any]]:
    """A request for users, each with its own of ``behaviors``."""
    rows: dict[str, list[Any]] = {"user_id": list(users)} | {name: [[] for _ in users] for name in INPUTS}
    if behaviors is not None:
        place = {user: row for row, user in enumerate(users)}
        owners = np.repeat(behaviors.entities, np.diff(behaviors.offsets)).tolist()
        kinds = [TYPES[code] for code in behaviors.behavior_types.tolist()]
        columns = (behaviors.items.tolist(), kinds, behaviors.times_us.tolist())
        for owner, *cells in zip(owners, *columns, strict=True):
            for name, cell in zip(INPUTS, cells, strict=True):
                rows[name][place[owner]].append(cell)
    return rows


def ask(store: FeatureStore, rows: dict[str, list[Any]], *features: str, **options: Any) -> dict[str, list[Any]]:
    """The answer as a dictionary of columns."""
    return store.get_online_features(list(features or [SESSION]), rows, **options).to_dict()


def matrix(column: Sequence[Any]) -> np.ndarray:
    """A column of vectors as float32 [n, dim]; zeros where there is none."""
    dim = len(next(filter(None, column)))
    return np.array([vector or [0.0] * dim for vector in column], np.float32)

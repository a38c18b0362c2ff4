"""The online answer that is being put together: what an on-demand view may know of the read before it.

Feast calls an on-demand view's transformation right after the online store's read, in the same thread or task, with
nothing but columns. Here it finds the store, and the manifests that the rows of the answer were read under.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from feast import RepoConfig

from feast_embeddings.materialize.online.manifest import Manifest
from feast_embeddings.transformations.views import SESSION_INPUTS, SESSION_VALUES

if TYPE_CHECKING:
    from feast_embeddings.materialize.online_store import EmbeddingOnlineStore

EntityRows = list[dict[str, Any]] | Mapping[str, Any]


@dataclass(slots=True)
class Answer:
    """One call of ``get_online_features``.

    Attributes:
        store: The online store.
        config: Its feature repo's configuration.
        manifests: Encoder → the manifest under which the answer's rows were read; empty before the read.
    """

    store: EmbeddingOnlineStore
    config: RepoConfig
    manifests: Mapping[str, Manifest | None]


_current: ContextVar[Answer | None] = ContextVar("answer", default=None)


@contextmanager
def answering(store: EmbeddingOnlineStore, config: RepoConfig) -> Iterator[Answer]:
    """Makes :func:`current_answer` find this call, in this thread or task only."""
    answer = Answer(store, config, {})
    token = _current.set(answer)
    try:
        yield answer
    finally:
        _current.reset(token)


def current_answer() -> Answer | None:
    """The call of ``get_online_features`` within which this code runs; None outside of any."""
    return _current.get()


def with_sessions(entity_rows: EntityRows) -> EntityRows:
    """The rows of a request, their session columns as Feast can tell the types of: it guesses from what it finds.

    A column of nothing but empty lists becomes nulls, which mean the same; a missing value becomes NaN.
    """
    if isinstance(entity_rows, list):
        if not entity_rows or not any(name in entity_rows[0] for name in SESSION_INPUTS):
            return entity_rows
        return [dict(zip(entity_rows[0], row, strict=True)) for row in _transposed(entity_rows)]
    given = [name for name in SESSION_INPUTS if name in entity_rows]
    return entity_rows if not given else {**entity_rows, **{name: _column(name, entity_rows[name]) for name in given}}


def _transposed(entity_rows: list[dict[str, Any]]) -> Iterator[tuple[Any, ...]]:
    columns = {name: [row[name] for row in entity_rows] for name in entity_rows[0]}
    given = {name: _column(name, columns[name]) for name in SESSION_INPUTS if name in columns}
    return zip(*(columns | given).values(), strict=True)


def _column(name: str, lists: Sequence[Any]) -> Sequence[Any]:
    if not isinstance(lists, list):
        return lists
    if all(each is None or (isinstance(each, list | tuple | np.ndarray) and not len(each)) for each in lists):
        return [None] * len(lists)
    if name == SESSION_VALUES:
        return [
            None if each is None else [np.nan if value is None else float(value) for value in each] for each in lists
        ]
    return lists


def _number(value: float | None) -> float:
    return np.nan if value is None else float(value)

"""The online answer that is being put together: what an on-demand view may know of the read before it.

Feast calls an on-demand view's transformation right after the online store's read, in the same thread or task, with
nothing but columns. Here it finds the server, the encoders, and the manifests that the answer's rows were read under.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from feast_embeddings.materialize.online import Manifest, OnlineServer
from feast_embeddings.materialize.serving.session_encoders import Loaded
from feast_embeddings.transformations.views import SESSION_INPUTS, SESSION_VALUES

EntityRows = list[dict[str, Any]] | Mapping[str, Any]


@dataclass(slots=True)
class Answer:
    """One call of ``get_online_features``.

    Attributes:
        server: The Redis server.
        loaded: The encoder of that name in a space, loaded if need be.
        manifests: Encoder → the manifest under which the answer's rows were read; empty before the read.
    """

    server: OnlineServer
    loaded: Callable[[str, str], Loaded]
    manifests: Mapping[str, Manifest | None] = field(default_factory=dict)


_followed: WeakKeyDictionary[OnlineServer, frozenset[str]] = WeakKeyDictionary()


def follow(server: OnlineServer, encoder: str) -> None:
    """Read this encoder's manifest along with histories from now on: a session view will ask for it."""
    _followed[server] = followed(server) | {encoder}


def followed(server: OnlineServer) -> frozenset[str]:
    """The encoders that session views asked for so far."""
    return _followed.get(server, frozenset())


_current: ContextVar[Answer | None] = ContextVar("answer", default=None)


@contextmanager
def answering(answer: Answer) -> Iterator[None]:
    """Makes :func:`current_answer` find this call, in this thread or task only."""
    token = _current.set(answer)
    try:
        yield
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

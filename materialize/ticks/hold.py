"""A stream held back for a moment: the micro-batches at work end, and no other is recorded until it goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from feast_embeddings.materialize.ledger.leases import held, lanes_held
from feast_embeddings.materialize.ledger.ledger import Ledger
from feast_embeddings.models.errors import StreamError

_POLL_S: Final = 0.01
_ALONE_S: Final = 60.0
"""How long a micro-batch may be open that no worker is there for."""


def hold_resource(project: str, view: str) -> str:
    """Name of the lease during which no micro-batch of a view's stream is recorded."""
    return f"last round of the refresh of view {view!r} of project {project!r}"


@contextmanager
def held_back(ledger: Ledger, project: str, view: str, owner: str) -> Iterator[None]:
    """Hold micro-batches back for the length of a ``with`` block; behaviors wait in the source, workers stay there."""
    with held(ledger, hold_resource(project, view), owner=owner):
        yield


def settle(ledger: Ledger, project: str, view: str, still_ours: Callable[[], bool], before: int | None = None) -> None:
    """Wait until no micro-batch is open, or none that was recorded before a number.

    Raises:
        StreamError: One is open, and no worker of the stream has been there for a minute.
    """
    deadline = time.monotonic() + _ALONE_S
    while still_ours():
        waiting = [tick for tick in ledger.open_micro_batches(view) if before is None or tick.number < before]
        if not waiting:
            return
        if lanes_held(ledger, project, view):
            deadline = time.monotonic() + _ALONE_S
        elif time.monotonic() > deadline:
            raise StreamError(
                f"Micro-batch {waiting[0].number} of view {view!r} was left open by a stopped worker, and no worker of "
                "its stream is there to finish it: run `feast-embeddings stream` once, then the refresh again."
            )
        time.sleep(_POLL_S)

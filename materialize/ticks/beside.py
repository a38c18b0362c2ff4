"""A refresh beside a stream: it gives way to the micro-batches, and holds them back for its last round alone."""

from __future__ import annotations

import contextlib
import contextvars
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Final, TypeVar

import torch

from feast_embeddings.materialize.ledger import Ledger, compaction_resource, held, holder, lanes_held
from feast_embeddings.models.errors import StreamError

_POLL_S: Final = 0.01
_SHORT_ROUND_S: Final = 0.3
_NO_SHORTER: Final = 0.8
"""A round that took more of the time of the one before is no shorter."""
ALONE_S: Final = 60.0
"""How long a micro-batch may be open that no worker is there for."""


def hold_resource(project: str, view: str) -> str:
    """Name of the lease during which no micro-batch of a view's stream is recorded."""
    return f"last round of the refresh of view {view!r} of project {project!r}"


@contextmanager
def held_back(ledger: Ledger, project: str, view: str) -> Iterator[None]:
    """Let no micro-batch begin for the length of a ``with`` block: behaviors wait in the source, workers stay there."""
    with held(ledger, hold_resource(project, view), wait_s=ALONE_S):
        yield


def settle(ledger: Ledger, project: str, view: str, still_ours: Callable[[], bool], before: int | None = None) -> None:
    """Wait until no micro-batch is open, or none that was recorded before a number.

    Raises:
        StreamError: One is open, and no worker of the stream has been there for a minute.
    """
    deadline = time.monotonic() + ALONE_S
    while still_ours():
        waiting = [tick for tick in ledger.open_micro_batches(view) if before is None or tick.number < before]
        if not waiting:
            return
        if lanes_held(ledger, project, view):
            deadline = time.monotonic() + ALONE_S
        elif time.monotonic() > deadline:
            raise StreamError(
                f"Micro-batch {waiting[0].number} of view {view!r} was left open by a stopped worker, and no worker of "
                "its stream is there to finish it: run `feast-embeddings stream` once, then the refresh again."
            )
        time.sleep(_POLL_S)


def wait_for_compaction(ledger: Ledger, project: str, view: str, still_ours: Callable[[], bool]) -> None:
    """Wait for the compaction that began before a refresh was recorded: a later one leaves the behavior log alone."""
    while still_ours() and holder(ledger, compaction_resource(project, view)) is not None:
        time.sleep(_POLL_S)


def in_rounds(apply: Callable[[], int]) -> None:
    """Apply what goes on meanwhile, in rounds, until little is left for a last one, for which it is held back.

    A stream never stops: the last round before it is held is a short one, or one that took about as long as the one
    before, because the stream leaves no more of the processors. ``apply`` returns how much there was.
    """
    before = math.inf
    while True:
        began = time.monotonic()
        found = apply()
        took = time.monotonic() - began
        if not found or took < _SHORT_ROUND_S or took > _NO_SHORTER * before:
            return
        before = took


T = TypeVar("T")
NICER: Final = 10
"""By how much such work is nicer than its process."""


def gently(work: Callable[[], T], *, streamed: bool) -> T:
    """Do ``work`` in a thread of lower priority, which computes in one thread only; returns what it returns.

    Where threads have no priority of their own (it is Linux that gives them one), only the second is true; where
    nothing is ``streamed`` that would have to wait, the work is done as it is.
    """
    if not streamed:
        return work()
    done: Future[T] = Future()
    context = contextvars.copy_context()

    def run() -> None:
        try:
            with contextlib.suppress(OSError, AttributeError):
                me = threading.get_native_id()
                os.setpriority(os.PRIO_PROCESS, me, min(os.getpriority(os.PRIO_PROCESS, me) + NICER, 19))
            torch.set_num_threads(1)
            done.set_result(context.run(work))
        except BaseException as error:
            done.set_exception(error)

    before = torch.get_num_threads()
    threading.Thread(target=run, daemon=True, name="refresh").start()  # daemon: a stop does not wait for it
    try:
        return done.result()
    finally:
        torch.set_num_threads(before)

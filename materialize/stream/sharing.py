"""Who reads what: lanes of a stream under leases, workers that are there, and a pause that empties all lanes."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from feast_embeddings.materialize.ledger.leases import Lease, held, held_under, lanes_held
from feast_embeddings.materialize.ledger.ledger import Ledger
from feast_embeddings.models.errors import FeastEmbeddingsError, LeaseError

_POLL_S = 0.05


def lane_name(lane: int, lanes: int) -> str:
    """Name of a lane: ``"0/2"``."""
    return f"{lane}/{lanes}"


def worker_resource(project: str, view: str, worker: str) -> str:
    """Name of the lease by which a worker says that it is there."""
    return f"{_workers(project, view)} {worker}"


def pause_resource(project: str, view: str) -> str:
    """Name of the lease during which no lane of a view's stream is at work."""
    return f"pause of the stream of view {view!r} of project {project!r}"


def left_resource(project: str, view: str) -> str:
    """Name of the lease under which ticks are finished that were left in another number of lanes."""
    return f"what another number of lanes left of the stream of view {view!r} of project {project!r}"


def workers_there(ledger: Ledger, project: str, view: str) -> int:
    """How many workers of a view's stream are alive."""
    return len(held_under(ledger, _workers(project, view)))


def is_paused(ledger: Ledger, project: str, view: str) -> bool:
    """Whether somebody holds the pause."""
    return bool(held_under(ledger, pause_resource(project, view)))


@contextmanager
def paused(ledger: Ledger, project: str, view: str, wait_s: float = 30.0, seconds: float = 60.0) -> Iterator[Lease]:
    """Hold all lanes of a view's stream still: each finishes its micro-batch and lets go, and goes on afterwards.

    Where the view has no stream, this is immediate. Behaviors wait in the source meanwhile.

    Yields:
        The pause's lease, to be checked now and then.

    Raises:
        LeaseError: Somebody else holds the pause, or a lane did not let go in ``wait_s`` seconds.
    """
    with held(ledger, pause_resource(project, view), seconds) as lease:
        deadline = time.monotonic() + wait_s
        while still := lanes_held(ledger, project, view):
            if time.monotonic() > deadline:
                raise LeaseError(
                    f"The stream of view {view!r} did not pause within {wait_s:.0f} s: {', '.join(still)} are still at "
                    "work. Stop its workers, and run again."
                )
            time.sleep(_POLL_S)
            lease.check()
        with _kept(lease):
            yield lease


@contextmanager
def _kept(lease: Lease) -> Iterator[None]:
    """Renew a lease in the background: what is done during a pause may take longer than the lease."""
    ended = threading.Event()

    def keep() -> None:
        while not ended.wait(lease.seconds / 4):
            with contextlib.suppress(FeastEmbeddingsError):  # whoever works under the lease will notice
                lease.check()

    thread = threading.Thread(target=keep, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextlib.contextmanager
def presence(ledger: Ledger, project: str, view: str, worker: str, seconds: float) -> Iterator[Lease]:
    """Say that a worker is there, for the length of a ``with`` block; it keeps the lease renewed by ``check()``."""
    lease = Lease(ledger, worker_resource(project, view, worker), seconds)
    lease.acquire()
    try:
        yield lease
    finally:
        lease.release()


def _workers(project: str, view: str) -> str:
    return f"worker of the stream of view {view!r} of project {project!r}:"

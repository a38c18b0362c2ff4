"""Leases: of a view, one job runs ticks and one refreshes. The tick number guards even where a lease fails.

A stream has some of its own: one for each lane that is worked on, one for each worker that is there, and one for the
pause that empties all lanes.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from feast_embeddings.materialize.ledger.database import Database
from feast_embeddings.materialize.ledger.schema import leases
from feast_embeddings.models.errors import FeastEmbeddingsError, LeaseError

LEASE_S = 60
_POLL_S = 0.05


class Lease:
    """A lease on one resource, held in the ledger until it is released or has run out.

    Time here is the machine's own: a replay's simulated clock must not keep a dead worker's lease alive.
    """

    def __init__(self, ledger: Database, resource: str, seconds: float = LEASE_S, owner: str | None = None) -> None:
        self.ledger = ledger
        self.resource = resource
        self.seconds = seconds
        self.owner = owner or new_owner()
        self._renewed_us = 0

    def acquire(self) -> None:
        """Take the lease; raises LeaseError while another worker holds it."""
        now = _real_us()
        with self.ledger.transaction() as connection:
            held = connection.execute(sa.select(leases).where(leases.c.resource == self.resource)).mappings().first()
            if held is not None and held["expires_us"] > now and _alive(held["owner"]):
                raise LeaseError(
                    f"{self.resource} is being worked on by {held['owner']} until {_clock_time(held['expires_us'])}: "
                    "wait for it to end, or stop it and run again."
                )
            connection.execute(sa.delete(leases).where(leases.c.resource == self.resource))
            values = {"resource": self.resource, "owner": self.owner, "expires_us": self._expires(now)}
            connection.execute(sa.insert(leases).values(**values))
        self._renewed_us = now

    def check(self) -> None:
        """Renew the lease if a third of it has passed; raises LeaseError if another worker took it over."""
        now = _real_us()
        if now - self._renewed_us < self.seconds * 1_000_000 / 3:
            return
        with self.ledger.unguarded() as connection:
            self.renew(connection)

    def renew(self, connection: Connection) -> None:
        """Renew the lease inside a transaction, which thereby fails if another worker took it over."""
        now = _real_us()
        renewed = connection.execute(sa.update(leases).where(*self._mine()).values(expires_us=self._expires(now)))
        if renewed.rowcount == 0:
            raise LeaseError(
                f"{self.resource} was taken over by another worker: this one stops and changes nothing more."
            )
        self._renewed_us = now

    def release(self) -> None:
        """Give the lease back, if it is still this worker's."""
        with self.ledger.unguarded() as connection:
            connection.execute(sa.delete(leases).where(*self._mine()))

    def _mine(self) -> tuple[sa.ColumnElement[bool], sa.ColumnElement[bool]]:
        return leases.c.resource == self.resource, leases.c.owner == self.owner

    def _expires(self, now: int) -> int:
        return now + round(self.seconds * 1_000_000)


def new_owner() -> str:
    """A name for a holder of leases: machine, process, and something of its own."""
    return f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"


def holder(ledger: Database, resource: str) -> str | None:
    """Who holds a lease now; None where nobody does, or nobody alive."""
    with ledger.reading() as connection:
        return _holder(connection, resource)


def is_held(connection: Connection, resource: str) -> bool:
    """Whether somebody alive holds a lease, as a transaction sees it."""
    return _holder(connection, resource) is not None


def _holder(connection: Connection, resource: str) -> str | None:
    found = connection.execute(sa.select(leases).where(leases.c.resource == resource)).mappings().first()
    free = found is None or found["expires_us"] <= _real_us() or not _alive(found["owner"])
    return None if free or found is None else str(found["owner"])


def held_under(ledger: Database, prefix: str) -> list[str]:
    """Resources whose names begin so, and that somebody alive holds."""
    query = sa.select(leases).where(leases.c.resource.startswith(prefix, autoescape=True))
    with ledger.reading() as connection:
        rows = connection.execute(query).mappings().all()
    now = _real_us()
    return [row["resource"] for row in rows if row["expires_us"] > now and _alive(row["owner"])]


@contextmanager
def held(
    ledger: Database,
    resource: str,
    seconds: float = LEASE_S,
    wait_s: float = 0.0,
    owner: str | None = None,
    on_wait: Callable[[], bool] | None = None,
) -> Iterator[Lease]:
    """Hold a lease for the length of a ``with`` block; raises LeaseError where another worker has it.

    Inside the block every write of ``ledger`` fails with LeaseError once another worker took the lease over: a
    worker that was asleep for longer than its lease cannot undo what the other one did meanwhile.
    With ``wait_s``, it is waited for so many seconds: for what others hold only briefly. ``on_wait`` is called
    between the tries, and ends the waiting with False.
    """
    lease = Lease(ledger, resource, seconds, owner)
    deadline = time.monotonic() + wait_s
    waiting = True
    while True:
        try:
            lease.acquire()
            break
        except LeaseError:
            if not waiting or time.monotonic() >= deadline:
                raise
        # one more try after a refusal to wait: the holder may have gone in between
        waiting = on_wait is None or on_wait()
        if waiting:
            time.sleep(_POLL_S)
    try:
        with ledger.guarded(lease.renew):
            yield lease
    finally:
        lease.release()


def view_resource(project: str, view: str) -> str:
    """Name of the lease that keeps jobs of one view apart that run ticks."""
    return f"view {view!r} of project {project!r}"


def refresh_resource(project: str, view: str) -> str:
    """Name of the lease that keeps refreshes of one view apart; ticks go on beside them."""
    return f"refresh of view {view!r} of project {project!r}"


def cutover_resource(project: str, encoder: str) -> str:
    """Name of the lease that keeps cutovers of one encoder apart."""
    return f"cutover of encoder {encoder!r} of project {project!r}"


# ── of a stream ──────────────────────────────────────────────────────────────────────────────────────────────────


def lane_resource(project: str, view: str, lane: str) -> str:
    """Name of the lease on a lane."""
    return f"{_lanes(project, view)} {lane}"


def compaction_resource(project: str, view: str) -> str:
    """Name of the lease on putting a stream's files together; held like a lane's, so a pause keeps it out."""
    return lane_resource(project, view, "compaction")


def pause_resource(project: str, view: str) -> str:
    """Name of the lease during which no lane of a view's stream is at work."""
    return f"pause of the stream of view {view!r} of project {project!r}"


def left_resource(project: str, view: str) -> str:
    """Name of the lease under which ticks are finished that were left in another number of lanes."""
    return f"what another number of lanes left of the stream of view {view!r} of project {project!r}"


def workers_there(ledger: Database, project: str, view: str) -> int:
    """How many workers of a view's stream are alive."""
    return len(held_under(ledger, _workers(project, view)))


def lanes_held(ledger: Database, project: str, view: str) -> list[str]:
    """Leases of a view's lanes that somebody alive holds."""
    return held_under(ledger, _lanes(project, view))


def is_paused(ledger: Database, project: str, view: str) -> bool:
    """Whether somebody holds the pause."""
    return holder(ledger, pause_resource(project, view)) is not None


@contextmanager
def paused(ledger: Database, project: str, view: str, wait_s: float = 30.0, seconds: float = 60.0) -> Iterator[Lease]:
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


@contextmanager
def presence(ledger: Database, project: str, view: str, worker: str, seconds: float) -> Iterator[Lease]:
    """Say that a worker is there, for the length of a ``with`` block; it keeps the lease renewed by ``check()``."""
    lease = Lease(ledger, f"{_workers(project, view)} {worker}", seconds)
    lease.acquire()
    try:
        yield lease
    finally:
        lease.release()


def _lanes(project: str, view: str) -> str:
    return f"lane of the stream of view {view!r} of project {project!r}:"


def _workers(project: str, view: str) -> str:
    return f"worker of the stream of view {view!r} of project {project!r}:"


def _real_us() -> int:
    return round(datetime.now(UTC).timestamp() * 1_000_000)


def _clock_time(us: int) -> str:
    return datetime.fromtimestamp(us / 1_000_000, UTC).strftime("%H:%M:%S UTC")


def _alive(owner: str) -> bool:
    """Whether the owner may still run: a process of this machine that is gone holds nothing."""
    host, pid, _ = owner.rsplit(":", 2)
    if host != socket.gethostname():
        return True
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

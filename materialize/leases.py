"""Leases: one job per view. They keep two workers from the same work; the tick number guards even if they fail."""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from feast_embeddings.materialize.ledger import Ledger
from feast_embeddings.materialize.ledger_schema import leases
from feast_embeddings.models.errors import LeaseError

LEASE_S = 60
_POLL_S = 0.05


class Lease:
    """A lease on one resource, held in the ledger until it is released or has run out.

    Time here is the machine's own: a replay's simulated clock must not keep a dead worker's lease alive.
    """

    def __init__(self, ledger: Ledger, resource: str, seconds: float = LEASE_S) -> None:
        self.ledger = ledger
        self.resource = resource
        self.seconds = seconds
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
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


@contextmanager
def held(ledger: Ledger, resource: str, seconds: float = LEASE_S, wait_s: float = 0.0) -> Iterator[Lease]:
    """Hold a lease for the length of a ``with`` block; raises LeaseError where another worker has it.

    Inside the block every write of ``ledger`` fails with LeaseError once another worker took the lease over: a
    worker that was asleep for longer than its lease cannot undo what the other one did meanwhile.
    With ``wait_s``, it is waited for so many seconds: for what others hold only briefly.
    """
    lease = Lease(ledger, resource, seconds)
    deadline = time.monotonic() + wait_s
    while True:
        try:
            lease.acquire()
            break
        except LeaseError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(_POLL_S)
    try:
        with ledger.guarded(lease.renew):
            yield lease
    finally:
        lease.release()


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

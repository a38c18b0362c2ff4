"""Leases: one job per view, and none for the dead."""

from __future__ import annotations

import multiprocessing
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
import sqlalchemy as sa

from feast_embeddings.materialize.clock import simulated
from feast_embeddings.materialize.ledger.leases import Lease, held
from feast_embeddings.materialize.ledger.ledger import Ledger
from feast_embeddings.materialize.ledger.schema import leases
from feast_embeddings.models.errors import LeaseError

VIEW = "view 'user_embedding' of project 'shop'"


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'ledger.db'}"


@contextmanager
def _another_process(url: str) -> Iterator[BaseProcess]:
    """A process that holds the lease on ``VIEW``."""
    fork = multiprocessing.get_context("fork")
    ready = fork.Event()
    worker = fork.Process(target=_hold, args=(url, ready), daemon=True)
    worker.start()
    try:
        assert ready.wait(20)
        yield worker
    finally:
        worker.kill()
        worker.join()


def _hold(url: str, ready: Event) -> None:
    Lease(Ledger(url), VIEW, 600).acquire()
    ready.set()
    time.sleep(600)


def test_a_second_process_is_refused_until_the_first_one_is_dead(url: str) -> None:
    ledger = Ledger(url)
    with _another_process(url) as worker:
        with pytest.raises(LeaseError) as caught, held(ledger, VIEW):
            raise AssertionError("two jobs at once")
        assert all(word in str(caught.value) for word in (VIEW, f"{socket.gethostname()}:{worker.pid}", "run again")), (
            caught.value
        )
        worker.kill()
        worker.join()
        with held(ledger, VIEW) as lease:
            assert lease.owner != ""


def test_a_lease_is_free_after_its_block_also_after_an_error(url: str) -> None:
    ledger = Ledger(url)
    with pytest.raises(ZeroDivisionError), held(ledger, VIEW):
        raise ZeroDivisionError
    with held(ledger, VIEW), held(ledger, "another view"):
        pass


def test_a_job_of_the_same_process_is_refused_too(url: str) -> None:
    with held(Ledger(url), VIEW), pytest.raises(LeaseError, match="wait for it to end"), held(Ledger(url), VIEW):
        pass


def test_a_lease_that_ran_out_is_taken_over_and_its_holder_stops(url: str) -> None:
    slow, quick = Lease(Ledger(url), VIEW, seconds=0.05), Lease(Ledger(url), VIEW)
    slow.acquire()
    time.sleep(0.06)
    quick.acquire()
    with pytest.raises(LeaseError, match=r"taken over by another worker.*changes nothing more"):
        slow.check()
    slow.release()
    quick.check()
    with pytest.raises(LeaseError):
        Lease(Ledger(url), VIEW).acquire()


def test_a_working_job_keeps_its_lease_past_its_length(url: str) -> None:
    lease = Lease(Ledger(url), VIEW, seconds=1)
    lease.acquire()
    for _ in range(3):
        time.sleep(0.4)
        lease.check()
    with pytest.raises(LeaseError):
        Lease(Ledger(url), VIEW).acquire()


def test_a_worker_of_another_machine_keeps_its_lease_until_it_runs_out(url: str) -> None:
    ledger = Ledger(url)
    for owner, expires_us, free in (
        ("elsewhere:1:abc", time.time_ns() // 1000 + 60_000_000, False),
        ("elsewhere:1:abc", time.time_ns() // 1000 - 1, True),
        (f"{socket.gethostname()}:{os.getpid()}:abc", time.time_ns() // 1000 - 1, True),
    ):
        with ledger.transaction() as connection:
            connection.execute(sa.delete(leases))
            connection.execute(sa.insert(leases).values(resource=VIEW, owner=owner, expires_us=expires_us))
        if free:
            with held(ledger, VIEW):
                pass
        else:
            with pytest.raises(LeaseError, match="elsewhere:1:abc"), held(ledger, VIEW):
                pass


def test_a_lease_can_be_waited_for(url: str) -> None:
    held_briefly = Lease(Ledger(url), VIEW)
    held_briefly.acquire()
    with pytest.raises(LeaseError), held(Ledger(url), VIEW, wait_s=0.1):
        pass
    threading.Timer(0.1, held_briefly.release).start()
    with held(Ledger(url), VIEW, wait_s=10) as lease:
        assert lease.owner != held_briefly.owner


def test_a_simulated_clock_does_not_move_leases(url: str) -> None:
    with simulated(0) as clock, held(Ledger(url), VIEW) as lease:
        clock.set(10**18)
        lease.check()
        with pytest.raises(LeaseError), held(Ledger(url), VIEW):
            pass


def test_a_worker_that_slept_through_its_lease_writes_nothing_more_to_the_ledger(url: str) -> None:
    # given a worker whose lease ran out, and was taken over
    slow, quick = Ledger(url), Ledger(url)
    with held(slow, VIEW, seconds=0.05):
        tick = slow.record_tick("users", start_us=0, end_us=1, created_from_us=None, targets=["a"])
        time.sleep(0.06)
        with held(quick, VIEW):
            quick.update_tick(tick, state="published", published_us=7)

        # when it goes on, then its write fails, and changes nothing
        with pytest.raises(LeaseError, match="taken over by another worker"):
            slow.update_tick(tick, state="published", published_us=9)
    assert quick.tick("users", 1).published_us == 7
    slow.update_tick(tick, rows=3)


def test_a_lease_that_ran_out_and_that_nobody_took_over_is_renewed_by_a_write(url: str) -> None:
    ledger = Ledger(url)
    with held(ledger, VIEW, seconds=0.05):
        time.sleep(0.06)
        ledger.record_tick("users", start_us=0, end_us=1, created_from_us=None, targets=["a"])

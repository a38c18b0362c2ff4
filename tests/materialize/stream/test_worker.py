"""Workers share a stream, die, stop, pause, and resume; nothing is lost, and the bits stay."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import kill_workers
import numpy as np
import pytest
from feast import FeatureStore
from repo_fixture import USERS, MakeRepo, SmallRepo, StoppedError, day, stopping_at, tiny_encoder
from stream_fixture import PARTITIONS, SINCE, by_hand, clicks, send, streamed
from watched_fixture import OPTIONS, until

from feast_embeddings.materialize.ledger import lanes_held, paused
from feast_embeddings.materialize.online import stream_key
from feast_embeddings.materialize.stream.declared import make_worker
from feast_embeddings.materialize.stream.micro_batch import MicroBatches
from feast_embeddings.materialize.stream.recompute import replay_stream
from feast_embeddings.materialize.stream.source import Source
from feast_embeddings.materialize.stream.worker import StreamOptions, StreamWorker
from feast_embeddings.materialize.upkeep import forget
from feast_embeddings.models.errors import DeclarationError, LeaseError
from feast_embeddings.transformations import Histories

pytestmark = pytest.mark.filterwarnings("ignore:Stream feature views are experimental:RuntimeWarning")


@contextmanager
def working(options: StreamOptions = OPTIONS) -> Iterator[StreamWorker]:
    worker = make_worker(FeatureStore("."), options=options)
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        yield worker
    finally:
        worker.stop()
        thread.join(20)
    assert not thread.is_alive()


def await_read(repo: SmallRepo, count: int, within_s: float = 30) -> dict[str, int]:
    ledger, deadline = repo.workspace.ledger, time.monotonic() + within_s
    while (found := ledger.stream_counts("user_embedding")).get("read", 0) < count:
        assert time.monotonic() < deadline, f"{found} of {count} read"
        time.sleep(0.02)
    return found


def test_a_worker_applies_what_comes_and_a_replay_has_the_same_bits(make_repo: MakeRepo) -> None:
    repo = streamed(make_repo, "Incremental(alpha=0.3)")
    sent = clicks(300, 1, SINCE, SINCE + 0.5)
    with working():
        for start in range(0, 300, 30):
            send(repo, sent[start : start + 30])
            time.sleep(0.03)
        counts = await_read(repo, 300)
    assert (counts["read"], counts["applied"]) == (300, 300)
    (live,) = replay_stream(repo.store)
    assert (live.diverged, live.rows > 0) == ([], True)
    np.testing.assert_array_equal(repo.histories().lengths, [10] * len(USERS))


def test_a_worker_of_a_plain_policy_ends_where_a_refresh_would(make_repo: MakeRepo) -> None:
    repo = streamed(make_repo)
    send(repo, clicks(100, 2, SINCE, SINCE + 0.5))
    with working():
        await_read(repo, 100)
    served, log = repo.histories(), repo.behaviors(day(SINCE + 1))
    assert served.times.tobytes() == Histories(log).as_of(USERS, day(SINCE + 1), 10).times.tobytes()
    assert tiny_encoder(1).dim == repo.vectors().values.shape[1]


def test_two_workers_share_the_lanes_and_one_takes_over_from_the_other(make_repo: MakeRepo) -> None:
    repo = streamed(make_repo)
    ledger = repo.workspace.ledger
    with working() as first:
        until(lambda: len(first._open) == 2)
        with working() as second:
            until(lambda: len(first._open) == len(second._open) == 1)
            send(repo, clicks(50, 3, SINCE, SINCE + 0.5))
            await_read(repo, 50)
        until(lambda: len(first._open) == 2)
        assert len(lanes_held(ledger, repo.project, "user_embedding")) == 2
    assert lanes_held(ledger, repo.project, "user_embedding") == []


def test_a_worker_that_loses_a_lane_while_it_takes_it_up_goes_on(
    make_repo: MakeRepo, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = streamed(make_repo)
    take_up = MicroBatches.take_up
    lost: list[MicroBatches] = []

    def slow(ticks: MicroBatches, source: Source) -> object:
        if not lost:
            lost.append(ticks)
            ticks.lease.release()  # it ran out, and another worker was quicker
            with repo.workspace.ledger.unguarded() as connection:
                ticks.lease.renew(connection)
        return take_up(ticks, source)

    monkeypatch.setattr(MicroBatches, "take_up", slow)
    with working() as worker:
        send(repo, clicks(20, 1, SINCE, SINCE + 0.5))
        await_read(repo, 20)
        assert len(worker._open) == 2
    assert lost


def test_a_pause_empties_the_lanes_and_they_go_on_afterwards(make_repo: MakeRepo) -> None:
    repo = streamed(make_repo)
    ledger = repo.workspace.ledger
    with working() as worker:
        until(lambda: len(worker._open) == 2)
        with paused(ledger, repo.project, "user_embedding"):
            send(repo, clicks(20, 4, SINCE, SINCE + 0.5))
            time.sleep(1)
            assert lanes_held(ledger, repo.project, "user_embedding") == []
            with pytest.raises(LeaseError), paused(ledger, repo.project, "user_embedding"):
                pass
            assert ledger.stream_counts("user_embedding") == {}
        await_read(repo, 20)


def test_workers_that_disagree_about_the_lanes_are_refused(make_repo: MakeRepo) -> None:
    streamed(make_repo)
    with working() as first:
        until(lambda: len(first._open) == 2)
        other = make_worker(FeatureStore("."), options=StreamOptions(partitions=PARTITIONS, lanes=1, lease_s=2))
        with pytest.raises(DeclarationError, match="another number of lanes"):
            other.run()


def test_what_was_begun_in_another_number_of_lanes_is_finished_first(make_repo: MakeRepo) -> None:
    repo = streamed(make_repo, "Incremental(alpha=0.3)")
    send(repo, clicks(30, 8, SINCE, SINCE + 0.5))
    with pytest.raises(StoppedError), stopping_at("recorded"), by_hand(repo) as lane:  # the only lane of one
        lane.tick()
    send(repo, clicks(30, 9, SINCE, SINCE + 0.5))
    with working():
        counts = await_read(repo, 60)
    assert (counts["read"], counts["applied"]) == (60, 60)
    assert repo.workspace.ledger.open_micro_batches("user_embedding") == []
    assert all(not each.diverged for each in replay_stream(repo.store))


def test_sigterm_ends_a_worker_within_seconds_and_another_resumes_where_it_was(make_repo: MakeRepo) -> None:
    repo = streamed(make_repo)
    process = kill_workers.spawn()
    kill_workers.await_workers(repo, 1)
    send(repo, clicks(200, 5, SINCE, SINCE + 0.5))
    await_read(repo, 1)
    send(repo, clicks(200, 6, SINCE, SINCE + 0.5))
    began = time.monotonic()
    assert kill_workers.end(process) == 0
    assert time.monotonic() - began < 5
    with working():
        counts = await_read(repo, 400)
    assert (counts["read"], counts["applied"]) == (400, 400)
    assert all(not each.diverged for each in replay_stream(repo.store))


def test_kill_9_duplicates_and_disorder_lose_nothing(make_repo: MakeRepo) -> None:
    outcome = kill_workers.run(
        streamed(make_repo, "Incremental(alpha=0.3)"), seconds=7, rate=150, kill_every_s=1.5, seed=1
    )
    kill_workers.check(outcome)
    assert outcome.kills >= 2


def test_a_refresh_pauses_the_stream_and_both_end_where_everything_is_known(make_repo: MakeRepo) -> None:
    repo = streamed(make_repo, "Incremental(alpha=0.3)")
    send(repo, clicks(60, 7, SINCE, SINCE + 0.5))
    with working():
        await_read(repo, 60)
        old = repo.fills("live")[0].fill
        repo.run(day(SINCE + 2), refresh=True)
        send(repo, clicks(60, 8, SINCE, SINCE + 0.5))
        await_read(repo, 120)
    assert repo.fills("live")[0].fill != old
    replayed = replay_stream(repo.store)
    assert [each.diverged for each in replayed] == [[], []]  # the retained generation went on receiving ticks
    log = repo.behaviors(day(SINCE + 1))
    assert repo.histories().times.tobytes() == Histories(log).as_of(USERS, day(SINCE + 1), 10).times.tobytes()


def test_materialize_incremental_leaves_the_ticks_to_the_stream(make_repo: MakeRepo) -> None:
    repo = streamed(make_repo, "Hybrid(every='1d', full_every='3d')")
    send(repo, clicks(30, 9, SINCE, SINCE + 0.5))
    with working():
        await_read(repo, 30)
    outcome = repo.run(day(SINCE + 1))
    assert (outcome.units, outcome.rows) == (0, 0)
    assert any("stream" in notice for notice in outcome.notices)
    assert repo.run(day(SINCE + 3)).units == 1
    assert repo.workspace.ledger.last_tick("user_embedding").kind == "full"


def test_forgetting_pauses_the_stream_and_what_comes_later_is_erased(make_repo: MakeRepo) -> None:
    repo = streamed(make_repo)
    sent = clicks(60, 10, SINCE, SINCE + 0.5)
    gone = sent[0]["user"]
    with working():
        send(repo, sent)
        await_read(repo, 60)
        forget(repo.store, "user", str(gone))
        again = [each | {"id": f"again-{each['id']}"} for each in sent]
        send(repo, again)
        counts = await_read(repo, 120)
    assert counts["erased"] == sum(each["user"] == gone for each in again)
    assert not repo.vectors().found[gone == USERS][0]
    with repo.redis() as client:  # what is done with is not kept
        keys = [stream_key(repo.project, "behaviors", partition) for partition in range(PARTITIONS)]
        assert [client.xlen(key) for key in keys] == [1, 1]


def test_memory_stays_flat_for_a_while(make_repo: MakeRepo) -> None:
    found = kill_workers.soak(streamed(make_repo), seconds=15, rate=200, seed=2)
    found.check(most_growth=0.25)  # the first seconds load libraries still

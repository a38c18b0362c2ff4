"""A Redis that is not what the ledger knows is noticed before a tick counts on it, and restored to the bit."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import Callable
from typing import Any

import pytest
import torch
from repo_fixture import MakeRepo, SmallRepo, at, day, shop, tiny_encoder
from stream_fixture import SINCE, by_hand, clicks, send, streamed
from ticks_fixture import encoded_by_hand, started, tick_at

from feast_embeddings.materialize.stream import replay_stream
from feast_embeddings.materialize.ticks import listening
from feast_embeddings.materialize.upkeep import restore
from feast_embeddings.models.errors import LedgerError, OnlineStoreError

pytestmark = pytest.mark.filterwarnings("ignore:Stream feature views are experimental:RuntimeWarning")
BLENDING = "Incremental(alpha=0.5)"
Keys = dict[bytes, bytes]


def snapshot(repo: SmallRepo) -> Keys:
    """What Redis holds of a repo, as its snapshot on a disk would."""
    with repo.redis() as client:
        return {key: client.dump(key) for key in client.scan_iter() if repo.project.encode() in key}


def back_to(repo: SmallRepo, keys: Keys) -> None:
    """Redis was started from an older snapshot, or a replica without the last writes took over."""
    with repo.redis() as client:
        for key in snapshot(repo):
            client.delete(key)
        for key, value in keys.items():
            client.restore(key, 0, value)


def meanwhile(step: str, act: Callable[[], Any]) -> Any:
    """Something happens once, where a job comes to ``step``."""
    acts = [act]

    def listener(name: str) -> None:
        if name == step and acts:
            acts.pop()()

    return listening(listener)


@pytest.fixture
def repo(make_repo: MakeRepo) -> SmallRepo:
    """Live as of day 4, with a tick up to day 5."""
    made = started(make_repo, BLENDING)
    tick_at(made, 5)
    return made


def undisturbed(repo: SmallRepo, work: Callable[[], Any]) -> bytes:
    """What a repo serves after some work that nothing disturbs; it is where it was, afterwards."""
    frozen = repo.freeze()
    work()
    found = repo.vectors().values.tobytes()
    repo.thaw(frozen)
    shutil.rmtree(frozen.folder)
    return found


OLDER = "went back to an older state"


@pytest.mark.parametrize("emptied", [False, True], ids=["an older snapshot", "emptied"])
def test_a_tick_refuses_a_redis_that_lost_the_one_before_and_restore_leads_on(repo: SmallRepo, emptied: bool) -> None:
    wanted = undisturbed(repo, lambda: (tick_at(repo, 6), tick_at(repo, 7)))
    # given a Redis without the last tick
    before = {} if emptied else snapshot(repo)
    tick_at(repo, 6)
    back_to(repo, before)
    # when the next job runs, or one that has nothing to do, then it says so, and changes nothing
    for end in (7, 6):
        with pytest.raises(OnlineStoreError, match=OLDER):
            tick_at(repo, end)
    assert snapshot(repo) == before
    # and restore brings back what was served, from where ticks go on
    restore(repo.store)
    tick_at(repo, 7)
    assert repo.vectors().values.tobytes() == wanted


@pytest.mark.parametrize("step", ["members", "staged", "window", "chunk"])
def test_a_loss_in_the_middle_of_a_tick_is_noticed_before_it_counts(repo: SmallRepo, step: str) -> None:
    wanted = undisturbed(repo, lambda: (tick_at(repo, 6), tick_at(repo, 7)))
    before = snapshot(repo)
    tick_at(repo, 6)
    # when Redis goes back while the next tick is at work
    with meanwhile(step, lambda: back_to(repo, before)), pytest.raises(OnlineStoreError, match=OLDER):
        tick_at(repo, 7)
    # then it is not published, and after restore its next try ends in the bits of an undisturbed run
    assert repo.workspace.ledger.open_tick("user_embedding", "incremental") is not None
    restore(repo.store)
    tick_at(repo, 7)
    assert repo.vectors().values.tobytes() == wanted


@pytest.mark.parametrize("step", ["staged", "chunk", "written", "cutover-recorded"])
def test_a_refresh_that_redis_lost_does_not_become_live(repo: SmallRepo, step: str) -> None:
    repo.encode_with(tiny_encoder(2))
    tick_at(repo, 5, "item_embedding", refresh=True)
    wanted = undisturbed(repo, lambda: tick_at(repo, 6, refresh=True))
    live = repo.fills("live")
    # when Redis is emptied before its cutover
    with meanwhile(step, lambda: back_to(repo, {})):
        try:
            tick_at(repo, 6, refresh=True)
        except OnlineStoreError:
            assert repo.fills("live") == live
            restore(repo.store)
            tick_at(repo, 6, refresh=True)
    # then what becomes live in the end is whole
    assert repo.vectors().values.tobytes() == wanted


@pytest.mark.parametrize("step", ["recorded", "cutover-recorded", "cutover-logged"])
def test_a_first_generation_that_redis_lost_is_written_again(make_repo: MakeRepo, step: str) -> None:
    repo = make_repo(policy=BLENDING)
    repo.deliver(shop(8), "shop")
    repo.encode_with(tiny_encoder(1))
    tick_at(repo, 4)
    # when Redis is emptied while the users' vectors wait for those of the items, or at the cutover
    with meanwhile(step, lambda: back_to(repo, {})), pytest.raises(OnlineStoreError, match="which was ready"):
        tick_at(repo, 4, "item_embedding")
    assert repo.fills("live") == []
    # then the next jobs write them again
    for view in ("user_embedding", "item_embedding", "user_embedding"):
        with contextlib.suppress(OnlineStoreError):
            tick_at(repo, 4, view)
    assert repo.fills("live")
    assert repo.vectors().values.tobytes() == encoded_by_hand(repo, 4).tobytes()


def test_a_ledger_that_is_older_than_redis_is_refused(repo: SmallRepo) -> None:
    # given a ledger from a backup, and a Redis and a log that are newer
    ledger = repo.folder / "data" / "embeddings" / "ledger.db"
    with sqlite3.connect(ledger) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    backup = ledger.read_bytes()
    tick_at(repo, 6)
    for each in ledger.parent.glob("ledger.db*"):
        each.unlink()
    ledger.write_bytes(backup)
    repo._store = None
    before, served = {path: path.read_bytes() for path in repo.folder.rglob("*.parquet")}, snapshot(repo)
    # then no job goes on, and nothing is written over what is newer
    with pytest.raises(LedgerError, match="the ledger is older than this Redis"):
        tick_at(repo, 7)
    assert {path: path.read_bytes() for path in repo.folder.rglob("*.parquet")} == before
    assert snapshot(repo) == served


def test_a_stream_notices_what_a_batch_job_does(make_repo: MakeRepo) -> None:
    repo = streamed(make_repo, BLENDING)
    sent = clicks(30, 1, SINCE, SINCE + 0.5)
    with at(day(SINCE + 1)) as clock:
        with by_hand(repo) as lane:
            send(repo, sent[:10])
            lane.tick()
            # given a Redis that goes back while a worker is at work: its rows, not what waits in the streams
            before = {key: value for key, value in snapshot(repo).items() if b"behaviors" not in key}
            clock.advance(1_000_000)
            send(repo, sent[10:20])
            lane.tick()
            waiting = {key: value for key, value in snapshot(repo).items() if b"behaviors" in key}
            back_to(repo, before | waiting)
            clock.advance(1_000_000)
            send(repo, sent[20:])
            with pytest.raises(OnlineStoreError, match=OLDER):
                lane.tick()
        # then no other worker begins either, until what was lost is restored; nothing is missing then
        with pytest.raises(OnlineStoreError, match=OLDER), by_hand(repo):
            pass
        restore(repo.store)
        with by_hand(repo) as lane:
            lane.tick()
            assert lane.ledger.stream_counts("user_embedding")["applied"] == 30
    assert all(not each.diverged for each in replay_stream(repo.store))


def test_a_stream_does_not_begin_where_the_live_generation_is_gone(make_repo: MakeRepo) -> None:
    repo = streamed(make_repo)
    back_to(repo, {})
    with at(day(SINCE + 1)), pytest.raises(OnlineStoreError, match="does not hold generation 1"), by_hand(repo):
        pass


def test_a_full_refresh_fills_an_emptied_redis(repo: SmallRepo) -> None:
    back_to(repo, {})
    tick_at(repo, 6, "item_embedding", refresh=True)
    tick_at(repo, 6, refresh=True)
    tick_at(repo, 7)
    assert repo.vectors().values.any(axis=1).all()


def test_an_encoder_that_makes_no_numbers_serves_nothing(repo: SmallRepo) -> None:
    served, live = repo.vectors().values.tobytes(), repo.fills("live")
    broken = tiny_encoder(1)
    with torch.no_grad():
        for weights in broken.parameters():
            weights.fill_(torch.nan)
    repo.encode_with(broken)
    with pytest.raises(OnlineStoreError, match="not finite"):
        tick_at(repo, 6, refresh=True)
    assert repo.vectors().values.tobytes() == served
    assert repo.fills("live") == live

"""Ticks go on while a refresh is made: it ends as if it had been done first, and the ticks afterwards."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fault_schedules import small_chunks
from repo_fixture import (
    USERS,
    MakeRepo,
    SmallRepo,
    StoppedError,
    at,
    day,
    moment,
    rows,
    stopping_at,
    tiny_encoder,
)
from ticks_fixture import started

from feast_embeddings.materialize.clock import now_us
from feast_embeddings.materialize.ledger import held, refresh_resource, view_resource
from feast_embeddings.materialize.ticks import runner
from feast_embeddings.materialize.ticks.milestones import CATCH_UP, TICK, listening
from feast_embeddings.materialize.upkeep import restore
from feast_embeddings.models.errors import LeaseError

CREATED = 'created_time="created"'
POLICIES = (
    "Hybrid(alpha=0.5, full_every='30d')",
    "Incremental(half_life='2d', context='new')",
    "Incremental()",
)
PAUSES = [step for step in TICK if step not in ("logged", "published")]


@contextmanager
def meanwhile(step: str, act: Callable[[], Any], nth: int = 1) -> Iterator[None]:
    """Once the job comes to ``step`` for the ``nth`` time, something else happens first."""
    left = nth

    def listener(name: str) -> None:
        nonlocal left
        if name == step and left > 0:
            left -= 1
            if left == 0:
                act()

    with listening(listener):
        yield
    assert left == 0, f"the job never came to {step}"


SETTLED_US = 1000
"""Where a clock stands still, each publication and cutover is a microsecond after the one before."""


def _ready(make_repo: MakeRepo, policy: str = POLICIES[0], *, context: int = 10, contract: str = "") -> SmallRepo:
    """Live as of day 4, with another encoder declared."""
    repo = started(make_repo, policy, contract=contract)
    repo.encode_with(tiny_encoder(2, context=context))
    with at(day(4)):
        repo.run(day(4), "item_embedding", refresh=True)
    return repo


def _ticks(repo: SmallRepo, end: float) -> Callable[[], None]:
    """A job that runs ticks up to a day, with stores and a ledger of its own."""

    def run() -> None:
        SmallRepo(repo.folder, repo.connection, repo.project).run(day(end))

    return run


def _state(repo: SmallRepo, *states: str) -> dict[str, Any]:
    """Vectors by state of their fill, what reads return, and histories; bits."""
    found: dict[str, Any] = {}
    for fill in repo.fills(*states):
        stored = repo.rows_of(fill.fill)
        found[f"{fill.state} in {fill.space}"] = (stored.vectors.tobytes(), stored.tick_end_us.tolist())
    live = repo.vectors()
    history = repo.histories()
    columns = (history.offsets, history.items, history.behavior_types, history.times, history.values)
    return found | {"read": (live.space, live.values.tobytes()), "history": [each.tobytes() for each in columns]}


def _served(repo: SmallRepo, us: int) -> np.ndarray:
    """Vectors of every user at a time, by historical retrieval; float32 [n, dim], zero where there is none."""
    asked = pd.DataFrame({"user_id": USERS, "event_timestamp": [moment(us)] * len(USERS)})
    found = repo.store.get_historical_features(asked, ["user_embedding:embedding"]).to_arrow()
    of = dict(zip(found["user_id"].to_pylist(), found["embedding"].to_pylist(), strict=True))
    return np.array([of[user] or [0.0] * repo.dim for user in USERS], np.float32)


# ── bit for bit as one after the other ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("context", [10, 14], ids=["same context", "longer context"])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_refresh_that_ticks_overtake_ends_as_if_it_had_been_first(
    make_repo: MakeRepo, policy: str, context: int
) -> None:
    # given the refresh and then the ticks, one after the other
    repo = _ready(make_repo, policy, context=context)
    frozen = repo.freeze()
    with at(day(7)):
        repo.run(day(4), refresh=True)
        repo.run(day(7))
    wanted = _state(repo, "live", "retained")
    ends = [tick.end_us for tick in repo.workspace.ledger.applied_ticks("user_embedding")]

    # when the ticks run at any step of the refresh
    for step in PAUSES if policy == POLICIES[0] else PAUSES[2:4]:
        repo.thaw(frozen)
        with at(day(7)), small_chunks(), meanwhile(step, _ticks(repo, 7)):
            repo.run(day(4), refresh=True)
        # then nothing differs
        assert _state(repo, "live", "retained") == wanted, step
        found = [tick.end_us for tick in repo.workspace.ledger.applied_ticks("user_embedding")]
        assert found == ends, step
        with at(day(7) + SETTLED_US):
            np.testing.assert_array_equal(_served(repo, day(7) + SETTLED_US), repo.vectors().values, step)
    with at(day(8)):
        repo.run(day(8))
        np.testing.assert_array_equal(_served(repo, day(8)), repo.vectors().values)


def test_behaviors_of_the_refresh_reach_the_fill_in_use_when_ticks_overtake_it(make_repo: MakeRepo) -> None:
    """The refresh is as of a time that the ticks have not come to: they apply its members first, counted once."""
    repo = _ready(make_repo, contract=CREATED)
    late = rows(user=[3, 5], item=[101, 102], at=[day(1.5), day(2.5)], id=["a", "b"], created=[day(4.2), day(6.5)])
    repo.deliver(late, "late")
    frozen = repo.freeze()
    with at(day(6)):
        repo.run(day(4.5), refresh=True)
    with at(day(7)):
        repo.run(day(7))
    wanted, reads = _state(repo, "live"), repo.counts()["read"]
    repo.thaw(frozen)

    def later() -> None:
        clock.set(day(7))
        _ticks(repo, 7)()

    with at(day(6)) as clock, small_chunks(), meanwhile("staged", later):
        repo.run(day(4.5), refresh=True)
    assert _state(repo, "live") == wanted
    assert repo.counts()["read"] == reads == len(repo.behaviors(day(6.5)))
    ledger = repo.workspace.ledger
    kinds = [(tick.kind, tick.end_us) for tick in ledger.applied_ticks("user_embedding")]
    assert kinds[1:] == [
        ("full", day(4.5)),
        ("incremental", day(4.5)),
        ("incremental", day(5.5)),
        ("incremental", day(6.5)),
    ]
    for number in range(1, len(kinds) + 1):
        counts = ledger.counts("user_embedding", number)
        assert counts.get("read", 0) == sum(count for what, count in counts.items() if what != "read"), (number, counts)
    # and the generation before is as fresh as if there had been no refresh
    (retained,) = repo.fills("retained")
    assert repo.rows_of(retained.fill).tick_end_us.max() == day(6.5)
    with at(day(8)):
        repo.run(day(8))
        np.testing.assert_array_equal(_served(repo, day(8)), repo.vectors().values)


@pytest.mark.parametrize("step", [*CATCH_UP, "cutover-recorded", "cutover-switched", "cutover-logged"])
@pytest.mark.parametrize("nth", [1, 2])
def test_catching_up_that_is_stopped_is_taken_up_and_ends_alike(
    make_repo: MakeRepo, monkeypatch: pytest.MonkeyPatch, step: str, nth: int
) -> None:
    monkeypatch.setattr("feast_embeddings.materialize.ticks.catch_up.MOST_TICKS", 2)  # of three that come
    if nth == 2 and step not in ("chunk", "caught-up-staged", "caught-up"):
        return
    repo = _ready(make_repo)
    frozen = repo.freeze()
    with at(day(7)), meanwhile("written", _ticks(repo, 7)):
        repo.run(day(4), refresh=True)
    wanted = _state(repo, "live", "retained")
    log = repo.log()

    repo.thaw(frozen)
    caught: list[str] = []

    def after(name: str) -> None:
        if caught or name == "written":
            caught.append(name)
        if caught[1:].count(step) == nth and name == step:
            raise StoppedError(step)

    with at(day(7)), small_chunks():
        with meanwhile("staged", _ticks(repo, 7)), listening(_after_ticks(after)), pytest.raises(StoppedError):
            repo.run(day(4), refresh=True)
        repo.run(day(7))
    assert _state(repo, "live", "retained") == wanted
    assert repo.log() == log
    assert not list((repo.folder / "data/embeddings/log/user_embedding/staged").iterdir())


def _after_ticks(listener: Callable[[str], None]) -> Callable[[str], None]:
    """Hears nothing before the ticks in between have been published."""
    published = 0

    def hear(name: str) -> None:
        nonlocal published
        published += name == "published"
        if published >= 3:
            listener(name)

    return hear


# ── leases ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_two_refreshes_fence_each_other_off_and_so_do_two_jobs_of_ticks(make_repo: MakeRepo) -> None:
    repo = _ready(make_repo)
    said: list[str] = []

    def second() -> None:
        with pytest.raises(LeaseError) as caught:
            SmallRepo(repo.folder, repo.connection, repo.project).run(day(4), refresh=True)
        said.append(str(caught.value))

    def second_ticks() -> None:
        with pytest.raises(LeaseError) as caught:
            _ticks(repo, 5)()
        said.append(str(caught.value))

    with at(day(5)):
        with meanwhile("staged", second):
            repo.run(day(4), refresh=True)
        with meanwhile("members", second_ticks):
            repo.run(day(5))
    assert "refresh of view 'user_embedding'" in said[0]
    assert said[1].startswith("view 'user_embedding'")
    assert all("run again" in each for each in said)
    assert repo.last_tick().end_us == day(5)


def test_a_refresh_beside_a_job_of_ticks_waits_for_its_tick_and_then_catches_up(make_repo: MakeRepo) -> None:
    """The other way round: the refresh begins, in another thread, while a tick is at work."""
    repo = _ready(make_repo, POLICIES[1])
    frozen = repo.freeze()
    with at(day(6)):
        repo.run(day(5))
        repo.run(day(5), refresh=True)
        repo.run(day(6))
    wanted = _state(repo, "live", "retained")
    repo.thaw(frozen)
    other = SmallRepo(repo.folder, repo.connection, repo.project)
    thread = threading.Thread(target=lambda: other.run(day(5), refresh=True))
    begun = threading.Event()

    def begin() -> None:
        thread.start()
        assert begun.wait(20)

    def listener(name: str) -> None:
        if threading.current_thread() is thread and name == "recorded":
            begun.set()

    with at(day(6)), listening(listener), meanwhile("members", begin):
        repo.run(day(6))
        thread.join(60)
    assert _state(repo, "live", "retained") == wanted


def test_a_job_of_ticks_waits_for_the_last_round_of_a_refresh(
    make_repo: MakeRepo, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = _ready(make_repo)
    monkeypatch.setattr(runner, "LAST_ROUND_WAIT_S", 0.3)

    def refused() -> None:
        with pytest.raises(LeaseError, match="being worked on"):
            _ticks(repo, 5)()

    with at(day(5)), meanwhile("caught-up-all", refused):
        repo.run(day(4), refresh=True)
    ledger = repo.workspace.ledger
    names = [refresh_resource(repo.project, "user_embedding"), view_resource(repo.project, "user_embedding")]
    with held(ledger, names[0], owner="elsewhere:1:a"), held(ledger, names[1], owner="elsewhere:1:a") as lease:
        threading.Timer(0.1, lease.release).start()
        monkeypatch.setattr(runner, "LAST_ROUND_WAIT_S", 30.0)
        with at(day(5)):
            _ticks(repo, 5)()
    assert repo.last_tick().end_us == day(5)


# ── what a stopped job left ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("step", ["recorded", "members", "staged", "written", "logged"])
def test_a_tick_that_stopped_beside_a_refresh_is_finished_by_its_last_round(make_repo: MakeRepo, step: str) -> None:
    repo = _ready(make_repo)
    frozen = repo.freeze()
    with at(day(5)):
        repo.run(day(4), refresh=True)
        repo.run(day(5))
    wanted = _state(repo, "live", "retained")
    repo.thaw(frozen)

    def stopped() -> None:
        with stopping_at(step), pytest.raises(StoppedError):
            _ticks(repo, 5)()

    with at(day(5)), meanwhile("window", stopped):
        repo.run(day(4), refresh=True)
    assert _state(repo, "live", "retained") == wanted


def test_a_restore_beside_a_stopped_refresh_does_not_keep_it_from_ending_alike(make_repo: MakeRepo) -> None:
    repo = _ready(make_repo)
    frozen = repo.freeze()
    with at(day(6)):
        repo.run(day(4), refresh=True)
        repo.run(day(6))
    wanted = _state(repo, "live")
    repo.thaw(frozen)
    with at(day(6)):
        with meanwhile("staged", _ticks(repo, 6)), stopping_at("caught-up", 1), pytest.raises(StoppedError):
            repo.run(day(4), refresh=True)
        with repo.redis() as client:
            client.delete(*repo._keys(client))
        restore(repo.store)
        repo.run(day(6))
        assert now_us() == day(6)
    assert _state(repo, "live") == wanted


def test_histories_in_the_past_are_those_that_were_served_beside_a_refresh(make_repo: MakeRepo) -> None:
    repo = _ready(make_repo, contract=CREATED)
    seen: dict[int, Any] = {}

    def look() -> None:
        seen[now_us()] = _histories(repo)
        clock.advance(1_000_000)

    def between() -> None:
        look()
        clock.advance(1_000_000)
        _ticks(repo, 6)()
        clock.advance(1_000_000)
        look()

    with at(day(6)) as clock:
        look()
        with meanwhile("staged", between):
            repo.run(day(4.5), refresh=True)
        clock.advance(1_000_000)
        look()
        clock.set(day(7))
        repo.run(day(7))
        clock.advance(1_000_000)
        look()
        for us, wanted in seen.items():
            assert _histories_then(repo, us) == wanted, (us - day(6)) / 1e6


def _histories(repo: SmallRepo) -> dict[int, list[int]]:
    batch = repo.histories()
    return {
        int(user): batch.times[batch.offsets[row] : batch.offsets[row + 1]].tolist()
        for row, user in enumerate(USERS)
        if batch.offsets[row + 1] > batch.offsets[row]
    }


def _histories_then(repo: SmallRepo, us: int) -> dict[int, list[int]]:
    asked = pd.DataFrame({"user_id": USERS, "event_timestamp": [moment(us)] * len(USERS)})
    found = repo.store.get_historical_features(asked, ["history:history_times"]).to_arrow()
    pairs = zip(found["user_id"].to_pylist(), found["history_times"].to_pylist(), strict=True)
    return {user: times for user, times in pairs if times}

"""Faults: a job stopped at any step, and any schedule of them, ends as if nothing had happened."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fault_schedules import POLICIES, Schedule, World, small_chunks
from overlap_schedules import ENDS, OverlapSchedule, OverlapWorld
from overlap_schedules import POLICIES as TICKING
from repo_fixture import (
    Frozen,
    MakeRepo,
    SmallRepo,
    StoppedError,
    at,
    day,
    shop,
    stopping_at,
    tiny_encoder,
)
from stream_overlap_schedules import CASES as BESIDE
from stream_overlap_schedules import StreamOverlapSchedule, StreamOverlapWorld

from feast_embeddings.materialize.ticks import CUTOVER, RETIREMENT, TICK

REFRESH_STEPS = [
    *[(step, 1) for step in TICK if step not in ("chunk", "logged", "published")],
    ("chunk", 1),
    ("chunk", 2),
    ("caught-up-all", 1),
    *[(step, 1) for step in CUTOVER],
    *[(step, 1) for step in RETIREMENT],
]
TICK_STEPS = [*[(step, 1) for step in TICK if step != "chunk"], *[("chunk", nth) for nth in (1, 2, 3)]]
COMMITTED = ("published", *CUTOVER, *RETIREMENT)


# ── one fault, at every step ─────────────────────────────────────────────────────────────────────────────────


class Undisturbed:
    """A repo before and after a job that nothing stops."""

    def __init__(self, repo: SmallRepo, end: float) -> None:
        self.repo, self.end = repo, end
        self.before: Frozen = repo.freeze()
        self.seen_before = repo.snapshot()
        self.watermark, self.tick = repo.feast_watermark(), repo.last_tick()
        self.job()
        self.after = repo.snapshot()

    def job(self) -> None:
        with at(day(self.end)):
            self.repo.incremental(day(self.end), ["user_embedding"])


@pytest.fixture(scope="module")
def module_repo(valkey: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Makes repos that last for the module."""
    here = Path.cwd()
    made = 0

    def make(**options: Any) -> SmallRepo:
        nonlocal made
        made += 1
        folder = tmp_path_factory.mktemp("faults")
        os.chdir(folder)
        return SmallRepo(folder, valkey, f"faults{made}x{os.getpid()}", **options).write()

    yield make
    os.chdir(here)


def _two_spaces(make: MakeRepo, policy: str) -> SmallRepo:
    """A repo at day 4, with a live and a retained generation of different spaces."""
    repo = make(policy=policy)
    repo.deliver(shop(8), "shop")
    for end, seed in ((2, 1), (3, 2)):
        repo.encode_with(tiny_encoder(seed))
        with at(day(end)):
            repo.materialize(day(end))
    with at(day(4)):
        repo.incremental(day(4))
    return repo


@pytest.fixture(scope="module")
def refresh(module_repo: MakeRepo) -> Undisturbed:
    return Undisturbed(_two_spaces(module_repo, "Hybrid(alpha=0.5, full_every='2d')"), 5)


@pytest.fixture(scope="module")
def tick(module_repo: MakeRepo) -> Undisturbed:
    return Undisturbed(_two_spaces(module_repo, "Hybrid(alpha=0.5, full_every='30d')"), 5)


def _survives(run: Undisturbed, monkeypatch: pytest.MonkeyPatch, step: str, nth: int, *, whole: bool) -> None:
    repo = run.repo
    monkeypatch.chdir(repo.folder)
    repo.thaw(run.before)
    with stopping_at(step, nth), pytest.raises(StoppedError):
        run.job()
    assert repo.feast_watermark() == run.watermark, "Feast's own watermark moved"
    if step not in COMMITTED and not (whole and step == "written"):
        assert repo.last_tick() == run.tick, "the ledger's watermark moved"
    seen = repo.vectors()
    assert seen.space == repo.vectors("item_embedding").space
    old, new = (np.frombuffer(state["user_embedding read"], np.float32) for state in (run.seen_before, run.after))
    old, new = old.reshape(seen.values.shape), new.reshape(seen.values.shape)
    if whole:
        assert seen.values.tobytes() in (old.tobytes(), new.tobytes()), "half a generation is visible"
    assert np.all((seen.values == old).all(1) | (seen.values == new).all(1)), "half a vector is visible"
    run.job()
    found = repo.snapshot()
    for name, wanted in run.after.items():
        assert found[name] == wanted, name
    assert not list((repo.folder / "data/embeddings/log/user_embedding/staged").iterdir()), "a staged file is left"
    assert repo.feast_watermark() > run.watermark


@pytest.mark.parametrize(("step", "nth"), REFRESH_STEPS)
def test_a_refresh_stopped_at_any_step_ends_alike(
    refresh: Undisturbed, monkeypatch: pytest.MonkeyPatch, step: str, nth: int
) -> None:
    _survives(refresh, monkeypatch, step, nth, whole=True)


@pytest.mark.parametrize(("step", "nth"), TICK_STEPS)
def test_a_tick_stopped_at_any_step_ends_alike(
    tick: Undisturbed, monkeypatch: pytest.MonkeyPatch, step: str, nth: int
) -> None:
    _survives(tick, monkeypatch, step, nth, whole=False)


# ── any schedule of faults ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("policy", POLICIES)
def test_any_schedule_of_faults_ends_alike(make_repo: MakeRepo, policy: str) -> None:
    """A sample of what `make faults` runs by the thousand; the last schedule's stops are kill -9 of a process."""
    with small_chunks():
        world = World.made(make_repo, policy)
        happened: Counter[str] = Counter()
        for seed in range(4):
            happened += Schedule(world, random.Random(seed), kills=seed == 3).run()  # noqa: S311 - a schedule
    assert happened["took over"] > 0
    assert sum(count for what, count in happened.items() if what.startswith("stopped at")) > 0


@pytest.mark.parametrize(("policy", "end"), [(TICKING[0], ENDS[0]), (TICKING[1], ENDS[1])])
def test_any_schedule_of_ticks_beside_a_refresh_ends_as_one_after_the_other(
    make_repo: MakeRepo, policy: str, end: float
) -> None:
    """A sample, as above: ticks at any step of the refresh, both stopped anywhere; the last one's stops are kill -9."""
    with small_chunks():
        world = OverlapWorld.overlapping(make_repo, policy, end)
        happened: Counter[str] = Counter()
        for seed in range(4):
            happened += OverlapSchedule(world, random.Random(seed), kills=seed == 3).run()  # noqa: S311 - a schedule
    assert sum(count for what, count in happened.items() if what.startswith("ticks beside it")) > 0
    assert sum(count for what, count in happened.items() if what.startswith("stopped at")) > 0


@pytest.mark.parametrize(("policy", "context"), [BESIDE[1], BESIDE[2], BESIDE[4]])
def test_any_schedule_of_micro_batches_beside_a_refresh_ends_as_one_after_the_other(
    make_repo: MakeRepo, policy: str, context: int
) -> None:
    """A sample: micro-batches at any step of the refresh, both stopped anywhere."""
    with small_chunks():
        world = StreamOverlapWorld.made(make_repo, policy, context)
        happened: Counter[str] = Counter()
        for seed in range(3):
            schedule = StreamOverlapSchedule(world, random.Random(seed))  # noqa: S311 - a schedule
            schedule.run()
            happened += schedule.faults
    assert happened["micro-batches"] > 0
    assert happened["refresh stopped"] + happened["worker stopped"] > 0


# ── killed ───────────────────────────────────────────────────────────────────────────────────────────────────

_KILLED = """
import os, signal, sys, warnings
warnings.simplefilter("ignore")
from feast.cli.cli import cli
from feast_embeddings.materialize.ticks.milestones import listening
left = int(sys.argv[2])
def stop(name):
    global left
    left -= name == sys.argv[1]
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
with listening(stop):
    cli(sys.argv[3:])
"""


def test_a_killed_materialize_is_finished_by_the_next_one(make_repo: MakeRepo) -> None:
    repo = make_repo(policy="Hybrid(alpha=0.5)")
    repo.deliver(shop(8), "shop")
    repo.encode_with(tiny_encoder(1))
    with at(day(3)):
        repo.materialize(day(3))
    frozen = repo.freeze()
    command = ["materialize", "2024-01-01T00:00:00", "2024-03-06T00:00:00", "-v", "user_embedding"]
    with at(day(5)):
        repo.materialize(day(5), ["user_embedding"])
    wanted, histories = repo.vectors().values.tobytes(), repo.snapshot()["history"]
    repo.thaw(frozen)
    before = repo.vectors().values.tobytes()
    killed = subprocess.run([sys.executable, "-c", _KILLED, "chunk", "1", *command], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert repo.vectors().values.tobytes() == before
    assert repo.last_tick().end_us == day(3)
    feast = Path(sys.executable).with_name("feast")
    again = subprocess.run([feast, *command], capture_output=True, text=True, check=True)
    assert "took up tick 2" in again.stdout
    assert repo.vectors().values.tobytes() == wanted
    assert repo.snapshot()["history"] == histories

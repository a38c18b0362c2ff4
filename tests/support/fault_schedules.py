"""Schedules of faults, drawn from a seed: a few days of a small repo in which jobs are stopped, killed or left behind.

Every schedule ends in the bits of the undisturbed run of the same days, or :class:`DivergedError` says what differs.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import sqlalchemy as sa
from repo_fixture import (
    VIEWS,
    MakeRepo,
    SmallRepo,
    StoppedError,
    at,
    day,
    retiring_never,
    rows,
    shop,
    tiny_encoder,
)

from feast_embeddings.materialize.ledger import leases, metadata
from feast_embeddings.materialize.online import OnlineServer, detach_all
from feast_embeddings.materialize.ticks import listening
from feast_embeddings.models.errors import LeaseError

POLICIES = (
    "Hybrid(alpha=0.5, full_every='3d')",
    "Incremental(half_life='2d', context='new')",
    "Full(every='1d')",
    "Hybrid(half_life='1d', full_every='2d')",
)
COMMITTING = ("published", "cutover-recorded")
LATE = rows(
    user=[3, 30, 3],
    item=[101, 102, 103],
    at=[day(1.5), day(2.5), day(3.5)],
    id=["late-1", "late-2", "late-3"],
    created=[day(5.4)] * 3,
)


class DivergedError(AssertionError):
    """A disturbed run did not end as the undisturbed one."""


@dataclass(frozen=True)
class Job:
    """One command: a view's job at a day; ``refresh`` is `feast materialize`."""

    day: int
    view: str
    refresh: bool = False


@dataclass
class World:
    """A repo with a live and a retained generation, and what its next days come to when nothing disturbs them."""

    repo: SmallRepo
    jobs: tuple[Job, ...]
    start: Any
    undisturbed: dict[str, Any] = field(default_factory=dict)
    steps: dict[Job, int] = field(default_factory=dict)

    @classmethod
    def made(cls, make_repo: MakeRepo, policy: str) -> World:
        """Two generations by day 4; on day 6 another encoder, and late behaviors."""
        repo = make_repo(policy=policy, contract='created_time="created"')
        repo.deliver(shop(8), "shop")
        for end, seed in ((2, 1), (3, 2)):
            repo.encode_with(tiny_encoder(seed))
            with at(day(end)):
                repo.materialize(day(end))
        with at(day(4)):
            repo.incremental(day(4))
        refresh = policy.startswith("Incremental")
        jobs = (Job(5, VIEWS[0]), *(Job(6, view, refresh) for view in VIEWS))
        world = cls(repo, jobs, repo.freeze())
        Schedule(world, None).run()
        world.undisturbed = state_of(repo)
        return world


@dataclass
class Schedule:
    """One run of a world's days; ``chance`` None disturbs nothing. ``kills``: stops are kill -9 of a process."""

    world: World
    chance: random.Random | None
    kills: bool = False
    faults: Counter[str] = field(default_factory=Counter)

    def run(self) -> Counter[str]:
        """Run the days, and compare; returns how often what happened.

        Raises:
            DivergedError: The end is another one than that of the undisturbed run, or a failure moved a watermark.
        """
        repo = self.world.repo
        os.chdir(repo.folder)
        repo.thaw(self.world.start)
        today = 0
        for job in self.world.jobs:
            with at(day(job.day)):
                if job.day == 6 != today:
                    repo.encode_with(tiny_encoder(3, context=6))
                today = job.day
                self._deliver(today)
                self._finish(job)
        repo.retire()
        if self.world.undisturbed:
            _compare(self.world.undisturbed, state_of(repo))
        return self.faults

    def _deliver(self, today: int) -> None:
        """The behaviors: as they are, or in another order, some twice, some in a second file."""
        self._deliver_one(shop(8), "shop")
        if today >= 6:
            self._deliver_one(LATE, "late")

    def _deliver_one(self, table: pa.Table, name: str) -> None:
        if self.chance is not None:
            rng = np.random.default_rng(self.chance.getrandbits(32))
            order = rng.permutation(np.append(np.arange(len(table)), rng.integers(0, len(table), len(table) // 5)))
            again = table.take(rng.integers(0, len(table), len(table) // 10))
            self.world.repo.deliver(again, f"{name}-again")
            table = table.take(order)
        self.world.repo.deliver(table, name)

    # ── one job, until it is done ────────────────────────────────────────────────────────────────────────

    def _finish(self, job: Job) -> None:
        for _ in range(3 if self.chance else 0):
            assert self.chance is not None
            if self._attempt(job, self.chance):
                return
            if self.chance.random() < 0.3:
                self._deliver(job.day)
        seen: list[str] = []
        with listening(seen.append):
            self._command(job)
        self.world.steps.setdefault(job, len(seen))

    def _attempt(self, job: Job, chance: random.Random) -> bool:
        """One disturbed attempt; whether the job is done."""
        kind = chance.choices(("stop", "zombie", "none"), (5, 3, 2))[0]
        at_step = chance.randint(1, self.world.steps[job])
        if kind == "none":
            self._command(job)
            return True
        before = self._watermarks()
        if kind == "zombie":
            return self._sleep(job, at_step, chance, before)
        seen, done = self._kill(job, at_step) if self.kills else self._stop(job, at_step)
        if not done:
            self._check_watermarks(before, seen)
        return done

    def _command(self, job: Job) -> None:
        """The command as its user gives it. A refresh that only its cutover was missing of is done once that is."""
        repo, last = self.world.repo, self.world.repo.last_tick(job.view)
        done = last is not None and (last.kind, last.end_us) == ("full", day(job.day))
        command = repo.materialize if job.refresh and not done else repo.incremental
        command(day(job.day), [job.view])

    def _stop(self, job: Job, at_step: int) -> tuple[list[str], bool]:
        seen: list[str] = []

        def listener(step: str) -> None:
            seen.append(step)
            if len(seen) == at_step:
                raise StoppedError(step)

        with listening(listener):
            try:
                self._command(job)
            except StoppedError:
                self.faults[f"stopped at {seen[-1]}"] += 1
                return seen, False
        return seen, True

    def _kill(self, job: Job, at_step: int) -> tuple[list[str], bool]:
        repo = self.world.repo
        context = multiprocessing.get_context("fork")
        said = repo.folder.parent / f"{repo.project}.steps"
        said.write_text("")
        plain = SmallRepo(repo.folder, repo.connection, repo.project, policy=repo.policy, contract=repo.contract)
        child = context.Process(target=_killed, args=(self, plain, job, at_step, said))
        child.start()
        child.join(120)
        seen = said.read_text().split()
        if child.exitcode == 0:
            return seen, True
        if child.exitcode != -signal.SIGKILL:
            raise DivergedError(f"a job in a process of its own ended with {child.exitcode}")
        self.faults[f"killed at {seen[-1]}"] += 1
        return seen, False

    # ── a worker that slept through its lease ────────────────────────────────────────────────────────────

    def _sleep(self, job: Job, at_step: int, chance: random.Random, before: Any) -> bool:
        seen: list[str] = []
        left: list[bytes] = []

        def listener(step: str) -> None:
            seen.append(step)
            if len(seen) == at_step:
                self._take_over(job, chance)
                left.append(fingerprint(self.world.repo))

        # what it does after its job, under another lease, is no part of the job
        with wall_clock() as hours, retiring_never(), listening(listener):
            self._hours = hours
            try:
                self._command(job)
            except LeaseError:
                self.faults[f"refused after sleeping at {seen[at_step - 1]}"] += 1
                if self._feast_watermark() != before[0]:
                    raise DivergedError("a refused worker moved Feast's watermark") from None
            else:
                if not left:
                    return True
                self.faults[f"had nothing left to do after sleeping at {seen[at_step - 1]}"] += 1
        if fingerprint(self.world.repo) != left[0]:
            raise DivergedError(f"a worker that slept at {seen[at_step - 1]} changed what another one had done")
        return False

    def _take_over(self, job: Job, chance: random.Random) -> None:
        """Another worker runs the job, after the lease of the sleeping one ran out; it may be stopped itself."""
        self._hours[0] += 1
        stop = chance.randint(1, self.world.steps[job]) if chance.random() < 0.5 else 0
        steps = 0

        def listener(step: str) -> None:
            nonlocal steps
            steps += 1
            if steps == stop:
                raise StoppedError(step)

        last = self.world.repo.last_tick(job.view)
        done = last is not None and (last.kind, last.end_us) == ("full", day(job.day))
        with only(listener):
            try:
                self.world.repo.run(day(job.day), job.view, refresh=job.refresh and not done)
            except StoppedError:
                self.faults["took over, and was stopped"] += 1
            else:
                self.faults["took over"] += 1

    # ── watermarks ───────────────────────────────────────────────────────────────────────────────────────

    def _feast_watermark(self) -> list[Any]:
        return [self.world.repo.feast_watermark(view) for view in VIEWS]

    def _watermarks(self) -> tuple[list[Any], list[Any]]:
        return self._feast_watermark(), [self.world.repo.last_tick(view) for view in VIEWS]

    def _check_watermarks(self, before: tuple[list[Any], list[Any]], seen: list[str]) -> None:
        feast, ledger = self._watermarks()
        if feast != before[0]:
            raise DivergedError(f"a job that stopped at {seen[-1]} moved Feast's watermark")
        # past its last round a refresh is done, also where its cutover waits for another view
        if ledger != before[1] and not set(seen) & set(COMMITTING) and "caught-up-all" not in seen[:-1]:
            raise DivergedError(f"a job that stopped at {seen[-1]} moved the ledger's watermark")
        spaces = {self.world.repo.vectors(view).space for view in VIEWS}
        if len(spaces) != 1:
            raise DivergedError(f"after a stop at {seen[-1]}, users and items are read from {spaces}")


def _killed(schedule: Schedule, repo: SmallRepo, job: Job, at_step: int, said: Path) -> None:
    """A job in a process of its own, with stores of its own, which kills itself at a step."""
    os.chdir(repo.folder)
    left = at_step
    schedule.world = replace(schedule.world, repo=repo)

    def listener(step: str) -> None:
        nonlocal left
        with said.open("a") as file:
            file.write(f"{step}\n")
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    with at(day(job.day)), listening(listener), Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
        schedule._command(job)
    detach_all()  # as leaving the interpreter would do, which a child of multiprocessing skips


# ── what is compared ─────────────────────────────────────────────────────────────────────────────────────────


def state_of(repo: SmallRepo) -> dict[str, Any]:
    """All that must be the same: vectors, histories, logs, the ledger, what became of behaviors, Feast's watermarks."""
    tables = ledger_rows(repo)
    for row in tables["feast_embeddings_ticks"]:
        del row["encoded"]  # a retry may find vectors that are computed already
    ledger = {name: tables[f"feast_embeddings_{name}"] for name in ("ticks", "fills", "generations", "spaces")}
    counts = {row["tick"]: 0 for row in ledger["ticks"]}
    for row in tables["feast_embeddings_tick_counts"]:
        counts[row["tick"]] += row["behaviors"] * (1 if row["what"] == "read" else -1)
        if row["what"] == "applied":
            ledger[f"applied in tick {row['tick']}"] = row["behaviors"]
    ledger["unaccounted behaviors"] = sum(map(abs, counts.values()))
    watermarks = {f"{view} watermark of Feast": repo.feast_watermark(view) for view in VIEWS}
    return {**repo.snapshot(), **{f"ledger: {name}": found for name, found in ledger.items()}, **watermarks}


def ledger_rows(repo: SmallRepo) -> dict[str, list[dict[str, Any]]]:
    """Every row of the ledger but the leases, in the order of their keys."""
    found = {}
    with repo.workspace.ledger.unguarded() as connection:
        for table in metadata.sorted_tables:
            if table.name != "feast_embeddings_leases":
                query = sa.select(table).order_by(*table.primary_key.columns)
                found[table.name] = [dict(row) for row in connection.execute(query).mappings()]
    return found


def fingerprint(repo: SmallRepo) -> bytes:
    """A digest of everything a job could change: ledger, logs, staged files, quarantine, Redis."""
    state = hashlib.blake2b(repr(ledger_rows(repo)).encode())
    for file in sorted((repo.folder / "data" / "embeddings").rglob("*")):
        if file.is_file() and not file.name.startswith("ledger.db"):
            state.update(str(file).encode() + file.read_bytes())
    with repo.redis() as client:
        for key in sorted(repo._keys(client)):
            state.update(key + client.dump(key))
    return state.digest()


def _compare(wanted: dict[str, Any], found: dict[str, Any]) -> None:
    for name in wanted.keys() | found.keys():
        if wanted.get(name) != found.get(name):
            raise DivergedError(f"{name} differs: {wanted.get(name)!r:.600} undisturbed, {found.get(name)!r:.600} here")


# ── the machine's own time, and chunks ───────────────────────────────────────────────────────────────────────


@contextmanager
def wall_clock() -> Iterator[list[int]]:
    """Lets the machine's clock, by which leases run out, be put forward by hours."""
    real: Callable[[], int] = leases._real_us
    hours = [0]
    leases._real_us = lambda: real() + hours[0] * 3_600_000_000
    try:
        yield hours
    finally:
        leases._real_us = real


@contextmanager
def only(listener: Callable[[str], None]) -> Iterator[None]:
    """Another worker's steps reach this listener alone."""
    from feast_embeddings.materialize.ticks import milestones

    others, milestones._listeners[:] = list(milestones._listeners), [listener]
    try:
        yield
    finally:
        milestones._listeners[:] = others


@contextmanager
def small_chunks(size: int = 5) -> Iterator[None]:
    """Writes of a few rows each, so that a small repo's tick has several chunks."""
    whole, OnlineServer.chunk_rows = OnlineServer.chunk_rows, size
    try:
        yield
    finally:
        OnlineServer.chunk_rows = whole

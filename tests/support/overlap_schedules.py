"""Schedules of faults in which ticks run beside a refresh, drawn from a seed: jobs stopped, killed, asleep, overtaken.

However they overlap, they end as the refresh first and the ticks afterwards, with nothing in between.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from fault_schedules import DivergedError, Job, Schedule, World, ledger_rows, only
from repo_fixture import (
    USERS,
    VIEWS,
    MakeRepo,
    SmallRepo,
    StoppedError,
    at,
    batch_bytes,
    day,
    shop,
    tiny_encoder,
)

from feast_embeddings.materialize.files import matrix_of
from feast_embeddings.materialize.retrieval import served_vectors
from feast_embeddings.materialize.ticks import listening, runner
from feast_embeddings.models.errors import LeaseError

POLICIES = ("Hybrid(alpha=0.5, full_every='30d')", "Incremental(half_life='2d', context='new')", "Incremental()")
ENDS = (4.0, 4.5)
"""As of when the refresh is: at the end of the last tick, or after it, so that ticks that overtake it need a bridge."""
_USER = VIEWS[0]


@dataclass
class OverlapWorld(World):
    """A live repo with another encoder declared; the refresh to it is as of ``end``, and the ticks go up to day 7."""

    end: float = 4.0

    @classmethod
    def overlapping(cls, make_repo: MakeRepo, policy: str, end: float) -> OverlapWorld:
        """Live as of day 4 in two generations; the items of the new encoder wait."""
        repo = make_repo(policy=policy)
        repo.deliver(shop(8), "shop")
        for number, seed in ((2, 1), (4, 2)):
            repo.encode_with(tiny_encoder(seed))
            with at(day(number)):
                repo.materialize(day(number))
        repo.encode_with(tiny_encoder(3, context=14))
        with at(day(4)):
            repo.run(day(4), VIEWS[1], refresh=True)
        world = cls(repo, (Job(7, _USER, refresh=True), Job(7, _USER)), repo.freeze(), end=end)
        OverlapSchedule(world, None).run()
        world.undisturbed = compared(repo, end)
        return world


@dataclass
class OverlapSchedule(Schedule):
    """One run of an :class:`OverlapWorld`."""

    def run(self) -> Any:
        """Run the jobs, and compare.

        Raises:
            DivergedError: The end is another one, or what was served is not what history says.
        """
        repo, world = self.world.repo, self.world
        assert isinstance(world, OverlapWorld)
        os.chdir(repo.folder)
        repo.thaw(world.start)
        with quick(), at(day(7)):
            self._deliver(4)
            for job in world.jobs:
                self._finish(job)
        repo.retire()
        if world.undisturbed:
            check(world.undisturbed, compared(repo, world.end))
            check_served(repo)
        return self.faults

    def _deliver(self, today: int) -> None:
        """Always the same behaviors, in any order and repeated: what a refresh reads must not depend on the day."""
        self._deliver_one(shop(8), "shop")

    def _attempt(self, job: Job, chance: random.Random) -> bool:
        """A fault as in any schedule; or ticks beside the refresh, at any step, and a stop at any other."""
        if not job.refresh or chance.random() < 0.3:
            return super()._attempt(job, chance)
        steps = self.world.steps[job]
        with listening(self._beside(chance.randint(1, steps), chance)):
            _, done = (self._kill if self.kills else self._stop)(job, chance.randint(2, steps + 25))
        return done

    def _beside(self, at_step: int, chance: random.Random) -> Any:
        """At a step of the refresh, a job of ticks, which may be stopped itself."""
        count, inside = 0, False

        def listener(_: str) -> None:
            nonlocal count, inside
            count += 1
            if count == at_step and not inside:
                inside = True
                self._ticks(chance.choice((5, 6, 7)), chance.randint(1, 30) if chance.random() < 0.4 else 0)
                inside = False

        return listener

    def _ticks(self, end: int, stop: int) -> None:
        left = stop

        def listener(step: str) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise StoppedError(step)

        plain = SmallRepo(self.world.repo.folder, self.world.repo.connection, self.world.repo.project)
        with only(listener):
            try:
                plain.run(day(end), _USER)
            except StoppedError:
                self.faults["ticks beside it, stopped"] += 1
            except LeaseError:
                self.faults["ticks beside it, fenced off by its last round"] += 1
            else:
                self.faults["ticks beside it"] += 1

    def _command(self, job: Job) -> None:
        repo, world = self.world.repo, self.world
        assert isinstance(world, OverlapWorld)
        last = repo.workspace.ledger.last_tick(_USER, "full")
        done = last is not None and last.end_us == day(world.end) and last.number > 2
        if job.refresh and not done:
            repo.materialize(day(world.end), [_USER])
        else:
            repo.incremental(day(7), [_USER])

    def _take_over(self, job: Job, chance: random.Random) -> None:
        """Another worker finishes what the sleeping one began, whichever command it is given."""
        self._hours[0] += 1
        plain = SmallRepo(self.world.repo.folder, self.world.repo.connection, self.world.repo.project)
        with only(lambda _: None):
            plain.run(day(7), _USER)
        self.faults["took over"] += 1


@contextmanager
def quick() -> Iterator[None]:
    """No waiting for a job that stands still in this thread."""
    before = runner.LAST_ROUND_WAIT_S, runner.TICKS_WAIT_S
    runner.LAST_ROUND_WAIT_S = runner.TICKS_WAIT_S = 0.0  # type: ignore[misc]
    try:
        yield
    finally:
        runner.LAST_ROUND_WAIT_S, runner.TICKS_WAIT_S = before  # type: ignore[misc]


def compared(repo: SmallRepo, end: float) -> dict[str, Any]:
    """What must not depend on the overlap: the new fill, reads, histories, and every behavior counted once."""
    tables = ledger_rows(repo)
    found: dict[str, Any] = {"history": batch_bytes(repo.histories()), "fills": {}}
    found["read"] = (repo.vectors().space, repo.vectors().values.tobytes())
    for fill in repo.fills("live") if end != 4.0 else repo.fills("live", "retained"):
        rows = repo.rows_of(fill.fill)
        found["fills"][fill.state] = (rows.vectors.tobytes(), rows.tick_end_us.tolist())
    found["applied"] = repo.counts()["applied"]
    sign = {row["what"]: 1 if row["what"] == "read" else -1 for row in tables["feast_embeddings_tick_counts"]}
    found["unaccounted"] = sum(sign[row["what"]] * row["behaviors"] for row in tables["feast_embeddings_tick_counts"])
    found["states"] = sorted(row["state"] for row in tables["feast_embeddings_fills"])
    found["watermark"] = (repo.last_tick().end_us, repo.feast_watermark())
    found["staged"] = sorted(path.name for path in (repo.folder / "data/embeddings/log").rglob("*.arrow"))
    if end == 4.0:
        names = ("tick", "kind", "state", "start_us", "end_us", "members", "digest", "rows")
        ours = (row for row in tables["feast_embeddings_ticks"] if row["view"] == _USER)
        found["ticks"] = [[row[name] for name in names] for row in ours]
    return found


def check(wanted: dict[str, Any], found: dict[str, Any]) -> None:
    for name, value in wanted.items():
        if found[name] != value:
            raise DivergedError(f"{name} differs: {value!r:.600} one after the other, {found[name]!r:.600} here")


def check_served(repo: SmallRepo) -> None:
    """Historical retrieval of now is what is read now."""
    live, spec, workspace = repo.vectors(), repo.spec(), repo.workspace
    times = np.full(len(USERS), day(8), np.int64)
    served = served_vectors(workspace.ledger, workspace.log(spec), spec, live.space, pa.array(USERS), times)
    known = np.asarray(served.is_valid().to_numpy(zero_copy_only=False), np.bool_)
    if known.tolist() != live.found.tolist() or matrix_of(served.drop_null()).tobytes() != live.values[known].tobytes():
        raise DivergedError("what historical retrieval returns is not what is served")

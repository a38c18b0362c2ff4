"""One policy, replayed from October to December: ticks by stock Feast commands under a simulated clock, and reads."""

from __future__ import annotations

import contextlib
import io
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
from feast import FeatureStore

from feast_embeddings.materialize.clock import simulated, us_of
from feast_embeddings.materialize.demo.parity import Comparison, compare
from feast_embeddings.materialize.demo.reads import FEATURES, Reader
from feast_embeddings.materialize.demo.scaffold import write_repo
from feast_embeddings.materialize.files import Workspace
from feast_embeddings.materialize.online import OnlineServer
from feast_embeddings.materialize.serving import Vectors, read_vectors
from feast_embeddings.materialize.ticks import CUTOVER, Cutovers, listening, progress
from feast_embeddings.models.types import Int64s
from feast_embeddings.transformations import Behaviors

START = datetime(2017, 10, 1, tzinfo=UTC)
END = datetime(2018, 1, 1, tzinfo=UTC)
ROLLBACK_DAY = 40
DIM = 64
USER_VIEW, ITEM_VIEW = "user_embedding", "item_embedding"
USER_VECTORS, ITEM_VECTORS = FEATURES
_SECOND_US = 1_000_000
_DAY_US = 86_400 * _SECOND_US


@dataclass(frozen=True)
class Replay:
    """What one policy did between October and December.

    Attributes:
        name, policy: The policy.
        weekly: Each Monday (microseconds) → the user vectors served after that day's job, of all households.
        items: The item vectors served at the end, of the catalogue.
        encoded: Histories encoded by its daily jobs.
        rows: Vectors written by its daily jobs.
        seconds: Wall-clock time of its daily jobs.
        compared: Online reads against historical retrieval.
    """

    name: str
    policy: str
    weekly: Mapping[int, Vectors]
    items: Vectors
    encoded: int
    rows: int
    seconds: float
    compared: Comparison


def make_repo(folder: Path, policy: str, behaviors: Path) -> None:
    """Write a feature repo with a policy, over a behavior table, by what ``feast-embeddings init`` writes."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    write_repo(folder, policy=policy, data=lambda path: shutil.copyfile(behaviors, path))


def feast_apply(folders: list[Path]) -> None:
    """Run ``feast apply`` in each folder, side by side; raises CalledProcessError with its output if one fails."""
    command = [sys.executable, "-W", "ignore", "-m", "feast.cli.cli", "apply"]
    jobs = [
        subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # noqa: S603
        for folder in folders
    ]
    for job in jobs:
        output, _ = job.communicate()
        if job.returncode:
            raise subprocess.CalledProcessError(job.returncode, command, output)


class Replayer:
    """Replays the policy of the feature repo in the current folder."""

    def __init__(self, future: Behaviors, catalogue: Int64s, rows: int, seed: int) -> None:
        self.store = FeatureStore(".")
        self.ledger = Workspace.of(self.store.config).ledger
        self.households = np.asarray(future.entities, np.int64)
        self.catalogue = catalogue
        self.weekly: dict[int, Vectors] = {}
        self.seconds = 0.0
        self._rng = np.random.default_rng(seed)
        self.reader = Reader(FeatureStore("."), future, self.households, catalogue, DIM, self._rng, rows)

    def replay(self, name: str, policy: str) -> Replay:
        """Refresh as of October 1, run every day's job, read at random times, and compare."""
        with simulated(us_of(START)) as self._clock, listening(self._on_step):
            self._quietly(self.store.materialize, START - timedelta(days=365), START, [ITEM_VIEW, USER_VIEW])
            first = self.ledger.last_tick(USER_VIEW)
            self._days(name)
            while self.reader.budget:
                self._clock.advance(int(self._rng.integers(1, 600)) * _SECOND_US)
                self.reader.read()
            items = read_vectors(self.store, ITEM_VECTORS, self.catalogue)
            compared = compare(self.store, *self.reader.result())
        daily = self.ledger.published_ticks(USER_VIEW, end_after_us=first.end_us if first else 0)
        encoded, rows = sum(tick.encoded for tick in daily), sum(tick.rows for tick in daily)
        return Replay(name, policy, self.weekly, items, encoded, rows, self.seconds, compared)

    def _days(self, name: str) -> None:
        days = [START + timedelta(days=day) for day in range(1, (END - START).days + 1)]
        for number, day in enumerate(progress(days, f"{name}: days", "day")):
            self._wait_until(day)
            started = time.perf_counter()
            self._quietly(self.store.materialize_incremental, day, [USER_VIEW])
            self.seconds += time.perf_counter() - started
            if day.weekday() == 0:
                self.weekly[us_of(day)] = read_vectors(self.store, USER_VECTORS, self.households)
            if number == ROLLBACK_DAY:
                self._roll_back_and_forth()

    def _quietly(self, job: Callable[..., None], *arguments: object) -> None:
        """Run a Feast job without what it prints."""
        with contextlib.redirect_stdout(io.StringIO()):
            job(*arguments)

    def _wait_until(self, day: datetime) -> None:
        """Let a day pass, with one read at a random time of it; jobs start a minute after midnight."""
        target = us_of(day) + 60 * _SECOND_US
        if target > self._clock.now_us:
            self._clock.set(int(self._rng.integers(self._clock.now_us, target)))
            self.reader.read()
            self._clock.set(target)

    def _on_step(self, step: str) -> None:
        """A second passes at each step of a job; some are read at, every one of a cutover's is."""
        self._clock.advance(_SECOND_US)
        if self.reader.answers and (step in CUTOVER or self._rng.random() < 0.08):
            self.reader.read()

    def _roll_back_and_forth(self) -> None:
        """Make the retained generation live for an hour, and then the other one again."""
        cutovers = Cutovers(Workspace.of(self.store.config), OnlineServer.of(self.store.config), self.store.registry)
        for _ in range(2):
            if not self.ledger.fills(encoder="main", states=("retained",)):
                return
            cutovers.rollback("main")
            self._clock.advance(1800 * _SECOND_US)
            self.reader.read()
            self._clock.advance(1800 * _SECOND_US)

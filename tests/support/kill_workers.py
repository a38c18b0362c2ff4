"""Two workers of one stream, one of them killed every little while, while duplicates and disorder are sent to them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from repo_fixture import SmallRepo
from stream_fixture import SINCE, behavior, send

from feast_embeddings.materialize.cli import app
from feast_embeddings.materialize.ledger import workers_there
from feast_embeddings.materialize.stream import Replayed, replay_stream

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["feast_embeddings.materialize.cli"])


@dataclass
class Outcome:
    """What came of it."""

    sent: int
    unique: int
    kills: int
    counts: dict[str, int]
    replayed: list[Replayed]
    seconds: float
    lost_ticks: int = 0
    exits: list[int | None] = field(default_factory=list)


def _work(folder: str) -> None:
    """What a worker process does: the command, but for the start of its interpreter."""
    warnings.simplefilter("ignore")
    os.chdir(folder)
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        app(["stream", "--lease-s", "3", "--lateness", "36500d"], standalone_mode=False)


def spawn() -> Any:
    """A worker process in the present folder."""
    process = _context.Process(target=_work, args=(str(Path.cwd()),), daemon=True)
    process.start()
    return process


def end(process: Any, within_s: float = 20) -> int | None:
    """Send SIGTERM; the exit code."""
    process.terminate()
    process.join(within_s)
    return process.exitcode  # type: ignore[no-any-return]


def await_workers(repo: SmallRepo, count: int, within_s: float = 60) -> None:
    """Wait until so many workers are there."""
    deadline = time.monotonic() + within_s
    while workers_there(repo.workspace.ledger, repo.project, "user_embedding") < count:
        assert time.monotonic() < deadline, f"{count} workers did not come up"
        time.sleep(0.05)


def run(repo: SmallRepo, seconds: float, rate: int, kill_every_s: float, seed: int) -> Outcome:
    """Send for ``seconds``, kill now and then, then let the workers finish; nothing is checked here."""
    rng = random.Random(seed)  # noqa: S311 - a schedule
    workers, kills = [spawn(), spawn()], 0
    await_workers(repo, 2)
    sent: list[dict[str, Any]] = []
    total, began, step = 0, time.monotonic(), 0.1
    next_kill = kill_every_s
    while (now := time.monotonic() - began) < seconds:
        part = _some(rng, sent, max(int(rate * step), 1))
        send(repo, part)
        total += len(part)
        if now > next_kill:
            victim = rng.randrange(2)
            workers[victim].kill()
            workers[victim].join()
            workers[victim], kills, next_kill = spawn(), kills + 1, now + kill_every_s * rng.uniform(0.7, 1.3)
        time.sleep(step)
    ledger = repo.workspace.ledger
    deadline = time.monotonic() + 60
    while ledger.stream_counts("user_embedding").get("read", 0) < total and time.monotonic() < deadline:
        assert all(worker.is_alive() for worker in workers), "a worker gave up"
        time.sleep(0.1)
    await_workers(repo, 2)  # one may have been born just now
    exits = [end(worker) for worker in workers]
    outcome = Outcome(
        total, len({each["id"] for each in sent}), kills, ledger.stream_counts("user_embedding"), [], 0, exits=exits
    )
    outcome.replayed = replay_stream(repo.store)
    outcome.lost_ticks, outcome.seconds = len(ledger.open_micro_batches("user_embedding")), time.monotonic() - began
    return outcome


def _some(rng: random.Random, sent: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Mostly new behaviors, some that were sent before, in no order of time."""
    fresh = [
        behavior(rng.randrange(1, 13), rng.randrange(101, 131), SINCE + rng.random(), id=f"n{len(sent) + n}")
        for n in range(count)
    ]
    again = [rng.choice(sent) for _ in range(count // 5)] if sent else []
    sent += fresh
    part = [*fresh, *again]
    rng.shuffle(part)
    return part


def check(outcome: Outcome) -> None:
    """Nothing lost, nothing twice, and the bits of a replay."""
    counts = dict(outcome.counts)
    counts.pop("late", None)
    assert counts.pop("read") == outcome.sent == sum(counts.values())
    assert counts["applied"] == outcome.unique
    assert outcome.lost_ticks == 0
    assert outcome.exits == [0, 0]
    assert [each.diverged for each in outcome.replayed] == [[] for _ in outcome.replayed]
    assert sum(each.ticks for each in outcome.replayed) > 0


@dataclass
class Soak:
    """What a long run came to: the workers' memory in MiB over time, and the most files that a log ever had."""

    sent: int
    read: int
    mib: list[float]
    most_files: int

    @property
    def growth(self) -> float:
        """From the first third, when all is loaded, to the last quarter."""
        third, quarter = len(self.mib) // 3, max(len(self.mib) // 4, 1)
        early = sorted(self.mib[third : third + quarter])[quarter // 2]
        return sorted(self.mib[-quarter:])[quarter // 2] / early - 1

    def check(self, most_growth: float = 0.05) -> None:
        """Everything was read, and the memory is flat."""
        assert self.read == self.sent
        assert self.growth < most_growth, self.mib


def soak(repo: SmallRepo, seconds: float, rate: int, seed: int) -> Soak:
    """Send for ``seconds`` to two workers, and watch them."""
    rng = random.Random(seed)  # noqa: S311 - a schedule
    workers = [spawn(), spawn()]
    await_workers(repo, 2)
    total, began, step, mib, most = 0, time.monotonic(), 0.1, list[float](), 0
    log = repo.workspace.log(repo.spec()).folder / "live"
    sample_s, next_sample = max(seconds / 60, 0.5), 0.0
    while (now := time.monotonic() - began) < seconds:
        part = _some(rng, [], max(int(rate * step), 1))
        for number, each in enumerate(part):
            each["id"] = f"s{total + number}"
        send(repo, part)
        total += len(part)
        if now > next_sample:
            next_sample = now + sample_s
            mib.append(sum(psutil.Process(worker.pid).memory_info().rss for worker in workers) / 2**20)
            most = max(most, len(list(log.iterdir())))
        time.sleep(step)
    ledger = repo.workspace.ledger
    deadline = time.monotonic() + 60
    while (read := ledger.stream_counts("user_embedding").get("read", 0)) < total and time.monotonic() < deadline:
        time.sleep(0.1)
    assert [end(worker) for worker in workers] == [0, 0]
    return Soak(total, read, mib, most)

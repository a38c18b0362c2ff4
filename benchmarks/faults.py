"""Faults: schedules of stopped, killed and sleeping jobs, each compared bit by bit with the undisturbed run.

``make faults`` runs 1,000 of them, in every third of which ticks run beside a refresh, and 60 more in which jobs are
processes that end by ``kill -9``. A schedule is a function of its seed: ``--first SEED --schedules 1`` runs one again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import multiprocessing.util
import os
import platform
import random
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests" / "support"
RESULTS = ROOT / "benchmarks" / "results" / "faults.json"

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
sys.path.insert(0, str(TESTS))
_worlds: dict[str, Any] = {}


@dataclass
class Totals:
    """What came of many schedules."""

    schedules: int = 0
    happened: Counter[str] = field(default_factory=Counter)
    diverged: list[str] = field(default_factory=list)

    def add(self, seed: str, happened: Counter[str], trouble: str | None) -> None:
        """Count one."""
        self.schedules += 1
        self.happened += happened
        if trouble is not None:
            self.diverged.append(f"{seed}: {trouble}")
            print(f"DIVERGED  {seed}: {trouble}", flush=True)


def run_one(folder: str, number: int, kills: bool) -> tuple[str, Counter[str], str | None]:
    """Run the schedule of one number in this process's worlds: its name, what happened, and what diverged."""
    from fault_schedules import POLICIES, Schedule, World, small_chunks
    from overlap_schedules import ENDS, OverlapSchedule, OverlapWorld
    from overlap_schedules import POLICIES as TICKING
    from stream_overlap_schedules import CASES, StreamOverlapSchedule, StreamOverlapWorld

    kind: Any
    with warnings.catch_warnings(), small_chunks(), _silence():
        warnings.simplefilter("ignore")
        nth = number // 3
        if number % 3 == 1:
            policy, context = CASES[nth % len(CASES)]
            kind, name = StreamOverlapSchedule, f"a stream beside a refresh, context {context}, {policy}"
            world = _world(Path(folder), name, lambda make: StreamOverlapWorld.made(make, policy, context))
        elif number % 3 == 2:
            policy, end = TICKING[nth % len(TICKING)], ENDS[nth // len(TICKING) % len(ENDS)]
            kind, name = OverlapSchedule, f"ticks beside a refresh as of day {end}, {policy}"
            world = _world(Path(folder), name, lambda make: OverlapWorld.overlapping(make, policy, end))
        else:
            policy = POLICIES[nth % len(POLICIES)]
            kind, name = Schedule, policy
            world = _world(Path(folder), name, lambda make: World.made(make, policy))
        name = f"{name}, {'kill -9, ' if kills else ''}seed {number}"
        schedule = kind(world, random.Random(name), kills)  # noqa: S311 - a schedule
        try:
            schedule.run()
        except Exception as error:
            return name, schedule.faults, f"{type(error).__name__}: {error}"
    kinds = {OverlapSchedule: "ticks beside a refresh", StreamOverlapSchedule: "micro-batches beside a refresh"}
    happened = Counter({f"{kinds[kind]}: schedules": 1}) if kind in kinds else Counter()
    return name, schedule.faults + happened, None


@contextlib.contextmanager
def _silence() -> Any:
    with (
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield


def _world(folder: Path, name: str, made: Callable[[Any], Any]) -> Any:
    from fault_schedules import detach_all
    from repo_fixture import SmallRepo

    if not _worlds:  # a pool's process leaves without running what atexit holds
        multiprocessing.util.Finalize(None, detach_all, exitpriority=1)

    def make(**options: Any) -> SmallRepo:
        project = f"p{os.getpid()}x{len(_worlds):03}"  # none is the beginning of another: keys are told apart by it
        (folder / project).mkdir()
        os.chdir(folder / project)
        server = folder / f"valkey-{os.getpid()}"
        return SmallRepo(folder / project, f"embedded:{server}", project, **options).write()

    if name not in _worlds:
        _worlds[name] = made(make)
    return _worlds[name]


def run_all(folder: str, numbers: range, workers: int, *, kills: bool) -> Totals:
    """Run the schedules of these numbers, several at a time."""
    totals = Totals()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["overlap_schedules"])
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        for future in [pool.submit(run_one, folder, number, kills) for number in numbers]:
            totals.add(*future.result())
            if totals.schedules % 100 == 0:
                print(f"{totals.schedules:,} schedules …", flush=True)
    return totals


def report(totals: Totals, seconds: float, title: str) -> dict[str, Any]:
    """Print a summary; the same as a dictionary."""
    rate = totals.schedules / seconds
    print(f"\n{title}: {totals.schedules:,} schedules in {seconds:,.0f} s ({rate:.2f} per second)")
    for what, count in sorted(totals.happened.items()):
        print(f"  {count:6,}  {what}")
    print(f"  {len(totals.diverged):6,}  ended otherwise than the undisturbed run")
    return {
        "schedules": totals.schedules,
        "seconds": round(seconds, 1),
        "schedules_per_second": round(rate, 2),
        "happened": dict(sorted(totals.happened.items())),
        "diverged": totals.diverged,
    }


def main() -> int:
    """The command line; 1 where anything diverged."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--schedules", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=60, help="schedules of which every stop is a kill -9")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--no-results", action="store_true", help="write no file of results")
    options = parser.parse_args()
    parts = {"stopped": (options.schedules, False), "killed": (options.kills, True)}
    found: dict[str, Any] = {"machine": f"{platform.machine()}, {os.cpu_count()} cores", "workers": options.workers}
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        for name, (count, kills) in parts.items():
            if count:
                started = time.monotonic()
                numbers = range(options.first, options.first + count)
                totals = run_all(folder, numbers, options.workers, kills=kills)
                found[name] = report(totals, time.monotonic() - started, name)
    if not options.no_results:
        RESULTS.write_text(json.dumps(found, indent=2) + "\n")
    return int(any(part["diverged"] for part in found.values() if isinstance(part, dict)))


if __name__ == "__main__":
    sys.exit(main())

"""Workers of a stream killed every few seconds, with duplicates and disorder; and a soak that watches their memory.

``make stream-faults``: two workers, one of them killed by ``kill -9`` every few seconds for two minutes. Then
in = applied + deduplicated + quarantined, and the vectors are, bit for bit, those of a replay of the recorded ticks.
``make soak``: thirty minutes of the same without kills; the workers' memory must stay flat.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
TESTS = Path(__file__).parents[1] / "tests" / "support"
sys.path[:0] = [str(TESTS), str(TESTS / "stream")]


def made(folder: Path, policy: str) -> Any:
    """A small repo on an embedded Valkey, whose behaviors come as a stream."""
    from repo_fixture import SmallRepo
    from stream_fixture import streamed

    def make(**options: Any) -> SmallRepo:
        place = folder / "stream"
        place.mkdir()
        os.chdir(place)
        return SmallRepo(place, f"embedded:{folder / 'valkey'}", "stream", **options).write()

    return streamed(make, policy)


def faults(repo: Any, options: argparse.Namespace) -> None:
    """Kill, send, check."""
    import kill_workers

    outcome = kill_workers.run(repo, options.seconds, options.rate, options.kill_every, options.seed)
    counts = ", ".join(f"{what} {count:,}" for what, count in sorted(outcome.counts.items()))
    print(f"{outcome.seconds:.0f} s, {outcome.kills} kills, workers ended with {outcome.exits}")
    print(f"{outcome.sent:,} messages sent ({outcome.unique:,} behaviors); {counts}")
    for each in outcome.replayed:
        print(f"{each.fill}: {each.ticks:,} ticks, {each.rows:,} vectors replayed; other bits: {len(each.diverged)}")
    kill_workers.check(outcome)


def soak(repo: Any, options: argparse.Namespace) -> None:
    """Send for long, and watch the memory."""
    import kill_workers

    found = kill_workers.soak(repo, options.seconds, options.rate, options.seed)
    print(f"{options.seconds:.0f} s, {found.sent:,} messages; MiB by time: {[round(each) for each in found.mib]}")
    print(f"growth after the first third: {found.growth:.1%}; most files in a log: {found.most_files}")
    found.check()


def main() -> int:
    """The command line; an assertion fails where something was lost or grew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["faults", "soak"])
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--rate", type=int, default=200, help="behaviors per second")
    parser.add_argument("--kill-every", type=float, default=4, help="seconds")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    from feast_embeddings.materialize.online import detach

    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        stack.callback(os.chdir, Path(__file__).parents[1])
        stack.callback(detach, Path(name) / "valkey")
        repo = made(Path(name), "Incremental(alpha=0.3)")
        (faults if options.what == "faults" else soak)(repo, options)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

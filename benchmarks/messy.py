"""Messy tables: columns of any type, unit, zone and encoding, each served as an oracle says, or refused by name.

``make messy`` draws 2,000 of them; each is read in the past, materialized and read online.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from hypothesis import HealthCheck, given, seed, settings

from feast_embeddings.materialize.clock import now_us
from feast_embeddings.materialize.online import detach


def run(cases: int, number: int) -> Counter[str]:
    """Check so many tables; how many were served, and how many refused."""
    from messy_tables import ZONE, Messy, check, messy_repo, messy_tables

    total: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        repos = {}
        for zone in (None, ZONE):
            place = Path(folder) / ("zoned" if zone else "plain")
            place.mkdir()
            os.chdir(place)
            repos[zone] = messy_repo(place, f"embedded:{folder}/valkey", zone)

        @seed(number)
        @settings(max_examples=cases, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(messy=messy_tables())
        def served_or_refused(messy: Messy) -> None:
            os.chdir(repos[messy.naive_zone].folder)
            with contextlib.redirect_stdout(io.StringIO()):
                total[check(repos[messy.naive_zone], messy, now_us())] += 1

        try:
            served_or_refused()
        finally:
            detach(Path(folder) / "valkey")
            os.chdir("/")
    return total


def main() -> int:
    """The command line; an assertion fails where a table is served wrong, or refused in other words."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    began = time.monotonic()
    total = run(args.cases, args.seed)
    seconds = time.monotonic() - began
    print(
        f"{total.total():,} tables in {seconds:.0f} s: {total['served']:,} right, {total['refused']:,} refused, 0 wrong"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

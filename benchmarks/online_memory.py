"""Memory of the job itself: `feast materialize` of a new fill, in a process of its own, its imports included.

    python benchmarks/online_memory.py FOLDER END_US

The process reads the behaviors, encodes every entity, stages, writes vectors and histories to Redis, cuts over and
writes the log, by Feast's own command through the engine. The encoder is a tiny one: it is not what is measured.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
from online_sides import Server

TESTS = Path(__file__).parents[1] / "tests" / "support"
_PART = 250_000


def measure_memory(folder: Path, server: Server, rows: int, dim: int) -> dict[str, float]:
    """Peak resident bytes of a refresh of ``rows`` entities with one or two behaviors each, and its rows."""
    sys.path.insert(0, str(TESTS))
    from repo_fixture import SmallRepo, day, tiny_encoder

    repo_folder = folder / "memory"
    repo_folder.mkdir()
    here = Path.cwd()
    os.chdir(repo_folder)
    try:
        repo = SmallRepo(repo_folder, f"127.0.0.1:{server.port}", "memory", dim=dim, contract='created_time="created"')
        repo.write()
        for number, table in enumerate(_behaviors(rows)):
            repo.deliver(table, f"part-{number:04d}")
        repo.encode_with(tiny_encoder(1, dim=dim, context=4))
    finally:
        os.chdir(here)
    command = [sys.executable, __file__, str(repo_folder), str(day(2))]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    written, peak = (float(part) for part in done.stdout.split()[-2:])
    if written != rows:
        raise SystemExit(f"{written:,.0f} rows are live, of {rows:,}")
    return {f"{rows:,} × {dim}, the whole job": peak}


def _behaviors(rows: int) -> Iterator[pa.Table]:
    """One or two behaviors of every entity, in the order of time: files as a log has them."""
    from repo_fixture import DAY, ITEMS, SCHEMA, T0, TYPES

    rng = np.random.default_rng(0)
    users = np.concatenate([rng.permutation(rows), rng.integers(0, rows, rows // 2)])
    for start in range(0, len(users), _PART):
        part = users[start : start + _PART]
        at = np.sort(rng.integers(0, DAY, len(part))) + T0
        columns = {
            "user": part,
            "item": rng.choice(ITEMS, len(part)),
            "event": np.array(TYPES)[rng.integers(0, 2, len(part))],
            "at": at,
            "price": rng.uniform(0, 20, len(part)),
            "id": pa.array(np.arange(start, start + len(part))).cast(pa.string()),
            "created": at,
        }
        yield pa.table({name: pa.array(columns[name]) for name in SCHEMA.names}).cast(SCHEMA)


def peak_bytes() -> int:
    """The largest this process became. On Linux, getrusage would also count what the parent was when it forked."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    """Run the job, and print the rows that are live and the peak in bytes."""
    os.chdir(sys.argv[1])
    from feast import FeatureStore

    from feast_embeddings.materialize.files import Workspace

    store = FeatureStore(".")
    end = datetime.fromtimestamp(int(sys.argv[2]) / 1_000_000, UTC)
    store.materialize(datetime(2020, 1, 1, tzinfo=UTC), end, ["user_embedding", "item_embedding"])
    peak = peak_bytes()
    (live,) = Workspace.of(store.config).ledger.fills(view="user_embedding", states=("live",))
    print(live.rows, peak)


if __name__ == "__main__":
    main()

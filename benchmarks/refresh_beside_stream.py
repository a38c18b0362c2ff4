"""A refresh beside a stream on two cores: how long a click waits for its vector meanwhile, and whether lag grows.

``make bench-refresh-beside-stream`` makes 200,000 users with histories of about 25 behaviors, an encoder, and a stream
of 500 clicks a second; first the stream alone, then with ``feast materialize`` of the streamed view beside it. The job
itself leaves the processors to the stream: it computes in one thread, of lower priority.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"
ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tests" / "support")]

import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "refresh_beside_stream.json"
ITEMS, CONTEXT, DAY_US = 5_000, 50, 86_400_000_000
PIECE_S = 10


def prepare(folder: Path, users: int, seed: int) -> None:
    """Histories, an encoder, and the clicks to send: users and items drawn from a seed, busy ones more often."""
    from feast_embeddings.models import HistoryBatch, SequenceConfig, TrainingConfig, save_encoder, train

    rng = np.random.default_rng(seed)
    count = users * 25
    who = rng.zipf(1.3, count) % users
    now = time.time_ns() // 1000
    at = np.sort(now - rng.integers(0, 30 * DAY_US, count))
    columns = {
        "user_id": np.concatenate([who, np.arange(users)]),
        "article_id": rng.integers(1, ITEMS, count + users),
        "at": pa.array(np.concatenate([at, np.full(users, now - 31 * DAY_US)])).cast(pa.timestamp("us", "UTC")),
        "id": [f"h{number}" for number in range(count + users)],
    }
    (folder / "data" / "behaviors").mkdir(parents=True)
    pq.write_table(pa.table(columns), folder / "data" / "behaviors" / "history.parquet")
    some = HistoryBatch(
        offsets=np.arange(0, 2_001 * 10, 10, dtype=np.int64),
        items=np.tile(np.arange(1, ITEMS), 5)[:20_000].astype(np.int64),
        behavior_types=np.zeros(20_000, np.int32),
        times=np.tile(np.arange(10), 2_000).astype(np.int64),
        values=np.full(20_000, np.nan, np.float32),
        as_of=np.full(2_000, 11, np.int64),
    )
    shape = SequenceConfig(dim=64, context=CONTEXT)
    made = train(TrainingConfig(encoder=shape, max_epochs=1, seed=seed), some, behavior_types=["click"])
    save_encoder(made.encoder, folder / "data" / "encoders" / "main")
    np.save(folder / "users.npy", rng.integers(0, users, 200_000))
    np.save(folder / "articles.npy", rng.integers(1, ITEMS, 200_000))


def waits(folder: Path, first: int, end: int) -> tuple[np.ndarray, np.ndarray]:
    """When each click was due, and how long it waited until its vector was servable; seconds [n] each, by time."""
    from stream import appended, applied

    ticks, due, waited = applied(folder), [], []
    for table in appended(folder):
        number = np.array([int(each[1:]) for each in table["id"].to_pylist()], np.int64)
        mine = (number >= first) & (number < end)
        at = table["at"].cast(pa.int64()).to_numpy()[mine]
        us = np.array([ticks[tick]["us"] for tick in table["_tick"].to_numpy()[mine].tolist()], np.int64)
        due.append(at / 1e6)
        waited.append((us - at) / 1e6)
    order = np.argsort(np.concatenate(due))
    return np.concatenate(due)[order], np.concatenate(waited)[order]


def summary(folder: Path, first: int, end: int, seconds: float) -> dict[str, Any]:
    """Figures of the clicks in a range."""
    _, waited = waits(folder, first, end)
    thirds = np.array_split(waited, 3)
    return {
        "clicks": len(waited), "seconds": round(seconds, 1), "p50_s": float(np.percentile(waited, 50)),
        "p99_s": float(np.percentile(waited, 99)), "longest_s": float(waited.max()),
        "median_s_by_third": [float(np.median(third)) for third in thirds],
    }  # fmt: skip


def measure(folder: Path, port: int, options: argparse.Namespace) -> dict[str, Any]:
    """The stream alone, then with a refresh beside it, from one and the same workers."""
    from stream import await_applied, processes, send

    with processes(folder, port, kafka=False, options=options) as (generator, _):
        send(generator, options.rate, 8, 0)
        warm = options.rate * 8
        await_applied(folder, warm, False, 120)
        began = time.monotonic()
        send(generator, options.rate, options.alone, warm)
        first = warm + options.rate * options.alone
        alone = (warm, first, time.monotonic() - began)
        await_applied(folder, first, False, 60)
        now, began, end = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S"), time.monotonic(), first
        command = [
            sys.executable,
            "-W",
            "ignore",
            "-c",
            "from feast.cli.cli import cli; cli()",
            "materialize",
            "2020-01-01T00:00:00",
            now,
        ]
        with Path("refresh.log").open("w") as log:
            refresh = subprocess.Popen(
                [*command, "-v", "user_embedding", "-v", "item_embedding"], stdout=log, stderr=log
            )
            while refresh.poll() is None:
                end += send(generator, options.rate, PIECE_S, end)["sent"]
        beside = (first, end, time.monotonic() - began)
        drained_s = await_applied(folder, end, False, 60)
    if refresh.returncode:
        raise SystemExit(Path("refresh.log").read_text()[-2000:])
    live = Path("refresh.log").read_text().count("is live, in space")
    return {
        "alone": summary(folder, *alone), "beside a refresh": summary(folder, *beside), "drained_s": drained_s,
        "refresh_s": round(beside[2], 1), "generations_made_live": live,
    }  # fmt: skip


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=200_000)
    parser.add_argument("--rate", type=int, default=500)
    parser.add_argument("--alone", type=int, default=20, help="seconds of the stream alone")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--every-ms", type=float, default=20)
    parser.add_argument("--max-events", type=int, default=2000)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    load_before = os.getloadavg()
    from online import machine
    from servers_fixture import BINARIES, running
    from stream import declared

    with tempfile.TemporaryDirectory() as name, running(BINARIES["valkey"], Path(name) / "valkey") as server:
        folder = Path(name) / "clicks"
        folder.mkdir()
        prepare(folder, options.users, 0)
        os.chdir(folder)
        declared(folder, server.port)
        found = measure(folder, server.port, options)
        os.chdir(ROOT)
    results = {"users": options.users, "rate": options.rate, **found, "machine": machine(load_before)}
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    table = Table(title=f"Clicks of a stream, {options.rate}/s", title_justify="left")
    for column in ("", "p50 s", "p99 s", "longest s", "median by third, s"):
        table.add_column(column, justify="right" if column else "left")
    for name in ("alone", "beside a refresh"):
        each = found[name]
        thirds = " ".join(f"{third:.2f}" for third in each["median_s_by_third"])
        table.add_row(name, *(f"{each[key]:.2f}" for key in ("p50_s", "p99_s", "longest_s")), thirds)
    Console(width=100).print(table)
    print(f"the refresh of {options.users:,} users took {found['refresh_s']:.0f} s and ended")
    return 0


if __name__ == "__main__":
    sys.exit(main())

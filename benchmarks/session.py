"""The session embedding: how long one request waits for it, where that time goes, and what a server of eight bears.

A generated shop: every user has 200 stored behaviors, and each request brings ten more. The encoder has the default
architecture, looks at 200 behaviors, and has random weights: they cost what trained ones cost. The process that
answers keeps to one core and one thread; the embedded Valkey has the other.

    python benchmarks/session.py
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from feast import FeatureStore
from feast.repo_config import load_repo_config
from feast.repo_operations import apply_total
from prometheus_client import CollectorRegistry
from rich.console import Console
from rich.table import Table

from feast_embeddings.materialize.clock import now_us
from feast_embeddings.materialize.demo import write_repo
from feast_embeddings.materialize.serving import REQUEST_METRICS, warm_up
from feast_embeddings.models import ItemIndex, SequenceConfig, SequenceEncoder, save_encoder

RESULTS = Path(__file__).parent / "results" / "session.json"
FEATURE = "session_embedding:session_embedding"
HISTORY = [f"history:history_{name}" for name in ("items", "types", "times", "values")]
TYPES = ("view", "cart", "purchase", "coupon")
STEP_MS, GOAL_MS = 20.0, 5.0
ITEMS, STORED, FRESH = 20_000, 200, 10


def write_shop(path: Path, users: int, seed: int) -> None:
    """``STORED`` behaviors of each user, over the last weeks."""
    rng = np.random.default_rng(seed)
    count = users * STORED
    at = now_us() - rng.integers(3_600_000_000, 30 * 86_400_000_000, count)
    columns = {
        "customer_id": np.repeat(np.arange(1, users + 1), STORED),
        "product_id": rng.integers(1, ITEMS + 1, count),
        "event": np.array(TYPES)[rng.integers(0, len(TYPES), count)],
        "occurred_at": pa.array(at).cast(pa.timestamp("us", tz="UTC")),
        "amount": rng.uniform(1, 100, count).round(2),
        "event_id": np.char.add("e", np.arange(count).astype(str)),
    }
    pq.write_table(pa.table(columns), path)


def live_repo(folder: Path, users: int, seed: int) -> FeatureStore:
    """A repo as ``init`` writes it, live, whose encoder looks at ``STORED`` behaviors."""
    write_repo(folder, data=lambda path: write_shop(path, users, seed))
    sys.path.insert(0, str(folder))  # Feast imports definitions.py from there
    os.chdir(folder)
    torch.manual_seed(seed)
    items = ItemIndex(np.arange(1, ITEMS + 1, dtype=np.int64))
    encoder = SequenceEncoder(SequenceConfig(dim=64, context=STORED), TYPES, items).eval()
    save_encoder(encoder, folder / "data" / "encoders" / "main")
    apply_total(load_repo_config(Path(), Path("feature_store.yaml")), Path(), skip_source_validation=True)
    store = FeatureStore(".")
    end = np.datetime64(now_us(), "us").astype(object)
    store.materialize(end.replace(year=2020), end, ["user_embedding", "item_embedding"])
    return FeatureStore(".")


def request(users: list[int], rng: np.random.Generator) -> dict[str, list[Any]]:
    """Rows for ``users``, each with ``FRESH`` behaviors of the last minutes."""
    at = now_us() - np.sort(rng.integers(1_000, 600_000_000, (len(users), FRESH)))[:, ::-1]
    return {
        "user_id": users,
        "session_items": rng.integers(1, ITEMS + 1, (len(users), FRESH)).tolist(),
        "session_types": np.array(TYPES)[rng.integers(0, len(TYPES), (len(users), FRESH))].tolist(),
        "session_times": at.tolist(),
    }


def quantiles(seconds: list[float], prefix: str = "") -> dict[str, float]:
    """Milliseconds: the median, and that of the slowest of a hundred."""
    numbers = np.quantile(seconds, [0.5, 0.99]) * 1e3
    return {f"{prefix}p50_ms": float(numbers[0]), f"{prefix}p99_ms": float(numbers[1])}


def timed(calls: int, work: Callable[[int], Any]) -> dict[str, float]:
    """Of ``calls`` calls, after a tenth as many that do not count: time that passed, and the processor's alone.

    The latter is what a core with nothing else to do would take, but for Redis' part; the machine may be shared.
    """
    for number in range(max(calls // 10, 3)):
        work(number)
    passed, worked = [], []
    for number in range(calls):
        start, begun = time.perf_counter(), time.process_time()
        work(number)
        worked.append(time.process_time() - begun)
        passed.append(time.perf_counter() - start)
    return quantiles(passed) | quantiles(worked, "processor_")


def _sum(part: str) -> float:
    labels = {"view": "session_embedding", "part": part}
    registry: CollectorRegistry = REQUEST_METRICS
    return registry.get_sample_value("feast_embeddings_session_seconds_sum", labels) or 0.0


def measure(store: FeatureStore, users: int, batch: int, calls: int, seed: int) -> dict[str, Any]:
    """Requests for ``batch`` users, their parts, and the same read without the session."""
    rng = np.random.default_rng(seed)
    asked = [request(rng.choice(np.arange(1, users + 1), batch, replace=False).tolist(), rng) for _ in range(calls)]
    plain = [{"user_id": rows["user_id"]} for rows in asked]
    before = {part: _sum(part) for part in ("merge", "encode")}
    made = calls + max(calls // 10, 3)
    found: dict[str, Any] = timed(calls, lambda n: store.get_online_features([FEATURE], asked[n]).to_dict())
    parts = {f"{part}_ms": (_sum(part) - before[part]) / made * 1e3 for part in before}
    stored = timed(calls, lambda n: store.get_online_features(HISTORY, plain[n]).to_dict())
    found["mean of parts"] = parts
    found["reading the stored history alone"] = stored
    return found


@contextlib.contextmanager
def served(folder: Path) -> Iterator[int]:
    """``feast serve`` with one worker on loopback; its port."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    feast = str(Path(sys.executable).with_name("feast"))
    command = [feast, "-c", str(folder), "serve", "-h", "127.0.0.1", "-p", str(port), "--no-access-log"]
    with (folder / "serve.log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            _await(port)
            yield port
        finally:
            process.terminate()


def _await(port: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        time.sleep(0.3)
    raise RuntimeError("feast serve did not answer within two minutes: see serve.log")


def measure_server(folder: Path, users: int, clients: int, seconds: float, seed: int) -> dict[str, float]:
    """Clients that ask ``feast serve`` for one user each, one request after the other."""
    took: list[float] = []
    errors: list[str] = []
    with served(folder) as port:
        done = threading.Event()
        work = [
            threading.Thread(target=_client, args=(port, users, seed + number, done, took, errors))
            for number in range(clients)
        ]
        for each in work:
            each.start()
        time.sleep(seconds)
        done.set()
        for each in work:
            each.join()
    return quantiles(took) | {"requests": len(took), "requests/s": len(took) / seconds, "errors": len(errors)}


def _client(port: int, users: int, seed: int, done: threading.Event, took: list[float], errors: list[str]) -> None:
    rng = np.random.default_rng(seed)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    while not done.is_set():
        body = json.dumps({"features": [FEATURE], "entities": request([int(rng.integers(1, users + 1))], rng)})
        start = time.perf_counter()
        connection.request("POST", "/get-online-features", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = json.loads(response.read())
        took.append(time.perf_counter() - start)
        vector = answer["results"][-1]["values"][0] if response.status == 200 else None
        if not vector or len(vector) != 64:
            errors.append(str(answer)[:200])


def machine(load_before: tuple[float, float, float]) -> dict[str, object]:
    """What the figures were measured on."""
    cpu = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in cpu.read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "feast": version("feast"),
        "load before and after": [load_before, os.getloadavg()],
    }


def show(results: dict[str, Any]) -> None:
    """One table, the main figures first."""
    heads = ("request", "p50 ms", "p99 ms", "step p99 <", "goal", "processor p50", "p99", "of it: merge", "encode")
    table = Table(*heads, "stored history alone")
    for batch, found in results["batches"].items():
        parts, stored = found["mean of parts"], found["reading the stored history alone"]
        bounds = (f"{STEP_MS:g}", f"{GOAL_MS:g}") if batch == "1" else ("", "")
        numbers = (found["p50_ms"], found["p99_ms"])
        worked = (found["processor_p50_ms"], found["processor_p99_ms"])
        rest = (*worked, parts["merge_ms"], parts["encode_ms"], stored["p50_ms"])
        name = f"{batch} user(s), {STORED} stored + {FRESH} new"
        table.add_row(name, *map("{:.2f}".format, numbers), *bounds, *map("{:.2f}".format, rest))
    server = results["feast serve"]
    rate = f"{server['requests/s']:.0f}/s, {server['errors']} errors"
    name = f"feast serve, {results['clients']} clients: {rate}"
    table.add_row(name, f"{server['p50_ms']:.2f}", f"{server['p99_ms']:.2f}")
    console = Console(width=140)
    console.print(table)
    console.print(results["machine"])


def main() -> None:
    """Measures, prints, and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=1_000)
    parser.add_argument("--calls", type=int, default=1_000, help="requests for one user; a tenth as many for 100")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    out = options.out.resolve()
    warnings.simplefilter("ignore")  # Feast's
    torch.set_num_threads(1)
    load_before = os.getloadavg()
    results: dict[str, Any] = {
        "users": options.users,
        "clients": options.clients,
        "step_ms": STEP_MS,
        "goal_ms": GOAL_MS,
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve() / "shop"
        store = live_repo(folder, options.users, options.seed)
        warm_up(store)
        cores = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {max(cores)})
        results["batches"] = {
            "1": measure(store, options.users, 1, options.calls, options.seed),
            "100": measure(store, options.users, 100, max(options.calls // 10, 10), options.seed),
        }
        os.sched_setaffinity(0, cores)
        results["feast serve"] = measure_server(folder, options.users, options.clients, options.seconds, options.seed)
        os.chdir(out.parent.parent)
    results["machine"] = machine(load_before)
    results["command"] = " ".join(["python", *sys.argv])
    show(results)
    out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""A stream of clicks on two cores: how many per second, and how long from a click to the vector that knows it.

``make bench-stream DATA=globo_clicks_1001_1008.parquet`` replays Globo's clicks of 2017-10-07 at fixed rates through
Redis Streams on a Valkey of this machine, then through Kafka (librdkafka's mock cluster). The load comes from a
process of its own, whose processor time is shown. A click's time is when it was due to be sent, so a late generator
counts against the result. Beside it, stock Feast: ``store.push`` of the same clicks into an ordinary view.
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
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"
ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tests" / "support")]

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "stream.json"
PARTITIONS, TOPIC, WARM_S = 4, "clicks", 2
_YAML = """\
project: clicks
provider: local
registry: data/registry.db
online_store:
  type: {online}
  connection_string: {connection}
offline_store: {{type: feast_embeddings.materialize.offline_store.EmbeddingOfflineStore}}
batch_engine: {{type: feast_embeddings.materialize.engine.EmbeddingEngine, device: cpu}}
entity_key_serialization_version: 3
"""
_OURS = "feast_embeddings.materialize.online_store.EmbeddingOnlineStore"


def declared(folder: Path, port: int) -> Any:
    """A feature repo on the clicks, applied and live."""
    from feast import Entity, FeatureStore, ValueType

    from feast_embeddings.materialize import (
        EncoderRef,
        Incremental,
        Inputs,
        embedding_view,
        history_view,
        item_embedding_view,
    )
    from feast_embeddings.transformations import BehaviorContract, BehaviorType, behavior_source, behaviors_view

    (folder / "feature_store.yaml").write_text(_YAML.format(online=_OURS, connection=f"redis://127.0.0.1:{port}/0"))
    user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)
    item = Entity(name="item", join_keys=["article_id"], value_type=ValueType.INT64)
    contract = BehaviorContract(
        join_key="user_id", entity="user_id", item="article_id", event_time="at", dedup_id="id",
        types=(BehaviorType("click"),), default_type="click",
    )  # fmt: skip
    source = behavior_source("clicks", path="data/behaviors", contract=contract)
    behaviors = behaviors_view("behaviors", entity=user, source=source, contract=contract)
    history = history_view("history", entity=user, behaviors=behaviors)
    encoder = EncoderRef("main", dim=64)
    users = embedding_view(
        "user_embedding",
        entity=user,
        inputs=Inputs(behaviors, history),
        encoder=encoder,
        policy=Incremental(every="1d"),
    )
    store = FeatureStore(".")
    store.apply(
        [
            user,
            item,
            behaviors,
            history,
            users,
            item_embedding_view("item_embedding", entity=item, encoder=encoder),
        ]
    )
    now = datetime.now(UTC)
    store.materialize(now - timedelta(days=9), now, ["user_embedding", "item_embedding"])
    return store


def prepare(folder: Path, data: Path, minutes: float, encoder: Path | None) -> dict[str, Any]:
    """History, clicks to send, and the encoder; times are moved so that 2017-10-07 begins now."""
    from globo import DAY_US, TRAIN_END_US, TRAIN_START_US, read_globo, trained

    from feast_embeddings.models import load_encoder, save_encoder

    behaviors = read_globo(data)
    made = load_encoder(encoder) if encoder else trained(behaviors, minutes).encoder
    save_encoder(made, folder / "data" / "encoders" / "main")
    past = behaviors.between(TRAIN_START_US, TRAIN_END_US).table
    shift = time.time_ns() // 1000 - TRAIN_END_US
    at = pa.array(past["event_time"].cast(pa.int64()).to_numpy() + shift).cast(pa.timestamp("us", "UTC"))
    ids = pa.array([f"h{number}" for number in range(len(past))])
    (folder / "data" / "behaviors").mkdir(parents=True)
    table = pa.table({"user_id": past["entity"], "article_id": past["item"], "at": at, "id": ids})
    pq.write_table(table, folder / "data" / "behaviors" / "history.parquet")
    future = behaviors.between(TRAIN_END_US, TRAIN_END_US + DAY_US).table.sort_by("event_time")
    np.save(folder / "users.npy", future["entity"].to_numpy())
    np.save(folder / "articles.npy", future["item"].to_numpy())
    return {
        "history": len(past),
        "clicks": len(future),
        "users": len(np.unique(past["entity"].to_numpy())),
        "context": made.context,
    }


@contextmanager
def processes(folder: Path, port: int, kafka: bool, options: argparse.Namespace) -> Iterator[tuple[Any, list[Any]]]:
    """The generator, and the workers once they hold their lanes."""
    from feast_embeddings.materialize.online import stream_key

    program = [sys.executable, str(ROOT / "benchmarks" / "stream_processes.py")]
    common = ["--folder", str(folder), "--partitions", str(PARTITIONS)]
    common += ["--kafka", TOPIC] if kafka else []
    keys = json.dumps([stream_key("clicks", "behaviors", each) for each in range(PARTITIONS)])
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    generator = subprocess.Popen([*program, "generate", *common, "--port", str(port), "--keys", keys], **pipes)
    brokers = json.loads(generator.stdout.readline()).get("brokers", "")
    more = ["--brokers", brokers, "--workers", str(options.workers), "--every-ms", str(options.every_ms)]
    more += ["--max-events", str(options.max_events)]
    workers = [subprocess.Popen([*program, "work", *common, *more], **pipes) for _ in range(options.workers)]
    try:
        for worker in workers:
            worker.stdout.readline()
        yield generator, workers
    finally:
        for each in (workers, [generator]):  # the brokers live in the generator: it goes last
            for process in each:
                process.terminate()
            for process in each:
                process.wait(30)


def measure(
    folder: Path, port: int, rates: list[int], options: argparse.Namespace, *, kafka: bool
) -> list[dict[str, Any]]:
    """Every rate in turn, each from an empty stream; ends at the first that is not kept up with."""
    found = []
    with processes(folder, port, kafka, options) as (generator, workers):
        first = 10_000_000 if kafka else 0
        send(generator, 200, 5, first)  # encoders loaded, lanes shared
        first += 1000
        await_applied(folder, first - (10_000_000 if kafka else 0), kafka, 120)
        for rate in rates:
            before = [_cpu(worker.pid) for worker in workers]
            sent = send(generator, rate, options.seconds, first)
            first += sent["sent"]
            drained_s = await_applied(folder, first - (10_000_000 if kafka else 0), kafka, 60)
            spent = options.seconds + drained_s
            worked = sum(_cpu(worker.pid) - each for worker, each in zip(workers, before, strict=True)) / spent
            line = _latencies(folder, first - sent["sent"], first, sent["began"] + WARM_S)
            found.append(
                {"rate": rate, "drained_s": drained_s, "generator_cpu": sent["cpu"], "workers_cpu": worked, **line}
            )
            print(json.dumps(found[-1]), flush=True)
            if line["p99_ms"] > 3000 or drained_s > 5:
                break
    return found


def send(generator: Any, rate: int, seconds: int, first: int) -> dict[str, Any]:
    """Have clicks sent at a rate; what the generator says of it."""
    generator.stdin.write(f"{rate} {seconds} {first}\n")
    generator.stdin.flush()
    answer: dict[str, Any] = json.loads(generator.stdout.readline())
    return answer


def applied(folder: Path) -> dict[int, dict[str, Any]]:
    """What the workers wrote of their ticks, by number."""
    ticks: dict[int, dict[str, Any]] = {}
    for path in folder.glob("ticks-*.jsonl"):
        for line in path.read_text().splitlines():
            record = json.loads(line)
            ticks[record["tick"]] = record
    return ticks


_read_before: dict[bool, int] = {}


def await_applied(folder: Path, count: int, kafka: bool, within_s: float) -> float:
    """Wait until so many messages of this source were applied; the seconds it took."""
    began = time.monotonic()
    while sum(tick["read"] for tick in applied(folder).values()) - _read_before.setdefault(kafka, 0) < count:
        if time.monotonic() - began > within_s:
            raise SystemExit(f"{count:,} clicks were not applied within {within_s:.0f} s")
        time.sleep(0.1)
    return time.monotonic() - began


def _cpu(pid: int) -> float:
    import psutil

    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def _latencies(folder: Path, first: int, end: int, since_s: float) -> dict[str, Any]:
    """From the behavior log: each click's time, and its tick's; the first seconds of a rate warm it up."""
    time.sleep(0.5)
    ticks, late, rows = applied(folder), [], 0
    used: set[int] = set()
    for table in appended(folder):
        number = np.array([int(each[1:]) for each in table["id"].to_pylist()], np.int64)
        at = table["at"].cast(pa.int64()).to_numpy()
        mine = (number >= first) & (number < end) & (at >= since_s * 1e6)
        tick = table["_tick"].to_numpy()[mine]
        rows += len(tick)
        used |= set(tick.tolist())
        late.append(np.array([ticks[each]["us"] for each in tick.tolist()], np.int64) - at[mine])
    ms = np.concatenate(late) / 1000
    stages = {
        name: float(np.median([ticks[each].get(name, 0) for each in used])) * 1000
        for name in ("encode", "stage", "write")
    }
    return {
        "clicks": rows,
        "p50_ms": float(np.percentile(ms, 50)),
        "p99_ms": float(np.percentile(ms, 99)),
        "ticks": len(used),
        **{f"{name}_ms": value for name, value in stages.items()},
    }


def appended(folder: Path) -> list[pa.Table]:
    """What was appended to the behavior log; read again where the workers put files together meanwhile."""
    while True:
        try:
            paths = sorted((folder / "data" / "behaviors").glob("stream-*.parquet"))
            return [pq.ParquetFile(path).read(columns=["at", "id", "_tick"]) for path in paths]
        except FileNotFoundError:
            continue


def measure_stock(folder: Path, port: int, sizes: tuple[int, ...], seconds: float) -> list[dict[str, Any]]:
    """Stock Feast: how many clicks per second ``store.push`` takes, by clicks per call, and how long a call lasts."""
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, PushSource, ValueType
    from feast.data_source import PushMode
    from feast.types import Int64

    place = folder / "stock"
    place.mkdir()
    settings = {
        "project": "stock",
        "provider": "local",
        "registry": "registry.db",
        "entity_key_serialization_version": 3,
    }
    settings["online_store"] = {"type": "redis", "connection_string": f"localhost:{port}"}  # type: ignore[assignment]
    (place / "feature_store.yaml").write_text(json.dumps(settings))  # JSON is YAML
    store = FeatureStore(str(place))
    user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)
    log = FileSource(name="log", path="log.parquet", timestamp_field="at")
    schema = [Field(name="user_id", dtype=Int64), Field(name="article_id", dtype=Int64)]
    source = PushSource(name="clicks", batch_source=log)
    store.apply([user, FeatureView(name="clicks", entities=[user], schema=schema, source=source, ttl=timedelta(0))])
    users, articles = np.load(folder / "users.npy"), np.load(folder / "articles.npy")
    found = []
    for size in sizes:
        calls, done, began = [], 0, time.monotonic()
        while time.monotonic() - began < seconds:
            part = slice(done, done + size)
            frame = pd.DataFrame(
                {"user_id": users[part], "article_id": articles[part].astype(np.int64), "at": pd.Timestamp.now("UTC")}
            )
            start = time.perf_counter()
            store.push("clicks", frame, to=PushMode.ONLINE)
            calls.append((time.perf_counter() - start) * 1000)
            done += size
        spent = time.monotonic() - began
        found.append(
            {
                "clicks_per_call": size,
                "per_s": done / spent,
                "p50_ms": float(np.percentile(calls, 50)),
                "p99_ms": float(np.percentile(calls, 99)),
            }
        )
    return found


def show(results: dict[str, Any]) -> None:
    """One table."""
    table = Table(title="From click to servable vector", title_justify="left")
    for column in ("path", "clicks/s", "p50 ms", "p99 ms", "clicks a tick", "workers' cores", "generator's cores"):
        table.add_column(column, justify="left" if column == "path" else "right")
    for name in ("redis", "kafka"):
        for each in results[name]:
            ok = "" if each["drained_s"] < 2 else " (not kept up with)"
            size = each["clicks"] / max(each["ticks"], 1)
            figures = [f"{each['rate']:,}", f"{each['p50_ms']:.0f}", f"{each['p99_ms']:.0f}", f"{size:.0f}"]
            cores = [f"{each['workers_cpu']:.2f}", f"{each['generator_cpu']:.2f}"]
            table.add_row(f"feast-embeddings, {name}{ok}", *figures, *cores)
    for each in results["stock"]:
        name = f"stock push, {each['clicks_per_call']:,} a call, no vectors"
        table.add_row(name, f"{each['per_s']:,.0f}", f"{each['p50_ms']:.0f}", f"{each['p99_ms']:.0f}", "", "", "")
    Console(width=130).print(table)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--encoder", type=Path, help="a trained encoder; default: train one")
    parser.add_argument("--minutes", type=float, default=1.0, help="of training")
    parser.add_argument("--rates", default="500,1000,2000,4000,6000,8000,10000")
    parser.add_argument("--kafka-rates", default="500,2000,4000")
    parser.add_argument("--seconds", type=int, default=12)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--every-ms", type=float, default=20)
    parser.add_argument("--max-events", type=int, default=2000)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    from online import machine
    from servers_fixture import BINARIES, running

    load = os.getloadavg()
    with tempfile.TemporaryDirectory() as name, running(BINARIES["valkey"], Path(name) / "valkey") as server:
        folder = Path(name) / "clicks"
        folder.mkdir()
        results: dict[str, Any] = {"data": prepare(folder, options.data.resolve(), options.minutes, options.encoder)}
        os.chdir(folder)
        declared(folder, server.port)
        rates = [int(each) for each in options.rates.split(",")]
        results["redis"] = measure(folder, server.port, rates, options, kafka=False)
        _read_before[True] = sum(tick["read"] for tick in applied(folder).values())
        kafka_rates = [int(each) for each in options.kafka_rates.split(",") if each]
        results["kafka"] = measure(folder, server.port, kafka_rates, options, kafka=True)
        results["stock"] = measure_stock(folder, server.port, (1, 100, 1000), 5)
        os.chdir(ROOT)
    show(results)
    results["options"] = {key: str(value) for key, value in vars(options).items() if key not in ("data", "encoder")}
    results["machine"] = machine(load)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

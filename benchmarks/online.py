"""The online store beside stock Feast: writing embeddings, reading them, and what they take in Redis.

Both sides work in the same run, in turn, on the same rows, over the same kind of connection, on real servers. What
counts are the ratios: seconds are those of the machine at hand, and of whoever else uses it.

    python benchmarks/online.py
    python benchmarks/online.py --memory 2000000      # also the memory of a job that writes as many rows
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from online_memory import measure_memory
from online_sides import FEATURE_REF, Ours, Server, Side, Stock, servers, write_log
from online_storage import bytes_of, measure_storage
from rich.console import Console
from rich.table import Table

from feast_embeddings.materialize import read_vectors

RESULTS = Path(__file__).parent / "results" / "online.json"
SIZES = (1, 100, 1000)
IN_A_ROW = 25
"""Calls of one side before the other's turn: a service calls its store again and again."""
WRITE = "materialize {rows:,} × {dim}"
Goals = dict[str, float]
Way = TypeVar("Way")
GOALS: Goals = {
    "materialize": 12,
    "read_vectors 1": 1.5,
    "read_vectors 100": 6,
    "read_vectors 1000": 12,
    "get_online_features 1": 1,
    "get_online_features 1000": 2,
}
"""At least so many times as fast as stock Feast."""


def timed(server: Server, work: Callable[[], None]) -> dict[str, float]:
    """Seconds of one piece of work: on the clock, of this process' processor time, and of the server's."""
    cpu, own, start = server.cpu(), time.process_time(), time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "client_cpu": time.process_time() - own, "server_cpu": server.cpu() - cpu}


def median_of(runs: list[dict[str, float]]) -> dict[str, float]:
    """Medians, each figure by itself."""
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def measure_writes(server: Server, ours: Ours, stock: Stock, rows: int, repeats: int) -> dict[str, Any]:
    """Both sides in turn, each on an empty server."""
    work = {"ours": ours.write, "stock": stock.write}
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in work}
    for _ in range(repeats):
        for name, write in work.items():
            server.flush()
            runs[name].append(timed(server, write))
            if name != "stock":  # quick, and as noisy as short: once more
                server.flush()
                runs[name].append(timed(server, write))
    found = {name: median_of(each) for name, each in runs.items()}
    return {
        **{name: each | {"rows_per_second": rows / each["seconds"]} for name, each in found.items()},
        "ratio": found["stock"]["seconds"] / found["ours"]["seconds"],
        "best_ratio": _best(runs["stock"]) / _best(runs["ours"]),
        "client_cpu_ratio": found["stock"]["client_cpu"] / found["ours"]["client_cpu"],
    }


def _best(runs: list[dict[str, float]]) -> float:
    return min(run["seconds"] for run in runs)


def measure_bytes(server: Server, ours: Ours, stock: Stock) -> dict[str, float]:
    """Bytes per entity in Redis, of each side alone: MEMORY USAGE of sampled keys, and growth of used memory.

    The server keeps the rows of the last side, stock Feast's.
    """
    found = {}
    sides: dict[str, Ours | Stock] = {"ours": ours, "stock": stock}
    for name, side in sides.items():
        server.flush()
        before = server.client.info("memory")["used_memory"]  # type: ignore[index]
        side.write()
        used = server.client.info("memory")["used_memory"] - before  # type: ignore[index]
        found[name] = bytes_of(server)
        found[f"{name}_used"] = used / server.client.dbsize()
    return found | {"ratio": found["ours"] / found["stock"]}


def measure_reads(ours: Ours, stock: Stock, entities: int, repeats: int, loop: asyncio.Runner) -> dict[str, Any]:
    """Seconds of one read of so many entities, by each way of asking; every way in turn, a few reads in a row.

    In a row, because a server that answers requests finds its own code and rows in the processor's caches, not those of
    the other side.
    """
    ids = list(range(7, 7 + entities))
    ways: dict[str, Callable[[], Any]] = {
        "stock": lambda: stock.ask(ids),
        "ours": lambda: ours.ask(ids),
        "stock to_dict": lambda: stock.ask(ids).to_dict(),
        "ours to_dict": lambda: ours.ask(ids).to_dict(),
        "read_vectors": lambda: read_vectors(ours.store, FEATURE_REF, ids),
    }
    assert stock.ask(ids).to_dict() == ours.ask(ids).to_dict()
    runs: dict[str, list[float]] = {name: [] for name in ways}
    for name, read in _turns(ways, repeats):
        start = time.perf_counter()
        read()
        runs[name].append(time.perf_counter() - start)
    seconds = {name: statistics.median(each) for name, each in runs.items()}
    seconds |= loop.run(measure_async(ours, stock, ids, repeats))
    return {
        "seconds": seconds,
        "read_vectors": seconds["stock to_dict"] / seconds["read_vectors"],
        "get_online_features": seconds["stock"] / seconds["ours"],
        "get_online_features_async": seconds["stock async"] / seconds["ours async"],
    }


def _turns(ways: Mapping[str, Way], repeats: int) -> Iterator[tuple[str, Way]]:
    """Every way so many times, in turn, ``IN_A_ROW`` times each."""
    for _ in range(-(-repeats // IN_A_ROW)):
        for way in ways.items():
            yield from [way] * IN_A_ROW


async def measure_async(ours: Ours, stock: Stock, ids: list[int], repeats: int) -> dict[str, float]:
    """As :func:`measure_reads`, of the asynchronous call."""
    sides: dict[str, Side] = {"stock async": stock, "ours async": ours}
    runs: dict[str, list[float]] = {name: [] for name in sides}
    for name, side in _turns(sides, repeats):
        start = time.perf_counter()
        await side.ask_async(ids)
        runs[name].append(time.perf_counter() - start)
    return {name: statistics.median(each) for name, each in runs.items()}


def measure(server: Server, folder: Path, log: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Everything on one server."""
    ours = Ours(folder / f"ours {server.name}", server, log)
    stock = Stock(folder / f"stock {server.name}", server, log)
    found: dict[str, Any] = {"writes": measure_writes(server, ours, stock, options.rows, options.repeats)}
    found["bytes_per_entity"] = measure_bytes(server, ours, stock)
    ours.write()  # beside stock's, which it has left
    os.sync()  # else the server still writes its file while it is read from
    with asyncio.Runner() as loop:  # one for all: stock Feast's connections belong to the first
        found["reads"] = {
            str(size): measure_reads(ours, stock, size, min(300, max(3 * IN_A_ROW, options.reads // size)), loop)
            for size in options.sizes
        }
        for side in (ours, stock):
            loop.run(side.store._get_provider().online_store.close())
    found["storage"] = measure_storage(server, ours, options.sizes[-1], max(15, options.reads // options.sizes[-1]))
    return found


def machine(load_before: tuple[float, float, float]) -> dict[str, object]:
    """What the figures were measured on, and how busy it was at the start and the end."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.partition(":")[2].strip() for line in info.splitlines() if line.startswith("model name")]
    packages = ("feast", "redis", "hiredis", "numpy", "pyarrow", "duckdb")
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "load_average": [load_before, os.getloadavg()],
    }


def lines(found: dict[str, Any], options: argparse.Namespace) -> Iterator[tuple[str, str, str, str, str]]:
    """Rows of the table for one server: what, ratio, goal, ours, stock."""
    writes = found["writes"]
    rate = {name: f"{writes[name]['rows_per_second']:,.0f} rows/s" for name in ("ours", "stock")}
    what = WRITE.format(rows=options.rows, dim=options.dim)
    yield what, f"{writes['ratio']:.1f} ×", f"{GOALS['materialize']:.0f} ×", rate["ours"], rate["stock"]
    cpu = {name: f"{writes[name]['client_cpu'] / options.rows * 1e6:.2f} µs/row" for name in ("ours", "stock")}
    yield "  processor time of the job", f"{writes['client_cpu_ratio']:.1f} ×", "", cpu["ours"], cpu["stock"]
    cpu = {name: f"{writes[name]['server_cpu'] / options.rows * 1e6:.2f} µs/row" for name in ("ours", "stock")}
    yield "  processor time of the server", "", "", cpu["ours"], cpu["stock"]
    for way, peer in (
        ("read_vectors", "stock to_dict"),
        ("get_online_features", "stock"),
        ("get_online_features_async", "stock async"),
    ):
        for size, reads in found["reads"].items():
            goal = GOALS.get(f"{way} {size}")
            mine = {"get_online_features": "ours", "get_online_features_async": "ours async"}.get(way, way)
            figures = [f"{reads['seconds'][name] * 1e3:.2f} ms" for name in (mine, peer)]
            yield f"{way}, {int(size):,}", f"{reads[way]:.1f} ×", f"{goal:g} ×" if goal else "", figures[0], figures[1]
    sizes = found["bytes_per_entity"]
    yield "bytes per entity", f"{sizes['ratio']:.2f}", "", f"{sizes['ours']:.0f}", f"{sizes['stock']:.0f}"
    used = f"{sizes['ours_used']:.0f}", f"{sizes['stock_used']:.0f}"
    yield "  growth of used memory", f"{sizes['ours_used'] / sizes['stock_used']:.2f}", "", *used
    full = found["storage"]["float32"]
    for storage, kept in found["storage"].items():
        what = f"{storage}: bytes per entity, read_vectors {options.sizes[-1]:,}"
        ratios = [f"{kept[name] / full[name]:.2f}" for name in ("bytes_per_entity", "read_seconds")]
        yield what, ", ".join(ratios), "", f"{kept['bytes_per_entity']:.0f}, {kept['read_seconds'] * 1e3:.2f} ms", ""


def show(results: dict[str, Any], options: argparse.Namespace) -> None:
    """Prints one table."""
    table = Table(title="Online store: feast-embeddings beside stock Feast")
    for column in ("server", "what", "ratio", "goal", "ours", "stock"):
        table.add_column(column, justify="left" if column in ("server", "what") else "right")
    for server, found in results["servers"].items():
        for number, line in enumerate(lines(found, options)):
            table.add_row(server if number == 0 else "", *line)
        table.add_section()
    for name, peak in results.get("memory", {}).items():
        table.add_row("", f"peak memory, {name}", "", "1.5 GiB", f"{peak / 2**30:.2f} GiB", "")
    console = Console(width=120)
    console.print(table)
    console.print(results["machine"])


def parsed(arguments: list[str]) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3, help="stock writes; the quicker ones are done twice as often")
    parser.add_argument("--reads", type=int, default=20_000, help="entities to read in all, by each way and size")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="entities per read")
    parser.add_argument("--memory", type=int, default=200_000, help="rows of the job whose memory is measured; 0: none")
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args(arguments)


def main() -> None:
    """Measures, prints, and writes the results."""
    options = parsed(sys.argv[1:])
    warnings.simplefilter("ignore")  # Feast's
    load_before = os.getloadavg()
    results: dict[str, Any] = {"rows": options.rows, "dim": options.dim, "goals": GOALS, "servers": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        log = write_log(folder / "log", options.rows, options.dim)
        with servers(folder) as running:
            for server in running:
                results["servers"][server.name] = measure(server, folder, log, options)
                server.flush()
            if options.memory:
                results["memory"] = measure_memory(folder, running[-1], options.memory, options.dim)
    results["machine"] = machine(load_before)
    results["command"] = " ".join(["python", *sys.argv])
    show(results, options)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""How fast histories become vectors: length-bucketed batches, bf16, a request alone, one behavior more.

All sides work in the same run, in turn, on the same histories and weights, on one thread. What counts are the ratios.
Times are processor times of the process, so that others on the machine count less; wall times of requests stand beside.
The naive side is the same network over batches of 256, each padded to its longest history, in eager float32, with
torch's fused attention; it computes every state and takes the last.

    python benchmarks/encode.py --data ml1m_sequences.tsv.gz

Without data, lengths are drawn from a log-normal with MovieLens-1M's median and spread.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from quality_ml1m import DATA_VARIABLE, machine, read_sequences
from rich.console import Console
from rich.table import Table
from torch import nn

from feast_embeddings.models import HistoryBatch, ItemIndex, SequenceConfig, SequenceEncoder, Tokens
from feast_embeddings.models.encoder import latest

RESULTS = Path(__file__).parent / "results" / "encode.json"
CONTEXT, DIM, NAIVE_BATCH, ITEMS = 200, 64, 256, 3416
NAIVE = "naive, padded, float32"
SECOND_US = 1_000_000


def drawn_lengths(path: Path | None, users: int, generator: np.random.Generator) -> np.ndarray:
    """Lengths of histories: of users of the data, or drawn like them."""
    if path is not None:
        lengths = np.array([len(sequence) - 1 for sequence in read_sequences(path)])
        return generator.choice(lengths, users, replace=users > len(lengths))
    return np.maximum(19, generator.lognormal(np.log(96), 0.98, users)).astype(np.int64)


def histories(lengths: np.ndarray, generator: np.random.Generator) -> HistoryBatch:
    """Random histories of those lengths."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    total = int(offsets[-1])
    position = np.arange(total) - np.repeat(offsets[:-1], lengths)
    return HistoryBatch(
        offsets=offsets,
        items=generator.integers(0, ITEMS, total),
        behavior_types=np.zeros(total, np.int32),
        times=position * SECOND_US,
        values=np.full(total, np.nan, np.float32),
        as_of=lengths * SECOND_US,
    )


def encoder_of(precision: str) -> SequenceEncoder:
    """The encoder, the same weights for every side."""
    torch.manual_seed(0)
    config = SequenceConfig(dim=DIM, context=CONTEXT)
    encoder = SequenceEncoder(config, ("rating",), ItemIndex(np.arange(ITEMS)), precision=precision)  # type: ignore[arg-type]
    for block in encoder.blocks:
        nn.init.normal_(block.distance_bias)
    return encoder.eval()


@torch.inference_mode()
def naive(encoder: SequenceEncoder, batch: HistoryBatch) -> np.ndarray:
    """Batches in the order they come, padded to the longest, every state computed."""
    batch = latest(batch, CONTEXT)
    tokens = Tokens.of(batch, encoder.items, None, 1)
    starts, lengths = torch.from_numpy(batch.offsets[:-1].copy()), torch.from_numpy(batch.lengths)
    vectors = []
    for start in range(0, len(batch), NAIVE_BATCH):
        part = slice(start, start + NAIVE_BATCH)
        padded = tokens.padded(starts[part], lengths[part], int(lengths[part].max()))
        states = encoder(padded)  # (256, L, D)
        vectors.append(states[torch.arange(len(states)), lengths[part] - 1].numpy())
    return np.concatenate(vectors)


def split_last(batch: HistoryBatch) -> tuple[HistoryBatch, HistoryBatch]:
    """Histories without their last behavior, and that behavior."""
    last = batch.offsets[1:] - 1
    return _chosen(batch, np.delete(np.arange(len(batch.items)), last), batch.lengths - 1, batch.times[last]), _chosen(
        batch, last, np.ones(len(batch), np.int64), batch.as_of
    )


def _chosen(batch: HistoryBatch, at: np.ndarray, lengths: np.ndarray, as_of: np.ndarray) -> HistoryBatch:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    parts = (batch.items[at], batch.behavior_types[at], batch.times[at], batch.values[at])
    return HistoryBatch(offsets, *parts, as_of)


def in_turn(sides: dict[str, Callable[[], Any]], runs: int) -> dict[str, float]:
    """Median processor seconds of each side, after one run of each that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for run in range(runs + 1):
        for name, side in sides.items():
            started = time.process_time()
            side()
            if run:
                seconds[name].append(time.process_time() - started)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def alone(encode: Callable[[HistoryBatch], Any], one: HistoryBatch, requests: int) -> dict[str, float]:
    """Milliseconds of requests for one history: processor time, and wall time with whatever else is running."""
    wall, processor = np.zeros((2, requests))
    for number in range(requests):
        started, cpu_started = time.perf_counter(), time.process_time()
        encode(one)
        processor[number], wall[number] = time.process_time() - cpu_started, time.perf_counter() - started
    percentiles = {"p50": 50, "p99": 99}
    figures = {f"wall_{name}_ms": 1e3 * float(np.percentile(wall, at)) for name, at in percentiles.items()}
    return {"processor_p50_ms": 1e3 * float(np.median(processor)), "wall_min_ms": 1e3 * float(wall.min())} | figures


def run(options: argparse.Namespace) -> dict[str, Any]:
    """All measurements, as JSON values."""
    load_before, generator = os.getloadavg(), np.random.default_rng(options.seed)
    batch = histories(drawn_lengths(options.data, options.users, generator), generator)
    exact, fast = encoder_of("float32"), encoder_of("bf16")
    before, last = split_last(batch)
    states = {name: encoder.encode_with_state(before)[1] for name, encoder in (("float32", exact), ("bf16", fast))}
    compiled, cold = {}, {}
    for precision in ("float32", "bf16") if options.compiled else ():
        compiled[precision] = encoder_of(precision)
        compiled[precision].compile()
        started = time.perf_counter()
        compiled[precision].encode(batch)
        cold[precision] = time.perf_counter() - started
    seconds = in_turn(
        {
            **{f"encode, {name}, compiled": partial(side.encode, batch) for name, side in compiled.items()},
            NAIVE: lambda: naive(exact, batch),
            "encode, float32": lambda: exact.encode(batch),
            "encode, bf16": lambda: fast.encode(batch),
            "one behavior more, float32": lambda: exact.extend_state(states["float32"], last),
            "one behavior more, bf16": lambda: fast.extend_state(states["bf16"], last),
        },
        options.runs,
    )
    one = histories(np.array([CONTEXT]), generator)
    whole = exact.encode(batch)
    return {
        "benchmark": f"histories to vectors: d {DIM}, context {CONTEXT}, one thread",
        "users": len(batch),
        "lengths": {
            "data": str(options.data is not None),
            "mean_within_context": float(batch.lengths.clip(max=CONTEXT).mean()),
        },
        "users_per_processor_second": {name: len(batch) / taken for name, taken in seconds.items()},
        "times_naive": {name: seconds[NAIVE] / taken for name, taken in seconds.items()},
        "request_of_200": {
            "encode_now, float32": alone(exact.encode_now, one, options.requests),
            "encode_now, bf16": alone(fast.encode_now, one, options.requests),
            "encode, float32": alone(exact.encode, one, options.requests),
        },
        "seconds_until_compiled": cold,
        "state_bytes_per_user": {name: state.bytes_per_user for name, state in states.items()},
        "largest_difference_to_float32": {
            "naive": float(np.abs(naive(exact, batch) - whole).max()),
            "bf16": float(np.abs(fast.encode(batch) - whole).max()),
            **{f"{name}, compiled": float(np.abs(side.encode(batch) - whole).max()) for name, side in compiled.items()},
            "cached, float32": float(np.abs(exact.extend_state(states["float32"], last)[0] - whole).max()),
            "cached, bf16": float(np.abs(fast.extend_state(states["bf16"], last)[0] - whole).max()),
        },
        "machine": machine(load_before),
        "seed": options.seed,
        "command": " ".join(["python", *sys.argv]),
    }


def show(results: dict[str, Any]) -> None:
    """Prints the tables, ratios first."""
    speeds = results["users_per_processor_second"]
    table = Table(title=results["benchmark"])
    for column in ("side", "times naive", "users/s"):
        table.add_column(column, justify="left" if column == "side" else "right")
    for name, speed in speeds.items():
        table.add_row(name, f"{results['times_naive'][name]:.1f}", f"{speed:,.0f}")
    requests = Table(title="one history of 200, milliseconds")
    for column in ("path", "processor p50", "wall min", "wall p50", "wall p99"):
        requests.add_column(column, justify="left" if column == "path" else "right")
    for name, row in results["request_of_200"].items():
        keys = ("processor_p50_ms", "wall_min_ms", "wall_p50_ms", "wall_p99_ms")
        requests.add_row(name, *(f"{row[key]:.2f}" for key in keys))
    console = Console(width=110)
    console.print(table, requests)
    console.print(f"until compiled: {results['seconds_until_compiled']} s")
    console.print(f"state: {results['state_bytes_per_user']} bytes per user")
    console.print(f"differences: {results['largest_difference_to_float32']}")
    console.print(f"{results['machine']}\n{results['command']}")


def main() -> None:
    """Measures, prints, and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get(DATA_VARIABLE), help=f"or ${DATA_VARIABLE}")
    parser.add_argument("--users", type=int, default=1024)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compiled", action="store_true", help="also compiled encoders: minutes until they start")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = run(options)
    show(results)
    options.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()

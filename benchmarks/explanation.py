"""Do attributions find what a vector is made of? Deleting the five behaviors named first, against five others.

    python benchmarks/explanation.py --data ml1m_sequences.tsv.gz --encoder path/to/artifact

Users of MovieLens-1M (the file of ``quality_ml1m.py``) with at least 20 movies. Of each, five behaviors of the
encoder's context are left out: the five with the largest attributions by each method of `explain`, five at random (the
mean of ten draws), the five last ones, which a next-item encoder leans on anyway. Measured is how far the vector moves,
as 1 − cosine, with 95 % intervals from resampling users. Without ``--encoder``, one is trained for ``--minutes``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from command_line import command
from quality_ml1m import CONFIG, SECOND_US, machine, read_sequences
from rich.console import Console
from rich.table import Table

from feast_embeddings.models import (
    Explanation,
    HistoryBatch,
    StorableEncoder,
    explain,
    load_encoder,
    save_encoder,
    train,
)
from feast_embeddings.models.encoder import latest
from feast_embeddings.models.evaluation import bootstrap

RESULTS = Path(__file__).parent / "results" / "explanation.json"
METHODS = ("integrated_gradients", "attention", "deletion")
DELETED, DRAWS, SHORTEST = 5, 10, 20


def histories_of(path: Path) -> HistoryBatch:
    """Every user's movies, positions standing for times."""
    sequences = read_sequences(path)
    lengths = np.array([len(sequence) for sequence in sequences])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    total = int(offsets[-1])
    position = np.arange(total) - np.repeat(offsets[:-1], lengths)
    return HistoryBatch(
        offsets=offsets,
        items=np.concatenate(sequences),
        behavior_types=np.zeros(total, np.int32),
        times=position * SECOND_US,
        values=np.full(total, np.nan, np.float32),
        as_of=lengths * SECOND_US,
    )


def encoder_of(options: argparse.Namespace, histories: HistoryBatch) -> StorableEncoder:
    """The encoder to explain."""
    if options.encoder is not None and (options.encoder / "manifest.json").exists():
        return load_encoder(options.encoder)
    encoder = train(replace(CONFIG, max_minutes=options.minutes), histories, behavior_types=["rating"]).encoder
    if options.encoder is not None:
        save_encoder(encoder, options.encoder)
    return encoder


def moved(encoder: StorableEncoder, batch: HistoryBatch, before: np.ndarray, gone: np.ndarray) -> np.ndarray:
    """1 − cosine of each vector and that of the history without behaviors ``gone`` [B, k]: float64 [B]."""
    mask = np.ones(len(batch.items), np.bool_)
    mask[gone] = False
    after = encoder.encode(batch.where(mask))
    lengths = np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1)
    return 1 - (before * after).sum(axis=1) / lengths


def distances(
    encoder: StorableEncoder, batch: HistoryBatch, found: dict[str, Explanation], seed: int
) -> dict[str, np.ndarray]:
    """How far vectors move, by which behaviors are left out."""
    before, users = encoder.encode(batch), range(len(batch))
    columns = {
        f"the 5 first by {name}": moved(encoder, batch, before, np.stack([each.top(row, DELETED) for row in users]))
        for name, each in found.items()
    }
    columns["the 5 last"] = moved(encoder, batch, before, batch.offsets[1:, None] - 1 - np.arange(DELETED))
    random = [moved(encoder, batch, before, gone) for gone in _random(batch, np.random.default_rng(seed))]
    columns["5 at random"] = np.mean(random, axis=0)
    return columns


def _random(batch: HistoryBatch, rng: np.random.Generator) -> Iterator[np.ndarray]:
    for _ in range(DRAWS):
        picked = [rng.choice(length, DELETED, replace=False) for length in batch.lengths.tolist()]
        yield batch.offsets[:-1, None] + np.stack(picked)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Everything, as JSON values."""
    load_before = os.getloadavg()
    whole = histories_of(options.data)
    encoder = encoder_of(options, whole)
    eligible = np.flatnonzero(whole.lengths >= SHORTEST)
    rows = np.sort(np.random.default_rng(options.seed).choice(eligible, options.users, replace=False))
    batch = latest(whole.take(rows.astype(np.int64)), min(encoder.context, options.context))
    found, seconds = {}, {}
    for name in METHODS:
        started = time.perf_counter()
        found[name] = explain(encoder, batch, name)  # type: ignore[arg-type]
        seconds[name] = (time.perf_counter() - started) / len(batch)
    columns = distances(encoder, batch, found, options.seed)
    names = list(columns)
    values = np.stack([columns[name] for name in names], axis=1)
    gains = values - columns["5 at random"][:, None]
    estimates = bootstrap(np.concatenate([values, gains], axis=1), np.arange(len(batch)))
    gradients = found["integrated_gradients"]
    gap = np.abs(gradients.gap) / np.maximum(np.abs(gradients.value - gradients.baseline), 1e-9)
    return {
        "users": len(batch),
        "context": int(batch.lengths.max()),
        "moved": {name: _row(estimates[i]) for i, name in enumerate(names)},
        "moved_more_than_random": {name: _row(estimates[len(names) + i]) for i, name in enumerate(names[:-1])},
        "seconds_per_user": seconds,
        "completeness": {
            "complete": float(gradients.complete.mean()),
            "median_gap": float(np.median(gap)),
            "largest_gap": float(gap.max()),
            "steps": {str(count): int((gradients.steps == count).sum()) for count in np.unique(gradients.steps)},
        },
        "space": encoder.space,
        "machine": machine(load_before),
        "command": command(),
    }


def _row(estimate: Any) -> list[float]:
    return [estimate.value, estimate.low, estimate.high]


def show(results: dict[str, Any]) -> None:
    """Prints one table."""
    table = Table("left out", "vector moves by", "more than random", title="1 − cosine, 95 % intervals")
    for name, (value, low, high) in results["moved"].items():
        gain = results["moved_more_than_random"].get(name)
        more = f"{gain[0]:+.4f} [{gain[1]:+.4f}, {gain[2]:+.4f}]" if gain else ""
        table.add_row(name, f"{value:.4f} [{low:.4f}, {high:.4f}]", more)
    console = Console(width=140)
    console.print(table)
    console.print(f"completeness {results['completeness']}, seconds per user {results['seconds_per_user']}")


def parsed(arguments: list[str]) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--encoder", type=Path, help="artifact to explain; made there where there is none")
    parser.add_argument("--minutes", type=float, default=10, help="of training, where there is no artifact")
    parser.add_argument("--users", type=int, default=300)
    parser.add_argument("--context", type=int, default=50, help="behaviors looked at")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args(arguments)


def main() -> None:
    """Measures, prints, and writes the results."""
    options = parsed(sys.argv[1:])
    results = run(options)
    show(results)
    options.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()

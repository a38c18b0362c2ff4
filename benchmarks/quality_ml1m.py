"""Next-item quality on MovieLens-1M: the sequence encoder against popularity and a Markov table.

Protocol: a user's last movie is the test, the one before it (of a sample of users) the validation; all movies of the
file are ranked, those already seen taken out. The file holds no times, so positions stand for them, one a second:
what the time-gap buckets add is not measured here.

    python benchmarks/quality_ml1m.py --data ml1m_sequences.tsv.gz --threads 1

The file: tab-separated with a header, one user per line: the user and the movie ids, oldest first, set apart by
spaces. It is made from the ratings that GroupLens publishes for research; it may not be passed on, so it is not part
of this repository.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from feast_embeddings.models import (
    HistoryBatch,
    ItemIndex,
    Ragged,
    RankingScores,
    Scorer,
    SequenceConfig,
    TrainingConfig,
    TrainResult,
    evaluate_ranking,
    inner_products,
    markov_table,
    popularity,
    train,
)
from feast_embeddings.models.device import training_precision

DATA_VARIABLE = "FEAST_EMBEDDINGS_ML1M"
RESULTS = Path(__file__).parent / "results" / "quality_ml1m.json"
SECOND_US = 1_000_000


@dataclass(frozen=True)
class Task:
    """Histories without their last movie, that movie, and what may not be recommended again."""

    histories: HistoryBatch
    index: ItemIndex
    targets: Ragged
    seen: Ragged

    def score(self, scorer: Scorer) -> RankingScores:
        """HR@10 and NDCG@10 of a scorer on the test movies."""
        return evaluate_ranking(scorer, len(self.index), self.targets, self.seen, ks=(10,))


def read_sequences(path: Path) -> list[np.ndarray]:
    """Movie ids of each user, oldest first."""
    with gzip.open(path, "rt") as lines:
        next(lines)
        return [np.array(line.rstrip("\n").split("\t")[1].split(" "), dtype=np.int64) for line in lines]


def leave_last_out(sequences: list[np.ndarray]) -> Task:
    """The task, with positions for times."""
    lengths = np.array([len(sequence) - 1 for sequence in sequences])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    total = int(offsets[-1])
    position = np.arange(total) - np.repeat(offsets[:-1], lengths)
    histories = HistoryBatch(
        offsets=offsets,
        items=np.concatenate([sequence[:-1] for sequence in sequences]),
        behavior_types=np.zeros(total, np.int32),
        times=position * SECOND_US,
        values=np.full(total, np.nan, np.float32),
        as_of=lengths * SECOND_US,
    )
    index = ItemIndex.of(np.concatenate(sequences))
    targets = Ragged.single(index.rows(np.array([sequence[-1] for sequence in sequences])) - 1)
    return Task(histories, index, targets, Ragged(offsets, index.rows(histories.items) - 1))


BASELINES: dict[str, Callable[[HistoryBatch, ItemIndex], Scorer]] = {
    "popularity": popularity,
    "Markov table, last 5 movies": markov_table,
    "Markov table, last 10 movies": partial(markov_table, depth=10),
}
CONFIG = TrainingConfig(
    encoder=SequenceConfig(context=200),
    batch_tokens=4096,
    learning_rate=4e-3,
    average_decay=0.99,
    filter_seen=True,
    patience=200,  # a falling rate gains most at its end
)


def trained_encoder(task: Task, options: argparse.Namespace) -> TrainResult:
    """Trains within the time limit."""
    config = replace(CONFIG, seed=options.seed, decay_epochs=options.epochs, max_minutes=options.minutes)
    checkpoints = options.checkpoints
    return train(config, task.histories, behavior_types=["rating"], checkpoint_dir=checkpoints, progress=True)


def encoder_scores(task: Task, result: TrainResult) -> RankingScores:
    """Inner products of user and item vectors; movies never seen in training score 0."""
    users = result.encoder.encode(task.histories)
    items, _ = result.encoder.encode_items(task.index.ids)
    return task.score(inner_products(users, items))


def machine(load_before: tuple[float, float, float]) -> dict[str, object]:
    """What the figures were measured on, and how busy it was at the start and the end."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.partition(":")[2].strip() for line in info.splitlines() if line.startswith("model name")]
    flags = next((line for line in info.splitlines() if line.startswith("flags")), "")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "flags": [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags.split()],
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "precision": training_precision(device),
        "python": platform.python_version(),
        "torch": version("torch"),
        "load_average": [load_before, os.getloadavg()],
    }


def run(options: argparse.Namespace) -> dict[str, object]:
    """Baselines, training and test, as JSON values."""
    load_before = os.getloadavg()
    task = leave_last_out(read_sequences(options.data))
    rows = {}
    for name, baseline in BASELINES.items():
        started = time.monotonic()
        rows[name] = (task.score(baseline(task.histories, task.index)), time.monotonic() - started)
    started, processor_before = time.monotonic(), time.process_time()
    result = trained_encoder(task, options)
    rows["SequenceEncoder"] = (encoder_scores(task, result), time.monotonic() - started)
    processor_minutes = (time.process_time() - processor_before) / 60
    methods = {
        name: {"hr10": scores.hr[10], "ndcg10": scores.ndcg[10], "minutes": seconds / 60}
        for name, (scores, seconds) in rows.items()
    }
    return {
        "benchmark": "next item on MovieLens-1M, last movie, full ranking, seen ones filtered",
        "users": len(task.histories),
        "items": len(task.index),
        "behaviors": len(task.histories.items),
        "methods": methods,
        "epochs": [asdict(report) for report in result.epochs],
        "best_epoch": result.best_epoch,
        "stopped_by": result.stopped_by,
        "training_processor_minutes": processor_minutes,
        "space": result.encoder.space,
        "config": asdict(replace(CONFIG, decay_epochs=options.epochs)),
        "seed": options.seed,
        "machine": machine(load_before),
        "command": " ".join(["python", *sys.argv]),
    }


def show(results: dict[str, object], methods: dict[str, dict[str, float]]) -> None:
    """Prints one table."""
    table = Table(title=str(results["benchmark"]))
    for column in ("method", "HR@10", "NDCG@10", "minutes"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for name, row in methods.items():
        table.add_row(name, f"{row['hr10']:.3f}", f"{row['ndcg10']:.3f}", f"{row['minutes']:.1f}")
    console = Console()
    console.print(table)
    console.print(f"seed {results['seed']}, best epoch {results['best_epoch']}, {results['machine']}")
    console.print(str(results["command"]))


def parsed(arguments: list[str]) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get(DATA_VARIABLE), help=f"or ${DATA_VARIABLE}")
    parser.add_argument("--epochs", type=int, default=28, help="over which the learning rate falls to 0")
    parser.add_argument("--minutes", type=float, help="time limit of training, which may end it before the rate is 0")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="of torch; 1 is faster than 2 on two busy cores")
    parser.add_argument("--checkpoints", type=Path, help="folder to take training up from")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    if options.data is None or not Path(options.data).is_file():
        parser.error(f"no file at {options.data}: give --data, or set {DATA_VARIABLE}")
    return options


def main() -> None:
    """Measures, prints, and writes the results."""
    options = parsed(sys.argv[1:])
    if options.threads:
        torch.set_num_threads(options.threads)
    results = run(options)
    show(results, results["methods"])  # type: ignore[arg-type]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()

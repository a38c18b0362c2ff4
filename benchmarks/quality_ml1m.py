"""Next-item quality on MovieLens-1M: the sequence encoder beside every baseline.

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
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from feast_embeddings.models import (
    Encoder,
    HistoryBatch,
    MethodScores,
    RankingTask,
    Scorer,
    SequenceConfig,
    TrainingConfig,
    TrainResult,
    evaluate,
    leave_one_out,
    markov_table,
    train,
)
from feast_embeddings.models.encoder import training_precision

DATA_VARIABLE = "FEAST_EMBEDDINGS_ML1M"
RESULTS = Path(__file__).parent / "results" / "quality_ml1m.json"
SECOND_US = 1_000_000
ENCODER = "SequenceEncoder"
DEEPER = "Markov table, last 10 movies"
ANCHORS = {"popularity": (0.043, 0.021), "EASE": (0.106, 0.052), "Markov table": (0.267, 0.155)}
"""HR@10 and NDCG@10 that other code found under this protocol: they check the evaluation, not the methods."""


def read_sequences(path: Path) -> list[np.ndarray]:
    """Movie ids of each user, oldest first."""
    with gzip.open(path, "rt") as lines:
        next(lines)
        return [np.array(line.rstrip("\n").split("\t")[1].split(" "), dtype=np.int64) for line in lines]


def leave_last_out(sequences: list[np.ndarray]) -> RankingTask:
    """The task, with positions for times."""
    lengths = np.array([len(sequence) for sequence in sequences])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    total = int(offsets[-1])
    histories = HistoryBatch(
        offsets=offsets,
        items=np.concatenate(sequences),
        behavior_types=np.zeros(total, np.int32),
        times=(np.arange(total) - np.repeat(offsets[:-1], lengths)) * SECOND_US,
        values=np.full(total, np.nan, np.float32),
        as_of=lengths * SECOND_US,
    )
    return leave_one_out(histories, filter_seen=True)


CONFIG = TrainingConfig(
    encoder=SequenceConfig(context=200),
    batch_tokens=4096,
    learning_rate=4e-3,
    average_decay=0.99,
    filter_seen=True,
    patience=200,  # a falling rate gains most at its end
)


def trained_encoder(task: RankingTask, options: argparse.Namespace) -> TrainResult:
    """Trains within the time limit."""
    limits = {"decay_epochs": options.epochs, "max_minutes": options.minutes}
    config = replace(CONFIG, seed=options.seed, checkpoint_dir=options.checkpoints, **limits)
    return train(config, task.histories, behavior_types=["rating"], progress=True)


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
    chosen: dict[str, Encoder | Scorer] = {DEEPER: markov_table(task.training, task.catalogue, depth=10)}
    trained, seconds = {}, 0.0
    if not options.baselines_only:
        started, processor_before = time.monotonic(), time.process_time()
        result = trained_encoder(task, options)
        chosen, seconds = {ENCODER: result.encoder, **chosen}, time.monotonic() - started
        trained = {
            "epochs": [asdict(report) for report in result.epochs],
            "best_epoch": result.best_epoch,
            "stopped_by": result.stopped_by,
            "training_processor_minutes": (time.process_time() - processor_before) / 60,
            "space": result.encoder.space,
            "config": asdict(replace(CONFIG, decay_epochs=options.epochs)),
        }
    found = evaluate(task, chosen, seed=options.seed)
    methods = {name: shown(scores, seconds * (name == ENCODER)) for name, scores in found.methods.items()}
    return {
        "benchmark": "next item on MovieLens-1M, last movie, full ranking, seen ones filtered",
        "users": len(task.training),
        "items": len(task.catalogue),
        "behaviors": len(task.training.items),
        "methods": methods,
        **trained,
        "seed": options.seed,
        "machine": machine(load_before),
        "command": " ".join(["python", *sys.argv]),
    }


def shown(scores: MethodScores, training_seconds: float) -> dict[str, object]:
    """The figures of one method."""
    found = scores.estimates["all"]
    hr10, ndcg10 = found["hr@10"], found["ndcg@10"]
    return {
        "hr10": hr10.value,
        "ndcg10": ndcg10.value,
        "hr10_interval": [hr10.low, hr10.high],
        "ndcg10_interval": [ndcg10.low, ndcg10.high],
        "mrr": found["mrr"].value,
        "coverage10": scores.coverage[10],
        "minutes": (scores.seconds + training_seconds) / 60,
    }


def show(results: dict[str, Any]) -> None:
    """Prints one table, the best method first, and what a right evaluation gives."""
    table = Table(title=str(results["benchmark"]))
    columns = ("method", "HR@10", "95 %", "NDCG@10", "95 %", "coverage@10", "minutes", "anchor")
    for column in columns:
        table.add_column(column, justify="left" if column == "method" else "right")
    for name, row in sorted(results["methods"].items(), key=lambda item: -item[1]["ndcg10"]):
        low, high = row["hr10_interval"]
        lower, upper = row["ndcg10_interval"]
        anchor = " / ".join(f"{value:.3f}" for value in ANCHORS.get(name, ()))
        cells = (f"{row['hr10']:.3f}", f"{low:.3f}–{high:.3f}", f"{row['ndcg10']:.3f}", f"{lower:.3f}–{upper:.3f}")
        table.add_row(name, *cells, f"{row['coverage10']:.2f}", f"{row['minutes']:.1f}", anchor)
    console = Console(width=120)
    console.print(table)
    off = [name for name, anchor in ANCHORS.items() if not _agrees(results["methods"][name], anchor)]
    console.print(f"anchors missed by more than .005: {', '.join(off) or 'none'}")
    console.print(f"seed {results['seed']}, best epoch {results.get('best_epoch')}, {results['machine']}")
    console.print(str(results["command"]))


def _agrees(row: dict[str, float], anchor: tuple[float, float]) -> bool:
    return max(abs(row["hr10"] - anchor[0]), abs(row["ndcg10"] - anchor[1])) <= 0.005


def parsed(arguments: list[str]) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get(DATA_VARIABLE), help=f"or ${DATA_VARIABLE}")
    parser.add_argument("--epochs", type=int, default=20, help="over which the learning rate falls to 0")
    parser.add_argument("--minutes", type=float, help="time limit of training, which may end it before the rate is 0")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="of torch; 1 is faster than 2 on two busy cores")
    parser.add_argument("--checkpoints", type=Path, help="folder to take training up from")
    parser.add_argument("--baselines-only", action="store_true", help="train nothing: a minute or two")
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
    show(results)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()

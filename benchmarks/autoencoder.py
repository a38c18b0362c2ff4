"""Autoencoders on a random split of MovieLens-1M, beside EASE: the article's, denoising and likelihood variants.

    python benchmarks/autoencoder.py --data ml1m_sequences.tsv.gz

Of each user's movies 80 % are learned from, 10 % tuned on, 10 % to be found among all movies, those of the other parts
filtered out; the order of movies is not looked at (see ``ml1m_split.py``). λ, width, dropout, weight decay and EASE's
λ were chosen on the validation part alone; ``CONFIGS`` and ``EASE_LAMBDA`` hold the choice, ``TRIED`` what was tried.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ml1m_split import RandomSplit, random_split
from quality_ml1m import DATA_VARIABLE, machine
from rich.console import Console
from rich.table import Table

from feast_embeddings.models import (
    AutoEncoderConfig,
    AutoEncoderResult,
    AutoEncoderTraining,
    draw_reconstruction,
    evaluate,
    reconstruction_errors,
    train_autoencoder,
)
from feast_embeddings.models.evaluation import Evaluation, ease

RESULTS = Path(__file__).parent / "results" / "autoencoder.json"
EASE_LAMBDA = 1000.0
COMMON = AutoEncoderTraining(learning_rate=3e-3, validate_every=2, patience=3, validation_entities=1000, max_epochs=26)
ARTICLE = replace(COMMON, penalty=1e-3, weight_decay=3.0)
DENOISING = replace(ARTICLE, corruption=0.5, weight_decay=6.0)
LIKELIHOOD = replace(
    COMMON,
    encoder=AutoEncoderConfig(dim=257, normalize=True, logits=True),
    penalty=0.0,
    corruption=0.5,
    weight_decay=0.1,
)
CONFIGS: dict[str, AutoEncoderTraining] = {
    "denoising, 513": replace(DENOISING, encoder=AutoEncoderConfig(dim=513)),
    "article, 513": replace(ARTICLE, encoder=AutoEncoderConfig(dim=513)),
    "denoising, 64": replace(DENOISING, encoder=AutoEncoderConfig(dim=64)),
    "article, 64": replace(ARTICLE, encoder=AutoEncoderConfig(dim=64)),
    "likelihood (Mult-DAE), 257": LIKELIHOOD,
    "variational (Mult-VAE), 257": replace(LIKELIHOOD, variational=True, kl_steps=200),
}


def trained(split: RandomSplit, config: AutoEncoderTraining, minutes: float, seed: int) -> AutoEncoderResult:
    """One encoder, stopped early on the validation part."""
    config = replace(config, max_minutes=minutes, seed=seed)
    return train_autoencoder(
        config, split.training, behavior_types=["rating"], held_out=split.validation, progress=True
    )


def run(options: argparse.Namespace) -> tuple[dict[str, Any], Evaluation]:
    """Everything as JSON values."""
    load_before = os.getloadavg()
    split = random_split(options.data, options.seed)
    task = split.task(split.test)
    runs, seconds = {}, {}
    chosen = {name: config for name, config in CONFIGS.items() if options.only in name}
    for name, config in chosen.items():
        started = time.monotonic()
        runs[name] = trained(split, config, options.minutes, options.seed)
        seconds[name] = time.monotonic() - started
    started = time.monotonic()
    methods = {"EASE": ease(split.training, split.catalogue, EASE_LAMBDA)}
    seconds["EASE"] = time.monotonic() - started
    evaluation = evaluate(
        task, {**methods, **{name: result.encoder for name, result in runs.items()}}, baselines=["popularity"]
    )
    sample = split.training.take(np.random.default_rng(options.seed).choice(len(split.training), 500, replace=False))
    first = next(iter(runs.values())).encoder
    if options.picture is not None:
        draw_reconstruction(first, sample.take(np.arange(40)), options.picture)
    rows = {
        name: {
            "ndcg10": asdict(scores.estimates["all"]["ndcg@10"]),
            "recall10": asdict(scores.estimates["all"]["recall@10"]),
            "minus_ease": asdict(evaluation.difference(name, "EASE")) if name != "EASE" else None,
            "minutes": seconds.get(name, scores.seconds) / 60,
        }
        for name, scores in evaluation.methods.items()
    }
    return {
        "benchmark": "MovieLens-1M, random 80/10/10 split, NDCG@10 of all movies, seen ones filtered",
        "users": evaluation.users,
        "items": evaluation.catalogue,
        "methods": rows,
        "training": {name: _training(result, CONFIGS[name], sample) for name, result in runs.items()},
        "ease_lambda": EASE_LAMBDA,
        "seed": options.seed,
        "machine": machine(load_before),
        "command": f"python {Path(sys.argv[0]).name} --data {options.data.name} --minutes {options.minutes}",
    }, evaluation


def _training(result: AutoEncoderResult, config: AutoEncoderTraining, sample: Any) -> dict[str, Any]:
    errors = {name: asdict(error) for name, error in reconstruction_errors(result.encoder, sample).items()}
    return {
        "config": asdict(config),
        "best_epoch": result.best_epoch,
        "stopped_by": result.stopped_by,
        "validation_ndcg10": max(report.ndcg10 or 0.0 for report in result.epochs),
        "reconstruction": {name: {k: v for k, v in row.items() if v == v} for name, row in errors.items()},
    }


def show(results: dict[str, Any]) -> None:
    """Prints one table."""
    table = Table(title=results["benchmark"], title_justify="left")
    for column in ("method", "NDCG@10 ×100", "95 %", "minus EASE", "minutes"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for name, row in sorted(results["methods"].items(), key=lambda pair: -pair[1]["ndcg10"]["value"]):
        found, less = row["ndcg10"], row["minus_ease"]
        difference = (
            "" if less is None else f"{100 * less['value']:+.2f} [{100 * less['low']:+.2f}, {100 * less['high']:+.2f}]"
        )
        interval = f"{100 * found['low']:.1f} – {100 * found['high']:.1f}"
        table.add_row(name, f"{100 * found['value']:.2f}", interval, difference, f"{row['minutes'] or 0:.1f}")
    Console(width=120).print(table)


def main() -> None:
    """Measures, prints, and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get(DATA_VARIABLE), help=f"or ${DATA_VARIABLE}")
    parser.add_argument("--minutes", type=float, default=2.0, help="time limit of each training")
    parser.add_argument("--only", default="", help="methods whose name holds this; the others stay in the results")
    parser.add_argument("--picture", type=Path, help="where to draw 40 users beside their reconstruction, a PNG")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results, _ = run(options)
    if options.only and options.out.exists():
        before = json.loads(options.out.read_text())
        for part in ("methods", "training"):
            results[part] = {**before[part], **results[part]}
        results["machine"], results["command"] = before["machine"], before["command"]
    show(results)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""Does a generator of histories help? Three checks that tell learning from copying, and what sparse users gain.

    python benchmarks/generator.py --data ml1m_sequences.tsv.gz

On MovieLens-1M's most rated movies, order not looked at. Four users in five are trained on. Of the others 80 % of the
movies are known and the rest is to be found; for the sparse case their histories are cut to 1 … 9 movies (the data set
has nobody with so few), and all others are to be found.

1. Train on synthetic, test on real: EASE learned from as many synthetic users, beside EASE learned from the real ones,
   from users whose movies are drawn independently by popularity, and popularity itself.
2. Distance of synthetic histories to the nearest trained-on one, beside that of real users who were not trained on.
3. Coverage and precision of histories and of items.

Then: histories of sparse users filled up by the generator, by popularity, or not at all, scored by the same models.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ml1m_split import random_split
from quality_ml1m import DATA_VARIABLE, machine
from rich.console import Console
from rich.table import Table

from feast_embeddings.models import (
    AdversarialTraining,
    AutoEncoderConfig,
    AutoEncoderTraining,
    BehaviorGenerator,
    Encoder,
    GeneratorConfig,
    GeneratorResult,
    GeneratorTraining,
    HistoryBatch,
    ItemIndex,
    Scorer,
    evaluate,
    inner_products,
    likeness,
    train_adversarial,
    train_autoencoder,
    train_generator,
)
from feast_embeddings.models.evaluation import Evaluation, RankingTask, distinct_items, ease

RESULTS = Path(__file__).parent / "results" / "generator.json"
TYPES = ["rating"]
FILLED = 20
"""Behaviors that a sparse history is filled up to."""

ENCODER = AutoEncoderTraining(
    encoder=AutoEncoderConfig(dim=65),
    corruption=0.5,
    weight_decay=6.0,
    learning_rate=3e-3,
    validate_every=2,
    patience=3,
    max_epochs=20,
)
ADVERSARIAL = AdversarialTraining(
    encoder=AutoEncoderConfig(dim=65),
    corruption=0.5,
    weight_decay=6.0,
    learning_rate=3e-3,
    validate_every=2,
    patience=3,
    max_epochs=20,
)


@dataclass(frozen=True)
class World:
    """Users to train on, and others of whom a part is known."""

    train: HistoryBatch
    real: HistoryBatch
    known: HistoryBatch
    rest: HistoryBatch
    sparse: HistoryBatch
    sparse_rest: HistoryBatch
    catalogue: ItemIndex

    def task(self, known: HistoryBatch, rest: HistoryBatch) -> RankingTask:
        """Finding the rest of what users did, given what is known of them."""
        targets, seen = (distinct_items(part, self.catalogue) for part in (rest, known))
        everything = np.ones(len(self.catalogue), np.bool_)
        return RankingTask(self.train, known, targets, self.catalogue, everything, np.arange(len(known)), seen)


def world(path: Path, n_items: int, seed: int) -> World:
    """The users of the file, on its most rated movies."""
    split = random_split(path, seed)
    histories = split.training
    ids, counts = np.unique(histories.items, return_counts=True)
    catalogue = ItemIndex(np.sort(ids[np.argsort(-counts, kind="stable")[:n_items]]))
    histories = histories.where(catalogue.rows(histories.items) > 0)
    rng = np.random.default_rng([seed, 1])
    users = rng.permutation(np.flatnonzero(histories.lengths >= 12))
    train, real = histories.take(users[len(users) // 5 :]), histories.take(users[: len(users) // 5])
    place = _shuffled_place(real, rng)
    lengths = np.repeat(real.lengths, real.lengths)
    kept = np.repeat(rng.integers(1, 10, len(real)), real.lengths)
    few, many = place < kept, place < lengths * 8 // 10
    return World(train, real, real.where(many), real.where(~many), real.where(few), real.where(~few), catalogue)


def _shuffled_place(histories: HistoryBatch, rng: np.random.Generator) -> np.ndarray:
    """Each behavior's place in a random order of its history: int64 [N]."""
    owner = np.repeat(np.arange(len(histories)), histories.lengths)
    order = np.lexsort([rng.random(len(owner)), owner])
    place = np.empty(len(owner), np.int64)
    place[order] = np.arange(len(owner)) - histories.offsets[owner]
    return place


class ByPopularity(BehaviorGenerator):
    """The control: every behavior is drawn by how often its item occurs, whoever the user is."""

    def __init__(self, train: HistoryBatch, catalogue: ItemIndex) -> None:
        super().__init__(GeneratorConfig(1, 1, 1), tuple(TYPES), catalogue)
        counts = np.bincount(catalogue.rows(train.items), minlength=len(catalogue) + 1)[1:]
        self.shares = torch.from_numpy((counts / counts.sum()).astype(np.float32))

    def forward(self, noise: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        """The same shares for everyone."""
        return self.shares.expand(len(noise), -1)


def synthetic_for_real(data: World, made: dict[str, HistoryBatch]) -> Evaluation:
    """Check 1: EASE learned from each, asked about real users."""
    task = data.task(data.known, data.rest)
    scorers: dict[str, Scorer | Encoder] = {
        f"EASE, {name}": ease(histories, data.catalogue, asked=data.known)
        for name, histories in {"real users": data.train, **made}.items()
    }
    return evaluate(task, scorers, baselines=["popularity"])


def for_sparse(data: World, generators: dict[str, BehaviorGenerator], seed: int) -> tuple[Evaluation, dict[str, Any]]:
    """Users of under ten behaviors: each model on bare histories and on those that each generator filled up."""
    task = data.task(data.sparse, data.sparse_rest)
    encoders = {
        "AutoEncoder, 65": train_autoencoder(ENCODER, data.train, behavior_types=TYPES).encoder,
        "AdversarialAutoEncoder, 65": train_adversarial(ADVERSARIAL, data.train, behavior_types=TYPES).encoder,
    }
    lengths = np.full(len(data.sparse), FILLED)
    asked = {"bare": data.sparse}
    asked |= {f"filled, {name}": made.complete(data.sparse, lengths, seed) for name, made in generators.items()}
    scorers: dict[str, Scorer | Encoder] = {}
    for name, histories in asked.items():
        scorers[f"EASE, {name}"] = ease(data.train, data.catalogue, asked=histories)
        for kind, encoder in encoders.items():
            items, known = encoder.encode_items(data.catalogue.ids)
            scorers[f"{kind}, {name}"] = inner_products(encoder.encode(histories), items, known)
    found = evaluate(task, scorers, baselines=["popularity"])
    gains = {
        f"{model}, {name}": asdict(found.difference(f"{model}, filled, {name}", f"{model}, bare"))
        for model in ("EASE", *encoders)
        for name in generators
    }
    return found, gains


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Everything as JSON values."""
    load_before, started = os.getloadavg(), time.monotonic()
    data = world(options.data, options.items, options.seed)
    config = GeneratorTraining(steps=options.steps, critic_steps=2, max_minutes=options.minutes, seed=options.seed)
    result = train_generator(config, data.train, behavior_types=TYPES)
    minutes = (time.monotonic() - started) / 60
    generators = {"generator": result.generator, "popularity": ByPopularity(data.train, data.catalogue)}
    made = {name: generator.generate(data.train.lengths, options.seed) for name, generator in generators.items()}
    real, train = (result.generator.bagger.bags(part) for part in (data.real, data.train))
    near = {name: likeness(result.generator.bagger.bags(part), real, train) for name, part in made.items()}
    sparse, gains = for_sparse(data, generators, options.seed)
    return {
        "benchmark": f"generated histories on MovieLens-1M's {len(data.catalogue)} most rated movies",
        "users": {"trained on": len(data.train), "real": len(data.real)},
        "train_on_synthetic_test_on_real": _ndcg(synthetic_for_real(data, {f"{k} users": v for k, v in made.items()})),
        "likeness": {name: asdict(found) for name, found in near.items()},
        "sparse_users": _ndcg(sparse),
        "gain_of_filling": gains,
        "losses": _losses(result),
        "config": asdict(config),
        "minutes_of_training": minutes,
        "machine": machine(load_before),
        "stopped_by": result.stopped_by,
        "command": f"python {Path(sys.argv[0]).name} --data {options.data.name} --items {options.items} "
        f"--steps {options.steps} --minutes {options.minutes}",
    }


def _ndcg(evaluation: Evaluation) -> dict[str, Any]:
    return {name: asdict(scores.estimates["all"]["ndcg@10"]) for name, scores in evaluation.methods.items()}


def _losses(result: GeneratorResult) -> list[dict[str, float]]:
    return [asdict(report) for report in result.reports]


def show(results: dict[str, Any]) -> None:
    """Prints the tables."""
    console = Console(width=120)
    for part in ("train_on_synthetic_test_on_real", "sparse_users", "gain_of_filling"):
        table = Table("NDCG@10 ×100", "mean", "95 %", title=part.replace("_", " "), title_justify="left")
        for name, row in results[part].items():
            table.add_row(name, f"{100 * row['value']:.2f}", f"{100 * row['low']:.2f} … {100 * row['high']:.2f}")
        console.print(table)
    table = Table("likeness", *results["likeness"], title="Distances are Jaccard's", title_justify="left")
    for measure in next(iter(results["likeness"].values())):
        table.add_row(measure, *(f"{row[measure]:.3f}" for row in results["likeness"].values()))
    console.print(table)


def main() -> None:
    """Measures, prints, and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get(DATA_VARIABLE), help=f"or ${DATA_VARIABLE}")
    parser.add_argument("--items", type=int, default=1000, help="movies, most rated first")
    parser.add_argument("--steps", type=int, default=1500, help="of the generator")
    parser.add_argument("--minutes", type=float, default=6.0, help="time limit of the generator's training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = run(options)
    show(results)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()

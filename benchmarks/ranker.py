"""What each encoder's features are worth to a ranker: matrix factorization and two towers on real purchases.

    python benchmarks/ranker.py

Households of The Complete Journey (extra ``demo``). Encoders are trained on behaviors before October 2017 and served
from a feature repo each, with a full refresh on two Mondays. Rankers learn from ``get_historical_features`` as of the
first Monday which of a household's candidates it buys within the week, and score ``get_online_features`` on the second.
Candidates: up to five products bought within the week, and ten times as many drawn by how often they were bought before
October. A fifth of the households are kept from the rankers, so that features have to speak for them.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shutil
import sys
import time
import warnings
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from feast import FeatureStore
from quality_ml1m import machine
from rich.console import Console
from rich.table import Table

from feast_embeddings.materialize.clock import simulated, us_of
from feast_embeddings.materialize.declare import embedding_specs
from feast_embeddings.materialize.demo import feast_apply, make_repo, training_config, write_journey
from feast_embeddings.materialize.files import Workspace
from feast_embeddings.materialize.learning import train_declared
from feast_embeddings.models import AdversarialTraining, AutoEncoderConfig, AutoEncoderTraining, TrainingConfig
from feast_embeddings.models.evaluation import Estimate, Ragged, bootstrap, measures
from feast_embeddings.transformations import Behaviors

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "applied"))
from matrix_factorization_ranker import MatrixFactorizationRanker
from ranking_rows import Rows, fit, historical_rows, online_rows, score
from two_tower_ranker import TwoTowerRanker

RESULTS = Path(__file__).parent / "results" / "ranker.json"
LEARN, SERVE = datetime(2017, 10, 2, tzinfo=UTC), datetime(2017, 10, 9, tzinfo=UTC)
WEEK_US = 7 * 86_400_000_000
BOUGHT, OTHERS = 5, 10
RANKERS = {"matrix factorization": MatrixFactorizationRanker, "two towers": TwoTowerRanker}


def encoders(minutes: float, seed: int) -> dict[str, TrainingConfig | AutoEncoderTraining]:
    """The trainings, each within the same minutes."""
    bags = AutoEncoderTraining(
        encoder=AutoEncoderConfig(context=500),
        penalty=1e-3,
        corruption=0.5,
        weight_decay=1.0,
        learning_rate=3e-3,
        max_epochs=20,
        max_minutes=minutes,
        min_item_count=10,
        validation_entities=500,
        patience=4,
        seed=seed,
        filter_seen=False,
    )
    adversarial = {field: getattr(bags, field) for field in asdict(bags)}
    return {
        "sequence": replace(training_config(seed), max_minutes=minutes),
        "autoencoder": bags,
        "adversarial autoencoder": AdversarialTraining(**{**adversarial, "penalty": 0.0}),
    }


@dataclass(frozen=True)
class Pairs:
    """Candidates of households as of a time, and which of them were bought within the week."""

    frame: pd.DataFrame
    bought: np.ndarray


def candidates(log: Behaviors, at: datetime, rng: np.random.Generator) -> Pairs:
    """Of every household that buys something in the week after ``at``."""
    at_us = us_of(at)
    owner = np.repeat(np.arange(len(log.entities)), np.diff(log.offsets))
    ahead = (log.times_us >= at_us) & (log.times_us < at_us + WEEK_US)
    past = log.items[log.times_us < us_of(datetime(2017, 10, 1, tzinfo=UTC))]
    ids, counts = np.unique(past, return_counts=True)
    pairs = np.unique(np.stack([owner[ahead], log.items[ahead]]), axis=1)
    pairs = pairs[:, np.isin(pairs[1], ids[counts >= 10])]
    pairs = pairs[:, np.lexsort([rng.random(pairs.shape[1]), pairs[0]])]
    first = np.searchsorted(pairs[0], pairs[0])
    pairs = pairs[:, np.arange(pairs.shape[1]) - first < BOUGHT]
    drawn = rng.choice(ids, pairs.shape[1] * OTHERS, p=counts / counts.sum())
    others = np.stack([np.repeat(pairs[0], OTHERS), drawn])
    whole = np.concatenate([pairs, others], axis=1)
    bought = np.concatenate([np.ones(pairs.shape[1], bool), np.zeros(others.shape[1], bool)])
    key = whole[0] * (int(log.items.max()) + 1) + whole[1]
    order = np.lexsort([~bought, key])
    order = order[np.concatenate([[True], key[order][1:] != key[order][:-1]])]  # what is bought is no negative
    frame = pd.DataFrame({"user_id": log.entities[whole[0][order]], "item_id": whole[1][order]})
    frame["event_timestamp"] = at.replace(hour=1)
    return Pairs(frame, bought[order])


def served(folder: Path, config: TrainingConfig | AutoEncoderTraining, learn: Pairs, serve: Pairs) -> tuple[Rows, Rows]:
    """Historical rows of the first Monday and online rows of the second, of one encoder."""
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()):
        store = FeatureStore(".")
        train_declared(store, config, until_us=us_of(datetime(2017, 10, 1, tzinfo=UTC)), progress=False)
        for at in (LEARN, SERVE):
            with simulated(us_of(at)):
                store.materialize(datetime(2017, 1, 1, tzinfo=UTC), at, ["item_embedding", "user_embedding"])
        learned = historical_rows(store, learn.frame)
        with simulated(us_of(SERVE.replace(hour=1))):
            users, items = (serve.frame[name].to_numpy(np.int64) for name in ("user_id", "item_id"))
            parts = np.array_split(np.arange(len(users)), max(1, len(users) // 5000))
            rows = [online_rows(store, users[part], items[part], like=learned) for part in parts]
    names = ("user_ids", "item_ids", "users", "items")
    return learned, Rows(*(np.concatenate([getattr(row, name) for row in rows]) for name in names))


def _served_once(
    folder: Path, config: TrainingConfig | AutoEncoderTraining, learn: Pairs, serve: Pairs
) -> tuple[Rows, Rows]:
    """As `served`, kept beside the repo for a run with ``--keep``."""
    kept, names = folder.with_suffix(".npz"), ("user_ids", "item_ids", "users", "items")
    if not kept.exists():
        sides = zip(("learned", "online"), served(folder, config, learn, serve), strict=True)
        np.savez(kept, **{f"{side} {name}": getattr(rows, name) for side, rows in sides for name in names})
    with np.load(kept, allow_pickle=False) as arrays:
        learned, online = (Rows(*(arrays[f"{side} {name}"] for name in names)) for side in ("learned", "online"))
    return learned, online


def ndcg(scores: np.ndarray, pairs: Pairs, households: np.ndarray) -> np.ndarray:
    """NDCG@10 of each household's candidates, float64 [H]; ties share the mean of their ranks."""
    owner = np.searchsorted(households, pairs.frame["user_id"].to_numpy())
    order = np.lexsort([-scores, owner])
    place = np.empty(len(scores))
    place[order] = np.arange(len(scores)) - np.searchsorted(owner[order], owner[order]) + 1
    tied = pd.DataFrame({"owner": owner, "score": scores, "place": place})
    ranks = tied.groupby(["owner", "score"])["place"].transform("mean").to_numpy()
    counts = np.bincount(owner[pairs.bought], minlength=len(households))
    targets = Ragged(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), np.zeros(int(counts.sum()), np.int64))
    hits = np.flatnonzero(pairs.bought)
    return measures(ranks[hits[np.argsort(owner[hits], kind="stable")]], targets, (10,))["ndcg@10"]


def compare(features: dict[str, tuple[Rows, Rows]], learn: Pairs, serve: Pairs, seed: int) -> dict[str, Any]:
    """Each ranker with each encoder's features, on households it met and on those it did not."""
    rng = np.random.default_rng([seed, 9])
    everyone = np.unique(serve.frame["user_id"].to_numpy())
    held = rng.choice(everyone, len(everyone) // 5, replace=False)
    trained = np.flatnonzero(~np.isin(learn.frame["user_id"].to_numpy(), held))
    new = np.isin(everyone, held)
    found: dict[str, Any] = {}
    for kind, ranker in RANKERS.items():
        values = {}
        for name, (learned, online) in features.items():
            torch.manual_seed(seed)
            rows = learned.take(trained)
            model = fit(ranker(rows), rows, learn.bought[trained], seed=seed)
            values[name] = ndcg(score(model, online), serve, everyone)
        found[kind] = {name: _row(value, values["none"], new) for name, value in values.items()}
    return found


def _row(values: np.ndarray, none: np.ndarray, new: np.ndarray) -> dict[str, Any]:
    columns = {"ndcg10": values, "gain": values - none}
    groups = {"met": ~new, "new": new}
    return {
        f"{column} {group}": asdict(_estimate(numbers[rows]))
        for group, rows in groups.items()
        for column, numbers in columns.items()
    }


def _estimate(values: np.ndarray) -> Estimate:
    return bootstrap(values[:, None], np.arange(len(values)))[0]


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Everything as JSON values."""
    load_before = os.getloadavg()
    if not options.keep:
        shutil.rmtree(options.folder, ignore_errors=True)
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "behaviors.parquet").exists():
        write_journey(folder / "behaviors.parquet")
    trainings = encoders(options.minutes, options.seed)
    folders = {name: folder / name.split()[0] for name in trainings}
    made = [path for path in folders.values() if not path.with_suffix(".npz").exists()]
    for path in made:
        make_repo(path, 'Full(every="7d")', folder / "behaviors.parquet")
    feast_apply(made)
    with contextlib.chdir(next(iter(folders.values()))):
        log = _log()
    rng = np.random.default_rng(options.seed)
    learn, serve = candidates(log, LEARN, rng), candidates(log, SERVE, rng)
    features, seconds = {}, {}
    for name, config in trainings.items():
        started = time.monotonic()
        features[name] = _served_once(folders[name], config, learn, serve)
        seconds[name] = time.monotonic() - started
    first = next(iter(features.values()))
    both = tuple(one.beside(two) for one, two in zip(features["sequence"], features["autoencoder"], strict=True))
    none = tuple(rows.without_features() for rows in first)
    features = {"none": none, **features, "sequence + autoencoder": both}
    return {
        "benchmark": "The Complete Journey: what a household buys within a week, among its candidates; NDCG@10",
        "pairs": {"learned": len(learn.frame), "served": len(serve.frame)},
        "rankers": compare(features, learn, serve, options.seed),
        "seconds": seconds,
        "configs": {name: asdict(config) for name, config in trainings.items()},
        "machine": machine(load_before),
        "command": f"python {Path(sys.argv[0]).name} --minutes {options.minutes}",
    }


def _log() -> Behaviors:
    store = FeatureStore(".")
    spec = next(spec for spec in embedding_specs(store.registry, store.project) if spec.tower == "user")
    workspace = Workspace.of(store.config)
    log = workspace.behavior_log(store.registry, store.project, spec)
    return log.until(us_of(SERVE) + WEEK_US, us_of(SERVE) + WEEK_US)


def show(results: dict[str, Any]) -> None:
    """Prints one table."""
    columns = ("ranker", "features", "gain, households met", "gain, new ones", "NDCG@10 met", "new")
    table = Table(*columns, title=results["benchmark"], title_justify="left")
    for kind, rows in results["rankers"].items():
        for name, row in rows.items():
            gains = [
                f"{row[f'gain {g}']['value']:+.3f} [{row[f'gain {g}']['low']:+.3f}, {row[f'gain {g}']['high']:+.3f}]"
                for g in ("met", "new")
            ]
            table.add_row(kind, name, *gains, *(f"{row[f'ndcg10 {g}']['value']:.3f}" for g in ("met", "new")))
    Console(width=140).print(table)


def main() -> None:
    """Measures, prints, and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=3.0, help="time limit of each encoder's training")
    parser.add_argument("--folder", type=Path, default=Path(".demo/ranker"), help="where to work; made anew")
    parser.add_argument("--keep", action="store_true", help="take up what a stopped run left in the folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    options.out = options.out.resolve()
    torch.set_num_threads(options.threads)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = run(options)
    show(results)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""Do behavior types pay? Two hours of a shop: page views alone against page views, carts, favorites and purchases.

Both arms answer the same questions: which category (or item) a user views last, given what was done before it; both
are trained to name the next view. The one arm's histories hold views alone, the other's also the rest, with their
types. Scores are the means of several seeds; intervals resample users, differences are paired.

    python benchmarks/taobao.py --data taobao_behaviors_2h.parquet

The file, made from what Alibaba published on Tianchi (not part of this repository): columns ``user_id``, ``item_id``,
``category_id`` int64, ``behavior`` (pv, cart, fav, buy) and ``event_timestamp`` in UTC.
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
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from quality_ml1m import machine
from rich.console import Console
from rich.table import Table

from feast_embeddings.models import (
    BASELINES,
    HistoryBatch,
    ItemIndex,
    Ragged,
    RankingTask,
    SequenceConfig,
    TrainingConfig,
    evaluate,
    train,
)
from feast_embeddings.models.evaluation import Estimate, bootstrap, cut
from feast_embeddings.transformations import Behaviors, Histories
from feast_embeddings.transformations.behaviors import canonical_schema

RESULTS = Path(__file__).parent / "results" / "taobao.json"
TYPES = ("pv", "cart", "fav", "buy")
VIEW = 0
VIEWS_ONLY, ALL_TYPES = "views alone", "behavior types"
CONFIG = TrainingConfig(
    encoder=SequenceConfig(context=20, dropout=0.2),
    learning_rate=4e-3,
    average_decay=0.99,
    validation_users=0,
    min_item_count=2,
    decay_epochs=4,
)


def read_taobao(path: Path, column: str) -> Behaviors:
    """Every row of the file; ``column`` is what counts as an item."""
    raw = pq.read_table(path)
    rows = raw.num_rows
    columns = [
        raw["user_id"],
        raw[column],
        pc.index_in(raw["behavior"], pa.array(TYPES)).cast(pa.int32()),
        raw["event_timestamp"].cast(pa.timestamp("us", tz="UTC"), safe=False),
        pa.nulls(rows, pa.float64()),
        pa.nulls(rows, pa.timestamp("us", tz="UTC")),
        pa.nulls(rows, pa.string()),
    ]
    return Behaviors(pa.table(columns, schema=canonical_schema(pa.int64(), pa.int64())))


def split(behaviors: Behaviors) -> tuple[HistoryBatch, np.ndarray, np.ndarray]:
    """Histories before each user's last view, whom to ask (rows), and the items viewed then."""
    end = int(behaviors.times_us.max()) + 1
    whole = Histories(behaviors).as_of(behaviors.entities, end, int(np.diff(behaviors.offsets).max()))
    owner = np.repeat(np.arange(len(whole)), whole.lengths)
    views = np.flatnonzero(whole.behavior_types == VIEW)
    last = np.full(len(whole), -1)
    last[owner[views]] = views  # ascending, so the last one stays
    at = np.where(last >= 0, whole.times[last], end)
    before = whole.times < at[owner]
    kept = np.bincount(owner[before], minlength=len(whole))
    histories = cut(whole, whole.offsets[:-1], whole.offsets[:-1] + kept, at)
    viewed = np.bincount(owner[before & (whole.behavior_types == VIEW)], minlength=len(whole))
    asked = np.flatnonzero((last >= 0) & (viewed > 0))
    return histories, asked, whole.items[last[asked]]


def views_of(histories: HistoryBatch) -> HistoryBatch:
    """The histories without anything but views."""
    kept = histories.behavior_types == VIEW
    before = np.concatenate([[0], np.cumsum(kept)])
    return replace(
        histories,
        offsets=before[histories.offsets],
        items=histories.items[kept],
        behavior_types=histories.behavior_types[kept],
        times=histories.times[kept],
        values=histories.values[kept],
    )


def task_of(histories: HistoryBatch, asked: np.ndarray, items: np.ndarray, catalogue: ItemIndex) -> RankingTask:
    """The questions of one arm."""
    known = np.zeros(len(catalogue) + 1, np.bool_)
    known[catalogue.rows(histories.items)] = True
    targets = Ragged.single(catalogue.rows(items) - 1)
    return RankingTask(histories, histories.take(asked), targets, catalogue, known[1:], asked)


def measure(options: argparse.Namespace, column: str) -> dict[str, Any]:
    """Both arms and the baselines on one kind of item."""
    histories, asked, items = split(read_taobao(options.data, column))
    catalogue = ItemIndex.of(np.concatenate([histories.items, items]))
    arms = {VIEWS_ONLY: views_of(histories), ALL_TYPES: histories}
    tasks = {name: task_of(arm, asked, items, catalogue) for name, arm in arms.items()}
    scores: dict[str, list[np.ndarray]] = {name: [] for name in arms}
    for seed in range(options.seeds):
        for name, arm in arms.items():
            result = train(replace(CONFIG, seed=seed), arm, behavior_types=TYPES, type_weights=[1.0, 0.0, 0.0, 0.0])
            found = evaluate(tasks[name], {name: result.encoder}, baselines=(), resamples=0).measured[name]
            scores[name].append(np.stack([found["hr@10"], found["ndcg@10"], found["mrr"]], axis=1))
    means = {name: np.mean(each, axis=0) for name, each in scores.items()}
    baselines = evaluate(tasks[VIEWS_ONLY], {}, baselines=options.baselines, resamples=1000)
    return {
        "item": column,
        "questions": len(asked),
        "catalogue": len(catalogue),
        "types in histories": np.bincount(histories.behavior_types, minlength=len(TYPES)).tolist(),
        "arms": {name: estimates(each, asked) for name, each in means.items()},
        "gain": estimates(means[ALL_TYPES] - means[VIEWS_ONLY], asked),
        "baselines": {name: asdict(each)["estimates"]["all"] for name, each in baselines.methods.items()},
    }


def estimates(values: np.ndarray, users: np.ndarray) -> dict[str, dict[str, float]]:
    """Means and intervals of the three measures."""
    found = bootstrap(values, users, resamples=2000)
    return {name: asdict(each) for name, each in zip(("hr@10", "ndcg@10", "mrr"), found, strict=True)}


def show(console: Console, found: dict[str, Any]) -> None:
    """Prints the table of one kind of item."""
    title = f"Next view by {found['item']}: {found['questions']:,} questions, {found['catalogue']:,} to rank"
    table = Table(title=title, title_justify="left")
    for name in ("method", "HR@10", "NDCG@10"):
        table.add_column(name, justify="left" if name == "method" else "right")
    for name, row in {**found["arms"], "gain of types": found["gain"], **found["baselines"]}.items():
        table.add_row(name, *(str(Estimate(**row[measure])) for measure in ("hr@10", "ndcg@10")))
    console.print(table)


def main() -> None:
    """Measures, prints, and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--columns", nargs="+", default=["category_id", "item_id"])
    parser.add_argument("--baselines", nargs="+", default=list(BASELINES), help="of: " + ", ".join(BASELINES))
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    load_before, started, console = os.getloadavg(), time.monotonic(), Console(width=120)
    parts = []
    for column in options.columns:
        parts.append(measure(options, column))
        show(console, parts[-1])
    results = {
        "parts": parts,
        "seeds": options.seeds,
        "config": asdict(CONFIG),
        "seconds": round(time.monotonic() - started, 1),
        "machine": machine(load_before),
        "command": " ".join(["python", sys.argv[0], *(Path(part).name for part in sys.argv[1:])]),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""``feast-embeddings demo``: the whole path on a year of real purchases, under three policies."""

from __future__ import annotations

import contextlib
import shutil
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from feast import FeatureStore
from rich.console import Console
from rich.table import Table

from feast_embeddings.materialize.clock import us_of
from feast_embeddings.materialize.declare import embedding_specs
from feast_embeddings.materialize.demo.journey import product_names, write_journey
from feast_embeddings.materialize.demo.parity import Parity
from feast_embeddings.materialize.demo.quality import WeekAhead
from feast_embeddings.materialize.demo.ranker import RankerReport, rank
from feast_embeddings.materialize.demo.reads import Rows, next_week
from feast_embeddings.materialize.demo.replay import END, START, Replay, Replayer, feast_apply, make_repo
from feast_embeddings.materialize.demo.report import Line, draw, print_summary, write_figures
from feast_embeddings.materialize.files import Workspace
from feast_embeddings.materialize.learning import Training, train_declared
from feast_embeddings.models import SequenceConfig, TrainingConfig
from feast_embeddings.transformations import Behaviors

POLICIES = {
    "Incremental": 'Incremental(every="1d")',
    "Full": 'Full(every="28d")',
    "Hybrid": 'Hybrid(every="1d", half_life="7d", full_every="28d")',
}
ROWS = 10_000
SAMPLE = 500


def training_config(seed: int) -> TrainingConfig:
    """A short training on products that were bought at least ten times; it ends by epochs, the same on any machine."""
    return TrainingConfig(
        encoder=SequenceConfig(context=50),
        seed=seed,
        max_epochs=4,
        min_item_count=10,
        full_softmax_items=2_000,
        negatives=1_024,
        validation_users=500,
    )


def run_demo(folder: Path, seed: int, *, config: TrainingConfig | None = None, rows: int = ROWS) -> None:
    """Clean, train, apply, refresh, replay, read, compare, and print the table.

    Args:
        folder: Where to work; made anew.
        seed: Of the training, the read times and the ranker.
        config: The training; default :func:`training_config`.
        rows: Online reads to hold against historical retrieval.
    """
    console = Console()
    started = time.perf_counter()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    folder = folder.resolve()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        journey = folder / "behaviors.parquet"
        summary = write_journey(journey)
        console.print(
            f"The Complete Journey, 2017: {summary.purchases:,} purchases and {summary.coupons:,} coupon redemptions "
            f"of {summary.customers:,} households, {summary.products:,} products"
        )
        folders = [folder / name.lower() for name in POLICIES]
        for path, policy in zip(folders, POLICIES.values(), strict=True):
            make_repo(path, policy, journey)
        feast_apply(folders)
        training = _train(console, folders, config or training_config(seed))
        catalogue = np.asarray(training.result.encoder.item_ids(), np.int64)
        with contextlib.chdir(folders[0]):
            future = _future()
        replays = _replay(console, folders, future, catalogue, rows, seed)
        _show_recommendations(console, replays[-1], future, catalogue, seed)
        _summarize(console, folder, replays, future, catalogue, seed, started)


def _train(console: Console, folders: list[Path], config: TrainingConfig) -> Training:
    started = time.perf_counter()
    with contextlib.chdir(folders[0]):
        training = train_declared(FeatureStore("."), config, until_us=us_of(START))
    for other in folders[1:]:
        shutil.copytree(folders[0] / training.spec.artifact, other / training.spec.artifact)
    console.print(
        f"Encoder of space {training.space}: trained on {training.learned.behaviors:,} behaviors before October "
        f"in {time.perf_counter() - started:.0f} s"
    )
    return training


def _future() -> Behaviors:
    store = FeatureStore(".")
    spec = next(spec for spec in embedding_specs(store.registry, store.project) if spec.tower == "user")
    workspace = Workspace.of(store.config)
    log = workspace.behavior_log(store.registry, store.project, spec)
    return log.until(us_of(END), us_of(END))


def _replay(
    console: Console, folders: list[Path], future: Behaviors, catalogue: np.ndarray, rows: int, seed: int
) -> list[Replay]:
    replays = []
    for number, (path, (name, policy)) in enumerate(zip(folders, POLICIES.items(), strict=True)):
        share = rows // len(folders) + (number < rows % len(folders))
        with contextlib.chdir(path):
            replay = Replayer(future, catalogue, share, seed + number).replay(name, policy)
        replays.append(replay)
        console.print(
            f"{name}: {replay.encoded:,} histories encoded and {replay.rows:,} vectors written by daily jobs from "
            f"October to December, {replay.seconds:.0f} s of jobs; {replay.compared.parity.equal:,} of "
            f"{replay.compared.parity.rows:,} reads equal history"
        )
    return replays


def _show_recommendations(
    console: Console, replay: Replay, future: Behaviors, catalogue: np.ndarray, seed: int
) -> None:
    """Online reads of some households on the last whole week, beside what they were about to buy."""
    monday = max(monday for monday in replay.weekly if monday + 7 * 86_400_000_000 <= int(future.times_us.max()))
    served, items = replay.weekly[monday], replay.items
    buyers = [
        row for row in range(len(future.entities)) if len(next_week(future, int(future.entities[row]), monday)) > 5
    ]
    table = Table("household", "recommended", "about to buy", title="A week ahead", title_justify="left")
    for row in np.random.default_rng(seed).choice(buyers, 4, replace=False):
        top = catalogue[np.argsort(-(items.values @ served.values[row]))[:4]]
        bought = next_week(future, int(future.entities[row]), monday)
        named = [", ".join(product_names(ids[:4])).lower() for ids in (top, bought)]
        table.add_row(str(future.entities[row]), *named)
    console.print(table)


def _summarize(
    console: Console,
    folder: Path,
    replays: list[Replay],
    future: Behaviors,
    catalogue: np.ndarray,
    seed: int,
    started: float,
) -> None:
    sample = np.sort(np.random.default_rng(seed).choice(len(future.entities), SAMPLE, replace=False))
    ahead = WeekAhead(future, catalogue, sample, sorted(replays[0].weekly))
    lines = [_line(replay, ahead) for replay in replays]
    lines.append(Line("popular, 7 days", "what all households bought most in the last 7 days", ahead.popular()))
    lines.append(Line("repeat purchase", "what the household itself bought most often", ahead.repeated()))
    parity = sum((replay.compared.parity for replay in replays), Parity(0, 0, 0, 0))
    ranker = _ranked(replays, seed)
    print_summary(console, lines, parity, ranker, ahead.outside)
    draw(folder / "policies.png", lines)
    seconds = time.perf_counter() - started
    write_figures(folder / "figures.json", lines, parity, ranker, {"seed": seed, "seconds": round(seconds, 1)})
    console.print(f"{seconds:.0f} s in all. Picture: {folder / 'policies.png'}; figures: {folder / 'figures.json'}")


def _line(replay: Replay, ahead: WeekAhead) -> Line:
    return Line(
        replay.name,
        replay.policy,
        ahead.served(replay.weekly, replay.items),
        replay.encoded,
        replay.rows,
        replay.seconds,
    )


def _ranked(replays: list[Replay], seed: int) -> RankerReport:
    """The ranker on the rows of all policies, in order of time."""
    asked = pd.concat([replay.compared.asked for replay in replays], ignore_index=True)
    order = np.argsort(asked["event_timestamp"].to_numpy(), kind="stable")
    offline = Rows.concat([replay.compared.offline for replay in replays]).take(order)
    online = Rows.concat([replay.compared.online for replay in replays]).take(order)
    equal = np.concatenate([replay.compared.at_once for replay in replays])[order]
    return rank(offline, online, asked["bought"].to_numpy(bool)[order], equal, seed)

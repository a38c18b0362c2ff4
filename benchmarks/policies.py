"""Which update policy pays, and what staleness costs, on clicks of a news site.

An encoder learned from the days before 2017-10-07 and is frozen (see ``globo.py``). Two days are replayed: before a
sample of their clicks, the next article is to be found among all, given the vector that a policy would have served.
For every policy the items are the same: those that the encoder knows. For every age they are too, those that it
never saw among them: they stand, hour by hour, where the users before their clicks stood, at the mean vector, as long
as those of trained items, times n / (n + 20) where n users came (weighed so, a chance click is no match for a trained
item). Other ways of placing them, and none, are shown beside it.

    python benchmarks/policies.py --data globo_clicks_1001_1008.parquet --encoder globo_encoder
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from globo import DAY_US, TRAIN_END_US, read_globo, trained
from quality_ml1m import machine
from rich.console import Console
from rich.table import Table

from feast_embeddings.materialize import Full, Hybrid, Incremental
from feast_embeddings.materialize.learning import COLUMNS, Backtest, Candidate, Frontier, Questions, draw
from feast_embeddings.models import (
    BASELINES,
    Encoder,
    Evaluation,
    HistoryBatch,
    ItemIndex,
    RankingTask,
    Scorer,
    evaluate,
    load_encoder,
    save_encoder,
    time_split,
)
from feast_embeddings.models.derived import UnseenItems
from feast_embeddings.models.evaluation import cut
from feast_embeddings.models.types import Float32s, Int64s
from feast_embeddings.transformations import Behaviors, Histories

Figures = dict[str, Any]
ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
HOUR_US = 3_600_000_000
MINUTE_US = 60_000_000
FOLDED_CLICKS = 30_000
PRIOR_USERS = 20
HOURLY = "popularity of the hour before"
WEIGHED = "means, lengthened and weighed"
BEHIND = (0, 1, 2, 5, 10)
MINUTES = (0, 1, 5, 15, 60, 240, 1440)
TICK = "1m"
REFERENCE = f"window, {TICK}"


def candidates() -> list[Candidate]:
    """What is replayed: the reference, and every idea to spend less."""
    arms = {
        REFERENCE: Incremental(every=TICK),
        f"Full, {TICK}": Full(every=TICK),
        "Full, 6h": Full(every="6h"),
        "Full, 1d": Full(every="1d"),
        **{f"window, {every}": Incremental(every=every) for every in ("5m", "15m", "1h", "6h", "1d")},
        **{f"window, {TICK}, α {alpha}": Incremental(every=TICK, alpha=alpha) for alpha in (0.3, 0.6, 0.9)},
        f"window, {TICK}, half-life 1h": Incremental(every=TICK, half_life="1h"),
        **{
            f"new, {TICK}, α {alpha}": Incremental(every=TICK, alpha=alpha, context="new")
            for alpha in (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)
        },
        **{
            f"new, {TICK}, half-life {life}": Incremental(every=TICK, half_life=life, context="new")
            for life in ("30m", "6h", "1d")
        },
        f"new, {TICK}, α 0.3, full 6h": Hybrid(every=TICK, alpha=0.3, context="new", full_every="6h"),
        f"new, {TICK}, α 0.3, full 1d": Hybrid(every=TICK, alpha=0.3, context="new", full_every="1d"),
        f"window, {TICK}, full 1d": Hybrid(every=TICK, full_every="1d"),
    }
    return [
        *(Candidate(name, policy) for name, policy in arms.items()),
        *(Candidate(f"cached, {every}", Incremental(every=every), cached=True) for every in (TICK, "5m", "15m")),
        *(Candidate(f"window, {TICK}, ≥ {least} new", Incremental(every=TICK), min_new=least) for least in (2, 3)),
    ]


@dataclass(frozen=True)
class World:
    """The clicks, the questions, and the items that everybody is ranked against."""

    histories: HistoryBatch
    task: RankingTask
    encoder: Encoder
    trained: Float32s
    hour: Int64s
    unseen: Float32s
    support: Int64s
    popular: Float32s

    def scorer(self, users: Float32s, unseen: Float32s | None = None) -> Scorer:
        """Scores of user vectors [Q, dim] of all questions; ``unseen`` [hours, m, dim] are ranked where given."""

        def score(part: slice) -> Float32s:
            scores: Float32s = users[part] @ self.trained.T
            scores[:, ~self.task.known] = -np.inf
            columns = np.flatnonzero(~self.task.known)
            for hour in np.unique(self.hour[part]) if unseen is not None else ():
                rows, there = np.flatnonzero(self.hour[part] == hour), unseen[hour].any(axis=1)
                scores[np.ix_(rows, columns[there])] = users[part][rows] @ unseen[hour][there].T
            return scores

        return score

    def variants(self) -> dict[str, Float32s]:
        """Vectors of unseen items: plain means; as long as the trained ones; and weighed by how many users came."""
        lengths = np.linalg.norm(self.unseen, axis=2, keepdims=True)
        wanted = np.linalg.norm(self.trained[self.task.known], axis=1).mean()
        ratio = np.divide(wanted, lengths, out=np.zeros_like(lengths), where=lengths > 0)
        long = (self.unseen * ratio).astype(np.float32)
        weight = self.support / (self.support + PRIOR_USERS)
        return {
            "plain means": self.unseen,
            "means, lengthened": long,
            WEIGHED: (long * weight[..., None]).astype(np.float32),
        }


def questions(behaviors: Behaviors, encoder: Encoder, days: float, sample: int) -> tuple[HistoryBatch, RankingTask]:
    """Whole histories, and questions before clicks of the days after training, in order of time."""
    end = TRAIN_END_US + round(days * DAY_US)
    longest = int(np.diff(behaviors.offsets).max())
    histories = Histories(behaviors).as_of(behaviors.entities, end, longest)
    later = behaviors.between(TRAIN_END_US, end)
    catalogue = ItemIndex.of(np.concatenate([encoder.item_ids(), later.items]))
    task = time_split(
        histories, TRAIN_END_US, until_us=end, catalogue=catalogue, follow=True, sample=sample, filter_seen=True
    )
    by_time = np.argsort(task.histories.as_of, kind="stable")
    return histories, replace(task.take(by_time), known=encoder.encode_items(catalogue.ids)[1])


def made(behaviors: Behaviors, encoder: Encoder, days: float, sample: int) -> World:
    """The world from the end of training on, for so many days."""
    histories, task = questions(behaviors, encoder, days, sample)
    end, catalogue = TRAIN_END_US + round(days * DAY_US), task.catalogue
    vectors, known = encoder.encode_items(catalogue.ids)
    hour = (task.histories.as_of - TRAIN_END_US) // HOUR_US
    unseen, support = folded(histories, encoder, catalogue, known, end)
    return World(histories, task, encoder, vectors, hour, unseen, support, popular_by_hour(histories, catalogue, end))


def popular_by_hour(histories: HistoryBatch, catalogue: ItemIndex, end: int) -> Float32s:
    """Clicks of every item in the hour before each hour, float32 [hours, V]: what is as fresh as unseen items are."""
    hours = -(-(end - TRAIN_END_US) // HOUR_US)
    after = (histories.times - TRAIN_END_US) // HOUR_US + 1
    rows = np.flatnonzero((after >= 0) & (after < hours))
    columns = catalogue.rows(histories.items[rows]) - 1
    flat = (after[rows] * len(catalogue) + columns)[columns >= 0]
    counts = np.bincount(flat, minlength=hours * len(catalogue))
    return counts.reshape(hours, len(catalogue)).astype(np.float32)


def folded(
    histories: HistoryBatch, encoder: Encoder, catalogue: ItemIndex, known: np.ndarray, end: int
) -> tuple[Float32s, Int64s]:
    """Vectors [hours, m, dim] of the unseen items at the start of each hour, and how many users came, [hours, m]."""
    owner = np.repeat(np.arange(len(histories)), histories.lengths)
    column = catalogue.rows(histories.items) - 1
    place = np.cumsum(~known) - 1
    clicks = np.flatnonzero((histories.times >= TRAIN_END_US) & (histories.times < end) & ~known[column])
    clicks = np.sort(np.random.default_rng(0).permutation(clicks)[:FOLDED_CLICKS])
    start = np.maximum(histories.offsets[:-1][owner[clicks]], clicks - encoder.context)
    before = encoder.encode(cut(histories, start, clicks, histories.times[clicks]))
    hours = (histories.times[clicks] - TRAIN_END_US) // HOUR_US
    total, vectors, support = UnseenItems.of(encoder, histories.items[:0], before[:0]), [], []
    for hour in range(-(-(end - TRAIN_END_US) // HOUR_US)):
        at = place[catalogue.rows(total.ids) - 1]
        vectors.append(np.zeros((int((~known).sum()), encoder.dim), np.float32))
        support.append(np.zeros(int((~known).sum()), np.int64))
        vectors[-1][at], support[-1][at] = total.vectors(), total.support
        now = hours == hour
        total = total.merged(UnseenItems.of(encoder, histories.items[clicks[now]], before[now]))
    return np.stack(vectors), np.stack(support)


def frontier(world: World, end: int, resamples: int, baselines: list[str]) -> tuple[Frontier, Evaluation, list[str]]:
    """Every candidate replayed, evaluated, and weighed."""
    questions = Questions(world.task.users, world.task.histories.as_of)
    replay = Backtest(world.histories, world.encoder, questions, TRAIN_END_US, end)
    replayed = replay.run(candidates())
    methods = {each.candidate.name: world.scorer(each.vectors) for each in replayed}
    exact = next(each for each in replayed if each.candidate.name == REFERENCE)
    for kind, unseen in world.variants().items():
        methods[f"{REFERENCE}, unseen: {kind}"] = world.scorer(exact.vectors, unseen)
    found = evaluate(world.task, methods, baselines=baselines, resamples=resamples)
    return Frontier.of(replayed, found, REFERENCE), found, list(methods)


def apart(world: World, users: Float32s) -> dict[str, Scorer]:
    """The same user vectors against each kind of vectors of unseen items, and against none."""
    kinds = {**world.variants(), "unranked": None}
    scorers = {f"unseen: {kind}": world.scorer(users, unseen) for kind, unseen in kinds.items()}
    return {**scorers, HOURLY: lambda part: world.popular[world.hour[part]]}


def staleness(world: World, resamples: int) -> tuple[dict[str, Evaluation], dict[str, int]]:
    """Quality by the vector's age: in behaviors, for questions after more than ten; in minutes, for all."""
    task, encoder = world.task, world.encoder
    long = np.flatnonzero(task.histories.lengths > max(BEHIND))
    deep, unseen = replace(world, task=task.take(long), hour=world.hour[long]), world.variants()[WEIGHED]
    by_behaviors = {f"{age}": deep.scorer(encoder.encode(older(deep.task.histories, age)), unseen) for age in BEHIND}
    by_minutes = {f"{age} min": world.scorer(encoder.encode(earlier(task.histories, age)), unseen) for age in MINUTES}
    found = {
        "behaviors": evaluate(deep.task, by_behaviors, baselines=(), resamples=resamples),
        "minutes": evaluate(task, by_minutes, baselines=(), resamples=resamples),
    }
    return found, {"behaviors": len(long), "minutes": len(task)}


def older(histories: HistoryBatch, age: int) -> HistoryBatch:
    """The histories without their last ``age`` behaviors, as of the first of those."""
    stop = histories.offsets[1:] - age
    as_of = histories.as_of if age == 0 else histories.times[np.minimum(stop, len(histories.times) - 1)]
    return cut(histories, histories.offsets[:-1], stop, as_of)


def earlier(histories: HistoryBatch, minutes: int) -> HistoryBatch:
    """The histories as of so many minutes before."""
    as_of = histories.as_of - minutes * MINUTE_US
    owner = np.repeat(np.arange(len(histories)), histories.lengths)
    kept = np.bincount(owner[histories.times < as_of[owner]], minlength=len(histories))
    return cut(histories, histories.offsets[:-1], histories.offsets[:-1] + kept, as_of)


def show_staleness(console: Console, found: dict[str, Evaluation], counts: dict[str, int]) -> None:
    """Prints one table per unit of age."""
    for unit, evaluation in found.items():
        title = f"Quality by the age of the user's vector, in {unit}: {counts[unit]:,} questions, items the same"
        table = Table(title=title, title_justify="left")
        for column in ("age", "HR@10", "NDCG@10", "seen: HR@10", "unseen: HR@10"):
            table.add_column(column, justify="right")
        for name, scores in evaluation.methods.items():
            cells = [("all", "hr@10"), ("all", "ndcg@10"), ("seen", "hr@10"), ("unseen", "hr@10")]
            table.add_row(name, *(f"{scores.estimates[group][measure].value:.4f}" for group, measure in cells))
        console.print(table)


def show_methods(console: Console, found: Evaluation, names: list[str]) -> None:
    """Prints the encoder by its reference policy beside every baseline."""
    table = Table(title=f"{found.questions['all']:,} questions, {found.catalogue:,} articles", title_justify="left")
    for column in ("method", "HR@10", "NDCG@10", "seen: HR@10", "unseen: HR@10", "coverage@10"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for name, scores in found.methods.items():
        if name in (REFERENCE, HOURLY) or "unseen: " in name or name not in names:
            cells = [("all", "hr@10"), ("all", "ndcg@10"), ("seen", "hr@10"), ("unseen", "hr@10")]
            shown = [str(scores.estimates[group][measure]) for group, measure in cells]
            table.add_row(name, *shown, f"{scores.coverage[10]:.3f}")
    console.print(table)


def draw_staleness(path: Path, found: dict[str, Evaluation]) -> None:
    """Draw HR@10 against age, seen and unseen items apart, with intervals."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained", sharey=True)
    for axes, (unit, evaluation) in zip(panels, found.items(), strict=True):
        places = np.arange(len(evaluation.methods))
        for group, color in (("all", "0.2"), ("seen", "tab:blue"), ("unseen", "tab:orange")):
            hits = [scores.estimates[group]["hr@10"] for scores in evaluation.methods.values()]
            axes.plot(places, [hit.value for hit in hits], "o-", color=color, label=f"{group} items", markersize=4)
            axes.fill_between(places, [hit.low for hit in hits], [hit.high for hit in hits], color=color, alpha=0.15)
        axes.set_xticks(places, [name.removesuffix(" min") for name in evaluation.methods])
        axes.set_xlabel(f"age of the user's vector, {unit}")
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("HR@10 of the next article")
    panels[0].legend(frameon=False)
    panels[0].set_title("Staleness, the items held equal", loc="left")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def run(options: argparse.Namespace, console: Console) -> None:
    """The parts asked for: tables, pictures, files."""
    load_before = os.getloadavg()
    behaviors = read_globo(options.data)
    if not (options.encoder / "manifest.json").is_file():
        save_encoder(trained(behaviors, options.minutes).encoder, options.encoder)
    encoder = load_encoder(options.encoder)
    for part in options.parts:
        started = time.monotonic()
        figures = PARTS[part](behaviors, encoder, options, console)
        head = {
            "space": encoder.space,
            "command": " ".join(["python", sys.argv[0], *(Path(part).name for part in sys.argv[1:])]),
            **figures,
        }
        tail = {"seconds": time.monotonic() - started, "machine": machine(load_before)}
        write(options.out / f"{part}.json", head | tail)


def run_staleness(behaviors: Behaviors, encoder: Encoder, options: argparse.Namespace, console: Console) -> Figures:
    """Quality by age."""
    world = made(behaviors, encoder, options.days, options.sample)
    found, counts = staleness(world, options.resamples)
    show_staleness(console, found, counts)
    draw_staleness(options.plots / "staleness.png", found)
    kinds = apart(world, encoder.encode(world.task.histories))
    unseen = evaluate(world.task, kinds, baselines=options.baselines, resamples=options.resamples)
    show_methods(console, unseen, list(kinds))
    ages = {unit: evaluation.to_json() for unit, evaluation in found.items()}
    return {"days": options.days, "questions": counts, **ages, "unseen items": unseen.to_json()}


def run_hourly(behaviors: Behaviors, encoder: Encoder, options: argparse.Namespace, console: Console) -> Figures:
    """What counting the clicks of the hour before achieves, on the questions of the tables of age."""
    histories, task = questions(behaviors, encoder, options.days, options.sample)
    hour = (task.histories.as_of - TRAIN_END_US) // HOUR_US
    counts = popular_by_hour(histories, task.catalogue, TRAIN_END_US + round(options.days * DAY_US))
    found = evaluate(task, {HOURLY: lambda part: counts[hour[part]]}, baselines=(), resamples=options.resamples)
    show_methods(console, found, [])
    return {"days": options.days, "evaluation": found.to_json()}


def run_policies(behaviors: Behaviors, encoder: Encoder, options: argparse.Namespace, console: Console) -> Figures:
    """Quality against cost."""
    world = made(behaviors, encoder, options.replay_days, options.sample)
    end = TRAIN_END_US + round(options.replay_days * DAY_US)
    weighed, evaluation, names = frontier(world, end, options.resamples, options.baselines)
    show_methods(console, evaluation, names)
    table = Table(*COLUMNS)
    for row in weighed.rows():
        table.add_row(*row)
    console.print(table)
    cheapest = weighed.recommended(min_quality=0.995)
    console.print(f"At least 99.5 % of {REFERENCE!r}, cheapest: policy={cheapest.declaration}")
    draw(options.plots / "policies.png", weighed, "News clicks: quality against encode cost")
    points = [asdict(point) for point in weighed.points]
    return {"days": options.replay_days, "reference": REFERENCE, "points": points, "evaluation": evaluation.to_json()}


PARTS = {"staleness": run_staleness, "hourly": run_hourly, "policies": run_policies}


def write(path: Path, results: dict[str, Any]) -> None:
    """Writes JSON, floats to six digits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rounded = json.loads(json.dumps(results), parse_float=lambda text: round(float(text), 6))
    path.write_text(json.dumps(rounded, indent=1) + "\n")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--encoder", type=Path, required=True, help="its artifact; trained where there is none")
    parser.add_argument("--minutes", type=float, default=9.0, help="time limit of that training")
    parser.add_argument("--days", type=float, default=2.0, help="days of questions about age, from 10-07 on")
    parser.add_argument("--replay-days", type=float, default=1.0, help="days of policies, from 10-07 on")
    parser.add_argument("--sample", type=int, default=10_000, help="questions")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--baselines", nargs="*", default=list(BASELINES), help="of: " + ", ".join(BASELINES))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--plots", type=Path, default=ROOT / "docs")
    run(parser.parse_args(), Console(width=150))


if __name__ == "__main__":
    main()

"""Does freshness pay? The next click on a news site, found by user vectors of different ages, items held equal.

An encoder learned from the clicks before 2017-10-07 and is frozen (``benchmarks/globo.py``). Every click of a sample of
users on the two days after it is a question: which article comes next? The user's vector stands for the history as of
the click (streaming), the last full hour, the last midnight, or the time at which the encoder was frozen (none).

Articles are the same for all four. Seen ones, which the encoder learned, have its vectors, and are ranked among
themselves. Unseen ones have the mean of the vectors that their readers of the sample had before them, up to the last
full hour, and are ranked among those that were read by then; one that was not counts as not found. The two kinds of
vectors have different lengths, so that one ranking of both would tell about scales.

What is popular changes by the hour on such a site. So each ranking is done twice: by the inner product alone, and with
the clicks of the 24 hours before the last full hour: for a seen article plus the logarithm of their change since the
encoder learned, for an unseen one as the logarithm of their number plus the inner product over the root of the
dimensions. Nothing of that is fitted. "Returning" are users with a history when the encoder was frozen: all four ways
have a vector for them. Others are shown what is popular for as long as they have none.

    python benchmarks/freshness_globo.py --data globo_clicks_1001_1008.parquet --encoder globo_encoder
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import numpy.typing as npt
import torch
from globo import DAY_US, TRAIN_END_US, TRAIN_START_US, read_globo
from rich.console import Console
from rich.table import Table

from feast_embeddings.models import Encoder, load_encoder
from feast_embeddings.models.derived import UnseenItems, trained_length
from feast_embeddings.models.evaluation import Estimate, bootstrap
from feast_embeddings.transformations import Behaviors, Histories

RESULTS = Path(__file__).parent / "results" / "freshness.json"
HOUR_US = DAY_US // 24
UPDATES = ("streaming", "hourly", "daily", "none")
GROUPS = ("seen", "unseen", "both")
SCORINGS = ("inner product", "with popularity")
Floats = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Questions:
    """Clicks of the future, in order of time [Q]: who, which article, when, and the hour it falls in."""

    users: Int64s
    items: Int64s
    times: Int64s
    hours: Int64s

    @classmethod
    def of(cls, behaviors: Behaviors, users: int, seed: int) -> Questions:
        """Every later click of ``users`` users who clicked after the encoder was frozen."""
        owner = np.repeat(behaviors.entities.astype(np.int64), np.diff(behaviors.offsets))
        later = behaviors.times_us >= TRAIN_END_US
        there = np.unique(owner[later])
        chosen = np.random.default_rng(seed).choice(there, min(users, len(there)), replace=False)
        rows = np.flatnonzero(later & np.isin(owner, chosen))
        rows = rows[np.argsort(behaviors.times_us[rows], kind="stable")]
        times = behaviors.times_us[rows]
        return cls(owner[rows], behaviors.items[rows].astype(np.int64), times, (times - TRAIN_END_US) // HOUR_US)

    def as_of(self, update: str) -> Int64s:
        """The time that the user's vector stands for, int64 [Q]."""
        if update == "streaming":
            return self.times
        if update == "none":
            return np.full(len(self.times), TRAIN_END_US, np.int64)
        step = HOUR_US if update == "hourly" else DAY_US
        return TRAIN_END_US + (self.times - TRAIN_END_US) // step * step


def vectors_of(encoder: Encoder, histories: Histories, questions: Questions, update: str) -> tuple[Floats, int]:
    """The user's vector at each question, float32 [Q, dim], zeros without a history; and how many were encoded."""
    stood = questions.as_of(update)
    pairs, row = np.unique(np.stack([questions.users, stood]), axis=1, return_inverse=True)
    vectors = np.empty((pairs.shape[1], encoder.dim), np.float32)
    for start in range(0, len(vectors), 8192):
        part = slice(start, start + 8192)
        vectors[part] = encoder.encode(histories.as_of(pairs[0, part], pairs[1, part], encoder.context))
    return vectors[row.reshape(-1)], int(vectors.any(axis=1).sum())


def ranks_of(scores: Floats, target: Int64s) -> npt.NDArray[np.float64]:
    """Places [n] of the targets (columns of ``scores``), from 1 on; ties stand in the middle; -1: no such column."""
    own = scores[np.arange(len(target)), np.maximum(target, 0)][:, None]
    places = 1.0 + (scores > own).sum(axis=1) + ((scores == own).sum(axis=1) - 1) / 2
    return np.where(target < 0, np.inf, places)


def places_in(ids: Int64s, wanted: Int64s) -> Int64s:
    """Where ``wanted`` [n] stand in ``ids`` (ascending); -1 where they do not."""
    if not len(ids):
        return np.full(len(wanted), -1, np.int64)
    found = np.minimum(np.searchsorted(ids, wanted), len(ids) - 1)
    return np.where(ids[found] == wanted, found, -1).astype(np.int64)


class Shelf:
    """The articles of one kind at one hour: ids, vectors and popularity, for all ways of updating alike.

    Args:
        ids: Articles [n].
        vectors: float32 [n, dim].
        clicks: Articles of the clicks of the last 24 hours.
        learned: Articles of the clicks that the encoder learned from; None for articles that it never saw.
    """

    def __init__(self, ids: Int64s, vectors: Floats, clicks: Int64s, learned: Int64s | None) -> None:
        order = np.argsort(ids, kind="stable")
        self.ids, self._vectors = ids[order], vectors[order]
        self._popularity = self._counts(clicks)
        self._prior = np.log1p(self._popularity) - (0 if learned is None else np.log1p(self._counts(learned)))
        self._scale = np.float32(1.0 if learned is not None else vectors.shape[1] ** -0.5)

    def ranks(self, users: Floats, items: Int64s, scoring: str) -> npt.NDArray[np.float64]:
        """Places of ``items`` for vectors [n, dim]; a row of zeros gets what is popular."""
        if not len(self.ids):
            return np.full(len(items), np.inf)
        scores = users @ self._vectors.T
        if scoring == "with popularity":
            scores = scores * self._scale + self._prior
        scores[~users.any(axis=1)] = self._popularity
        return ranks_of(scores, places_in(self.ids, items))

    def _counts(self, clicks: Int64s) -> Floats:
        at = places_in(self.ids, clicks)
        return np.bincount(at[at >= 0], minlength=len(self.ids)).astype(np.float32)


@dataclass(frozen=True)
class Found:
    """Whether the next click was among the first ten.

    Attributes:
        hits: Scoring → way of updating, or popularity → float64 [Q].
        encoded: How many vectors each way takes.
        known: Questions whose article the encoder learned, bool [Q].
        returning: Questions of users with a history when it was frozen, bool [Q].
    """

    hits: dict[str, dict[str, npt.NDArray[np.float64]]]
    encoded: dict[str, int]
    known: npt.NDArray[np.bool_]
    returning: npt.NDArray[np.bool_]


def measure(behaviors: Behaviors, encoder: Encoder, questions: Questions) -> Found:
    """Asks every question of every way of updating, by every scoring."""
    histories = Histories(behaviors)
    vectors, encoded = {}, {}
    for update in UPDATES:
        vectors[update], encoded[update] = vectors_of(encoder, histories, questions, update)
    methods = {**vectors, "popular, 24 hours": np.zeros_like(vectors["none"])}
    hits = {scoring: {name: np.zeros(len(questions.times)) for name in methods} for scoring in SCORINGS}
    past = (behaviors.times_us >= TRAIN_START_US) & (behaviors.times_us < TRAIN_END_US)
    learned = behaviors.items[past].astype(np.int64)
    known_ids = encoder.item_ids().astype(np.int64)
    known_vectors, _ = encoder.encode_items(known_ids)
    is_known = encoder.encode_items(questions.items)[1]
    unseen = UnseenItems.of(encoder, questions.items[:0], vectors["streaming"][:0])
    for hour in np.unique(questions.hours).tolist():
        now = questions.hours == hour
        start = TRAIN_END_US + hour * HOUR_US
        recent = behaviors.items[(behaviors.times_us >= start - DAY_US) & (behaviors.times_us < start)].astype(np.int64)
        shelves = {
            True: Shelf(known_ids, known_vectors, recent, learned),
            False: Shelf(unseen.ids.astype(np.int64), unseen.vectors(trained_length(encoder)), recent, None),
        }
        for known, shelf in shelves.items():
            rows = np.flatnonzero(now & (is_known == known))
            for scoring, (name, users) in product(SCORINGS, methods.items()):
                hits[scoring][name][rows] = shelf.ranks(users[rows], questions.items[rows], scoring) <= 10
        unseen = unseen.merged(UnseenItems.of(encoder, questions.items[now], vectors["streaming"][now]))
    returning = vectors["none"].any(axis=1)
    return Found(hits, encoded, is_known, returning)


def summarized(found: Found, questions: Questions, resamples: int) -> dict[str, Any]:
    """HR@10 by users, scoring and group, and what streaming gains over the other ways; 95 % intervals over users."""
    everyone = np.ones(len(found.known), np.bool_)
    kinds = {"seen": found.known, "unseen": ~found.known, "both": everyone}
    results: dict[str, Any] = {"encoded": found.encoded, "questions": {}}
    for who, there in {"returning": found.returning, "all": everyone}.items():
        results["questions"][who] = {group: int((there & rows).sum()) for group, rows in kinds.items()}
        results[who] = {}
        for scoring, hits in found.hits.items():
            rated: dict[str, Any] = {name: {} for name in hits}
            for group, rows in kinds.items():
                columns = np.stack([each[there & rows] for each in hits.values()], axis=1)
                both = np.concatenate([columns, columns[:, :1] - columns], axis=1)
                estimates = bootstrap(both, questions.users[there & rows], resamples=resamples)
                for place, name in enumerate(hits):
                    gain = estimates[len(hits) + place]
                    rated[name][group] = {"hr10": _plain(estimates[place]), "streaming gains": _plain(gain)}
            results[who][scoring] = rated
    return results


def _plain(estimate: Estimate) -> list[float]:
    return [round(number, 4) for number in (estimate.value, estimate.low, estimate.high)]


def show(results: dict[str, Any]) -> None:
    """One table per kind of users: what streaming gains first, then the rates themselves."""
    console = Console(width=150)
    for who, counts in results["questions"].items():
        title = f"Next click among the first ten, {who} users: {counts['seen']:,} clicks on seen articles, "
        table = Table(title=f"{title}{counts['unseen']:,} on unseen ones", title_justify="left")
        for head in ("scoring", "user vectors", "streaming gains, seen", "… unseen", "HR@10 seen", "HR@10 unseen"):
            table.add_column(head)
        for scoring, methods in results[who].items():
            for name, rated in methods.items():
                gains = ["" if name == "streaming" else _interval(rated[g]["streaming gains"]) for g in GROUPS[:2]]
                table.add_row(scoring, name, *gains, *(_interval(rated[group]["hr10"]) for group in GROUPS[:2]))
            table.add_section()
        console.print(table)
    console.print({"vectors encoded": results["encoded"]})
    console.print(results["machine"])


def _interval(numbers: list[float]) -> str:
    value, low, high = numbers
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


def main() -> None:
    """Measures, prints, and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--encoder", type=Path, required=True, help="what benchmarks/globo.py has saved")
    parser.add_argument("--users", type=int, default=5_000)
    parser.add_argument("--resamples", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(sys.argv[1:])
    torch.set_num_threads(1)
    started = time.monotonic()
    behaviors, encoder = read_globo(options.data), load_encoder(options.encoder)
    questions = Questions.of(behaviors, options.users, options.seed)
    results = summarized(measure(behaviors, encoder, questions), questions, options.resamples)
    results |= {"users": options.users, "seed": options.seed, "space": encoder.space}
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    results["machine"] = {
        "cpu": cpu[0].partition(":")[2].strip() if cpu else platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "seconds": round(time.monotonic() - started),
    }
    show(results)
    options.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""How well a method names what comes next, always beside what it has to beat, and with intervals.

One function, :func:`evaluate`, for the command line, the demo and the benchmarks. The conventions of a ranking stand
in :mod:`feast_embeddings.models.evaluation.ranking`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from feast_embeddings.models.encoder import Encoder
from feast_embeddings.models.errors import EvaluationError
from feast_embeddings.models.evaluation.baselines import markov_table, popularity, recent_popularity, repeat_purchase
from feast_embeddings.models.evaluation.bootstrap import Estimate, bootstrap
from feast_embeddings.models.evaluation.ease import ease
from feast_embeddings.models.evaluation.matrix_factorization import matrix_factorization
from feast_embeddings.models.evaluation.ranking import Scorer, inner_products, measures, rank
from feast_embeddings.models.evaluation.splits import RankingTask
from feast_embeddings.models.types import Float32s, Float64s

Baseline = Callable[[RankingTask], Scorer]

BASELINES: dict[str, Baseline] = {
    "popularity": lambda task: popularity(task.training, task.catalogue, asked=task.histories),
    "popularity, recent": lambda task: recent_popularity(task.training, task.catalogue, asked=task.histories),
    "repeat purchase": lambda task: repeat_purchase(task.training, task.catalogue, asked=task.histories),
    "Markov table": lambda task: markov_table(task.training, task.catalogue, asked=task.histories),
    "EASE": lambda task: ease(task.training, task.catalogue, asked=task.histories),
    "matrix factorization": lambda task: matrix_factorization(task.training, task.catalogue, asked=task.histories),
}
"""What every method stands beside. Each learns from ``training`` alone."""

GROUPS = ("all", "seen", "unseen")
"""Targets: all, those whose item occurs in ``training``, and the others."""


@dataclass(frozen=True, slots=True)
class MethodScores:
    """One method on one task.

    Attributes:
        estimates: Group of targets → measure (``hr@10``, ``ndcg@10``, ``recall@10``, ``mrr``) → mean and interval. A
            question counts in a group where it has a target of that group.
        coverage: k → share of the catalogue among the first k of any question.
        seconds: Of learning and scoring.
    """

    estimates: dict[str, dict[str, Estimate]]
    coverage: dict[int, float]
    seconds: float


@dataclass(frozen=True)
class Evaluation:
    """Methods on one task, the best in no particular order.

    Attributes:
        methods: Name → scores.
        questions: How many were counted, per group of targets.
        users: Who asked them.
        catalogue: Items that were ranked.
        measured: Name → measure of all targets → value per question, float64 [Q].
    """

    methods: dict[str, MethodScores]
    questions: dict[str, int]
    users: int
    catalogue: int
    measured: Mapping[str, Mapping[str, Float64s]]
    _user_of: Any
    _resampling: Mapping[str, Any]

    def difference(self, method: str, other: str, measure: str = "ndcg@10") -> Estimate:
        """How much better ``method`` is than ``other``, with the interval of paired differences."""
        column = self.measured[method][measure] - self.measured[other][measure]
        return bootstrap(column[:, None], self._user_of, **self._resampling)[0]

    def to_json(self) -> dict[str, Any]:
        """Every figure as JSON values."""
        shown = {"questions": self.questions, "users": self.users, "catalogue": self.catalogue}
        return {**shown, "methods": {name: asdict(scores) for name, scores in self.methods.items()}}


def evaluate(
    task: RankingTask,
    methods: Mapping[str, Encoder | Scorer],
    *,
    baselines: Sequence[str] = tuple(BASELINES),
    ks: Sequence[int] = (10,),
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Evaluation:
    """Ranks the whole catalogue for every question, by every method and every baseline.

    Args:
        task: From :func:`~feast_embeddings.models.evaluation.splits.leave_one_out` or
            :func:`~feast_embeddings.models.evaluation.splits.time_split`.
        methods: Encoders, which are trained already and must not have learned from what is to be found, or scorers of
            the catalogue. An encoder scores −∞ what it does not know.
        baselines: Names out of :data:`BASELINES`, by default all.
        ks: Cut-offs.
        resamples: Of the bootstrap over users; 0 gives no intervals.
        confidence: Of the intervals.
        seed: Of the bootstrap.

    Raises:
        EvaluationError: There is nothing to find, a baseline is unknown, two methods share a name, or scores are NaN.
    """
    _check(task, methods, baselines)
    chosen: dict[str, Encoder | Scorer | Baseline] = {**methods, **{name: BASELINES[name] for name in baselines}}
    resampling = {"resamples": resamples, "confidence": confidence, "seed": seed}
    found, measured = {}, {}
    for name, method in chosen.items():
        started = time.monotonic()
        scorer = BASELINES[name](task) if name in baselines else scorer_of(method, task)  # type: ignore[arg-type]
        ranking = rank(scorer, len(task.catalogue), task.targets, task.filtered, ks)
        columns = _grouped(task, ranking.ranks, ks)
        measured[name] = columns["all"]
        estimates = _estimates(columns, task, resampling)
        found[name] = MethodScores(estimates, ranking.coverage, time.monotonic() - started)
    questions = {group: int(np.isfinite(values["mrr"]).sum()) for group, values in columns.items()}
    users = len(np.unique(task.users))
    return Evaluation(found, questions, users, len(task.catalogue), measured, task.users, resampling)


def scorer_of(method: Encoder | Scorer, task: RankingTask) -> Scorer:
    """Scores of an encoder: inner products of histories and items, −∞ for unknown items; a scorer is itself."""
    if not isinstance(method, Encoder):
        return method
    items, known = method.encode_items(task.catalogue.ids)

    def score(part: slice) -> Float32s:
        users = method.encode(task.histories.take(np.arange(part.start, part.stop)))
        return inner_products(users, items, known)(slice(None))

    return score


def _check(task: RankingTask, methods: Mapping[str, Encoder | Scorer], baselines: Sequence[str]) -> None:
    unknown = sorted(set(baselines) - set(BASELINES))
    if unknown:
        raise EvaluationError(f"Baseline {unknown[0]!r} is unknown: choose among {', '.join(BASELINES)}.")
    twice = sorted(set(baselines) & set(methods))
    if twice:
        raise EvaluationError(f"A method is called {twice[0]!r}, as a baseline is: give it another name.")
    if not len(task.targets.rows):
        raise EvaluationError("The task has no target, so no method can be told from another: split at another time.")
    if not methods and not baselines:
        raise EvaluationError("There is no method to evaluate: name an encoder, a scorer or a baseline.")


def _grouped(task: RankingTask, ranks: Float64s, ks: Sequence[int]) -> dict[str, dict[str, Float64s]]:
    seen = task.known[task.targets.rows]
    groups = {"all": np.ones(len(seen), np.bool_), "seen": seen, "unseen": ~seen}
    return {name: measures(ranks[mask], task.targets.where(mask), ks) for name, mask in groups.items()}


def _estimates(
    columns: Mapping[str, Mapping[str, Float64s]], task: RankingTask, resampling: Mapping[str, Any]
) -> dict[str, dict[str, Estimate]]:
    """One bootstrap for all groups and measures."""
    names = [(group, measure) for group, values in columns.items() for measure in values]
    stacked = np.stack([columns[group][measure] for group, measure in names], axis=1)
    estimates = bootstrap(stacked, task.users, **resampling)
    found: dict[str, dict[str, Estimate]] = {group: {} for group in columns}
    for (group, measure), estimate in zip(names, estimates, strict=True):
        found[group][measure] = estimate
    return found

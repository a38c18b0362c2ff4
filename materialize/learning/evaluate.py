"""Evaluates what a feature repo declares, on its own behavior log: the encoder, and policies that could serve it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from feast import FeatureStore

from feast_embeddings.materialize.clock import iso, now_us
from feast_embeddings.materialize.declare import EmbeddingSpec, Full, Hybrid, Incremental, Policy
from feast_embeddings.materialize.files import Workspace
from feast_embeddings.materialize.learning.backtest import Backtest
from feast_embeddings.materialize.learning.candidates import Candidate, Questions, scheduled
from feast_embeddings.materialize.learning.frontier import Frontier
from feast_embeddings.materialize.learning.train import spec_of_encoder, split_us
from feast_embeddings.models import (
    Encoder,
    HistoryBatch,
    ItemIndex,
    Learned,
    RankingTask,
    SequenceEncoder,
    load_encoder,
    read_manifest,
)
from feast_embeddings.models.errors import EvaluationError
from feast_embeddings.models.evaluation import BASELINES, Evaluation, evaluate, inner_products, time_split
from feast_embeddings.transformations import Histories

ALPHAS = (0.1, 0.2, 0.3, 0.5, 0.7, 0.9)
HELD_AGAINST = ("popularity", "repeat purchase", "Markov table")
"""The baselines that a training ends with: those that cost next to nothing."""


@dataclass(frozen=True)
class Question:
    """What a repo is asked: its log split in time.

    Attributes:
        spec: The view whose encoder and policy are evaluated.
        encoder: As the repo declares it.
        histories: Whole histories, one per entity.
        task: One question before each later behavior, or a sample of them.
        at_us: The split.
        until_us: The end of the log that is looked at.
        learned: What the encoder learned from; None where its artifact does not say.
    """

    spec: EmbeddingSpec
    encoder: Encoder
    histories: HistoryBatch
    task: RankingTask
    at_us: int
    until_us: int
    learned: Learned | None


def asked(
    store: FeatureStore,
    *,
    encoder: str | None = None,
    at_us: int | None = None,
    until_us: int | None = None,
    sample: int | None = 2000,
    filter_seen: bool = False,
) -> Question:
    """The declared encoder, and questions from the repo's behavior log. Nothing is trained, and nothing written.

    The split is the time until when the encoder learned, as its artifact says: it never saw what is to be found.

    Args:
        store: The feature store.
        encoder: Its name, where several are declared.
        at_us: A later split, microseconds; any, where the artifact does not say until when its encoder learned.
        until_us: Behaviors from then on are left out. Default: now.
        sample: At most so many questions.
        filter_seen: Whether a user's earlier items are taken out of the ranking: right where nobody repeats.

    Raises:
        DeclarationError: The repo declares no such encoder.
        ArtifactError: It is not trained yet.
        EvaluationError: The encoder learned from what is to be found, or nobody knows until when it learned, or
            nothing happened before, or after, the split.
    """
    workspace = Workspace.of(store.config)
    spec = spec_of_encoder(store, encoder)
    log = workspace.behavior_log(store.registry, store.project, spec)
    now = now_us()
    behaviors = log.until(now if until_us is None else until_us, now)
    if not len(behaviors):
        raise EvaluationError(f"The behavior log of view {spec.behaviors!r} is empty before {iso(until_us or now)}.")
    end = int(behaviors.times_us.max()) + 1
    found = load_encoder(workspace.root / spec.artifact)
    learned = read_manifest(workspace.root / spec.artifact).learned
    at = _split(spec.encoder, learned, at_us)
    if at >= end:
        raise EvaluationError(
            f"Encoder {spec.encoder!r} is asked about what happened from {iso(at)} on, and the log ends before: train "
            f"it on less, as by `feast-embeddings train --until {_typed(split_us(behaviors))}`, or wait for behaviors."
        )
    whole = Histories(behaviors).as_of(behaviors.entities, end, int(np.diff(behaviors.offsets).max()))
    later = behaviors.items[behaviors.times_us >= at]
    catalogue = ItemIndex.of(np.concatenate([found.item_ids(), later]))
    task = time_split(whole, at, catalogue=catalogue, follow=True, sample=sample, filter_seen=filter_seen)
    _, known = found.encode_items(catalogue.ids)
    return Question(spec, found, whole, replace(task, known=known), at, end, learned)


def _typed(us: int) -> str:
    """A time as the command line reads it, to the second."""
    return iso(us).removesuffix(" UTC").replace(" ", "T")


def _split(encoder: str, learned: Learned | None, at_us: int | None) -> int:
    if learned is None:
        if at_us is None:
            raise EvaluationError(
                f"The artifact of encoder {encoder!r} does not say until when it learned: train it again, or split "
                "with --at where you know that it learned nothing later."
            )
        return at_us
    if at_us is not None and at_us < learned.until_us:
        raise EvaluationError(
            f"Encoder {encoder!r} learned until {iso(learned.until_us)}, so it knows what followed {iso(at_us)}: leave "
            f"--at out, or train again with --until {_typed(at_us)}."
        )
    return learned.until_us if at_us is None else at_us


def evaluate_encoder(
    question: Question,
    *,
    baselines: Sequence[str] = tuple(BASELINES),
    ks: tuple[int, ...] = (10,),
    resamples: int = 1000,
) -> Evaluation:
    """The declared encoder with fresh histories, beside baselines; unseen items are those it does not know."""
    methods = {question.spec.encoder: question.encoder}
    return evaluate(question.task, methods, baselines=baselines, ks=ks, resamples=resamples)


def verdict(question: Question, found: Evaluation, measure: str = "ndcg@10") -> str:
    """One sentence: is the encoder better than the best baseline?"""
    name = question.spec.encoder
    value = {each: scores.estimates["all"][measure].value for each, scores in found.methods.items()}
    best = max((each for each in value if each != name), key=lambda each: value[each])
    apart = found.difference(name, best, measure)
    said = "cannot be told from" if apart.low <= 0 <= apart.high else "beats" if apart.low > 0 else "loses to"
    return (
        f"Verdict: encoder {name!r} {said} {best}, the best of {len(value) - 1} baselines: "
        f"{measure} {value[name]:.3f} against {value[best]:.3f}, difference {apart.value:+.3f} "
        f"[{apart.low:+.3f}, {apart.high:+.3f}]."
    )


def evaluate_policies(question: Question, *, measure: str = "ndcg@10", resamples: int = 1000) -> Frontier:
    """Policies around the declared one, replayed from the split on; quality by the trained items.

    Raises:
        EvaluationError: The log after the split is shorter than one tick.
    """
    chosen = around(question.spec.policy, cached=isinstance(question.encoder, SequenceEncoder))
    reference = chosen[0]
    if not list(scheduled(reference.policy, question.at_us, question.until_us)):
        raise EvaluationError(
            f"Between the split at {iso(question.at_us)} and the log's end at {iso(question.until_us)} no tick of "
            f"{reference.policy.every!r} is due: split earlier, with --at."
        )
    questions = Questions(question.task.users, question.task.histories.as_of)
    replay = Backtest(question.histories, question.encoder, questions, question.at_us, question.until_us)
    replayed = replay.run(chosen)
    items, known = question.encoder.encode_items(question.task.catalogue.ids)
    methods = {each.candidate.name: inner_products(each.vectors, items, known) for each in replayed}
    k = int(measure.partition("@")[2] or 10)
    found = evaluate(question.task, methods, baselines=(), ks=(k,), resamples=resamples)
    return Frontier.of(replayed, found, reference.name, measure)


def around(policy: Policy, *, cached: bool) -> list[Candidate]:
    """What is worth a replay beside a declared policy; the first is the reference: every tick, whole windows, α 0."""
    every = policy.every
    slow = _times(every, 4)
    arms: list[Policy] = [
        Incremental(every),
        *(Incremental(every, alpha=alpha) for alpha in (0.3, 0.6, 0.9)),
        *(Incremental(every, alpha=alpha, context="new") for alpha in (0.0, *ALPHAS)),
        *(Incremental(every, half_life=_times(every, count), context="new") for count in (1, 4, 16)),
        Incremental(slow),
        Full(every),
        Full(slow),
        Hybrid(every, alpha=0.3, context="new", full_every=slow),
        policy,
    ]
    candidates = {_named(arm): Candidate(_named(arm), arm) for arm in arms}
    if cached:
        name = f"{_named(arms[0])}, attention cached"
        candidates[name] = Candidate(name, arms[0], cached=True)
    return list(candidates.values())


def _named(policy: Policy) -> str:
    if isinstance(policy, Full):
        return f"Full, {policy.every}"
    blend = f"half-life {policy.half_life}" if policy.half_life else f"α {policy.alpha or 0}"
    full = f", full {policy.full_every}" if isinstance(policy, Hybrid) else ""
    return f"{policy.context}, {policy.every}, {blend}{full}"


def _times(every: str, count: int) -> str:
    number, unit = re.fullmatch(r"([\d.]+)\s*(\w)", every).groups()  # type: ignore[union-attr]
    return f"{float(number) * count:g}{unit}"

"""`feast-embeddings evaluate` on a small repo: what it measures, recommends and refuses."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from repo_fixture import USERS, MakeRepo, SmallRepo, at, day, shop, tiny_encoder
from typer.testing import CliRunner

from feast_embeddings.materialize import Full, Hybrid, Incremental
from feast_embeddings.materialize.cli import app
from feast_embeddings.materialize.learning.candidates import Candidate, Replayed, Spent
from feast_embeddings.materialize.learning.evaluate import around, asked, evaluate_policies
from feast_embeddings.materialize.learning.frontier import Frontier, draw
from feast_embeddings.models import HistoryBatch
from feast_embeddings.models.errors import EvaluationError
from feast_embeddings.models.evaluation import BASELINES, Evaluation, Ragged, Scorer, evaluate, leave_one_out

RUN = CliRunner()
SPLIT = datetime.fromtimestamp(day(5) / 1e6, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def repo_with_log(make_repo: MakeRepo, policy: str = "Incremental()") -> SmallRepo:
    repo = make_repo(policy=policy)
    repo.deliver(shop(8), "shop")
    repo.encode_with(tiny_encoder(1))
    return repo


def test_the_encoder_stands_beside_every_baseline(make_repo: MakeRepo, monkeypatch: pytest.MonkeyPatch) -> None:
    repo_with_log(make_repo)
    monkeypatch.setenv("COLUMNS", "200")
    with at(day(9)):
        done = RUN.invoke(app, ["evaluate", "--at", SPLIT, "--json", "found.json", "--resamples", "20"])
    assert done.exit_code == 0, done.output
    found = json.loads(Path("found.json").read_text())
    assert set(found["methods"]) == {"main", *BASELINES}
    assert found["questions"]["all"] > 10
    assert all(name in done.output for name in BASELINES)


def test_policies_are_weighed_and_one_is_recommended(make_repo: MakeRepo) -> None:
    repo_with_log(make_repo, "Hybrid(alpha=0.4, full_every='2d')")
    with at(day(9)):
        arguments = ["--at", SPLIT, "--resamples", "20", "--max-cost", "0.9", "--plot", "frontier.png"]
        done = RUN.invoke(app, ["evaluate", "--policies", *arguments, "--json", "found.json"])
    assert done.exit_code == 0, done.output
    found = json.loads(Path("found.json").read_text())
    assert f"policy={found['recommended']}," in done.output
    assert Path("frontier.png").read_bytes().startswith(b"\x89PNG")
    costs = {point["declaration"]: point["cost"] for point in found["points"]}
    assert costs['Incremental(every="1d")'] == 1
    assert costs[found["recommended"]] <= 0.9
    assert 'Hybrid(every="1d", alpha=0.4, full_every="2d")' in costs


def test_the_reference_is_what_the_engine_would_have_served(make_repo: MakeRepo) -> None:
    """Given a job a day, then the replay's reference ranks as the vectors that reads return."""
    repo = repo_with_log(make_repo)
    with at(day(9)):
        question = asked(repo.store, at_us=day(5), sample=None)
        found = evaluate_policies(question, resamples=0)
    reference = next(point for point in found.points if point.name == found.reference)
    served = []
    with at(day(5)):
        repo.run(day(5))
        repo.run(day(5), "item_embedding")
    for end in range(5, 8):
        with at(day(end)):
            repo.run(day(end))
        served.append(repo.vectors())
    days = ((question.task.histories.as_of - day(5)) // (day(1) - day(0))).astype(int)
    rows = np.searchsorted(USERS, repo.behaviors(day(9)).entities[question.task.users])
    vectors = np.stack([served[number].values[row] for number, row in zip(days, rows, strict=True)])
    items, _ = question.encoder.encode_items(question.task.catalogue.ids)
    scores = {"served": lambda part: vectors[part] @ items.T}
    again = evaluate(question.task, scores, baselines=(), resamples=0)
    assert reference.quality.value == again.methods["served"].estimates["all"]["ndcg@10"].value


def frontier_of(rows: list[tuple[str, float, int, bool]]) -> Frontier:
    """Points of (name, quality, behaviors, declarable); the first one is the reference."""
    replayed = [
        Replayed(
            Candidate(name, Incremental(every=f"{place + 1}d"), min_new=1 if declarable else 2),
            np.zeros((1, 1), np.float32),
            np.ones(1, np.bool_),
            np.zeros(1, np.int64),
            Spent(behaviors=behaviors),
            256.0,
        )
        for place, (name, _, behaviors, declarable) in enumerate(rows)
    ]
    quality = {name: value for name, value, _, _ in rows}
    return Frontier.of(replayed, evaluation_with(quality), rows[0][0], "hr@1")


def evaluation_with(quality: dict[str, float]) -> Evaluation:
    """An evaluation in which each method hits so large a share of 100 questions."""
    pairs = HistoryBatch(
        offsets=np.arange(0, 201, 2),
        items=np.arange(200) % 50,
        behavior_types=np.zeros(200, np.int32),
        times=np.tile(np.arange(2), 100),
        values=np.full(200, np.nan, np.float32),
        as_of=np.full(100, 2),
    )
    task = leave_one_out(pairs, filter_seen=False)
    hits = {name: np.arange(100) < value * 100 for name, value in quality.items()}

    def scorer(name: str) -> Scorer:
        def score(part: slice) -> np.ndarray:
            scores = np.zeros((part.stop - part.start, len(task.catalogue)), np.float32)
            targets = Ragged.single(task.targets.rows).within(part)
            scores[targets] = np.where(hits[name][part], 1.0, -1.0)
            return scores

        return score

    return evaluate(task, {name: scorer(name) for name in quality}, baselines=(), ks=(1,), resamples=0)


POINTS = [("exact", 0.5, 1000, True), ("near", 0.49, 200, True), ("far", 0.3, 50, True), ("cached", 0.5, 150, False)]


@pytest.mark.parametrize(
    ("bounds", "name"),
    [
        ({"min_quality": 0.97}, "near"),
        ({"min_quality": 1.0}, "exact"),
        ({"max_cost": 0.1}, "far"),
        ({"max_cost": 0.5}, "near"),
        ({"max_cost": 0.5, "min_quality": 0.5}, "far"),
    ],
)
def test_the_cheapest_good_or_the_best_cheap_policy_is_recommended(bounds: dict[str, float], name: str) -> None:
    assert frontier_of(POINTS).recommended(**bounds).name == name


def test_what_no_policy_meets_is_refused_with_the_nearest() -> None:
    with pytest.raises(EvaluationError, match=r'nearest is Incremental\(every="2d"\) at cost 0.200'):
        frontier_of(POINTS).recommended(max_cost=0.3, min_quality=0.99)


def test_the_frontier_holds_what_nothing_cheaper_beats(tmp_path: Path) -> None:
    frontier = frontier_of(POINTS)
    assert [point.name for point in frontier.best()] == ["far", "cached"]
    draw(tmp_path / "it.png", frontier, "it")
    assert (tmp_path / "it.png").read_bytes().startswith(b"\x89PNG")


def test_a_log_without_a_whole_tick_is_refused(make_repo: MakeRepo) -> None:
    repo = repo_with_log(make_repo, "Incremental(every='7d')")
    with at(day(9)), pytest.raises(EvaluationError, match="no tick of '7d' is due"):
        evaluate_policies(asked(repo.store, at_us=day(5)))
    with at(day(9)), pytest.raises(EvaluationError, match="behaviors to learn from"):
        asked(repo.store, at_us=day(0))


def test_policies_around_a_declared_one_hold_it_and_the_reference() -> None:
    for policy in (Full("12h"), Hybrid("1h", half_life="3d", full_every="1d"), Incremental("15m", alpha=0.4)):
        chosen = around(policy, cached=True)
        assert chosen[0].policy == Incremental(policy.every)
        assert policy in [candidate.policy for candidate in chosen]
        assert len({candidate.name for candidate in chosen}) == len(chosen)

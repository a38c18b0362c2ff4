"""`evaluate` against plain readings: closed forms, groups, coverage, and what it refuses."""

from importlib import import_module

import numpy as np
import pytest

from feast_embeddings.models import HistoryBatch, ItemIndex
from feast_embeddings.models.errors import EvaluationError
from feast_embeddings.models.evaluation.ease import ease
from feast_embeddings.models.evaluation.evaluate import BASELINES, GROUPS, evaluate
from feast_embeddings.models.evaluation.matrix_factorization import matrix_factorization
from feast_embeddings.models.evaluation.ranking import Ragged, rank
from feast_embeddings.models.evaluation.splits import leave_one_out, time_split


def taste(seed: int = 0, users: int = 80) -> HistoryBatch:
    """Users of two kinds, each of which keeps to its own half of 20 items."""
    rng = np.random.default_rng(seed)
    histories = [rng.choice(10, 6, replace=False) + 10 * (user % 2) for user in range(users)]
    return HistoryBatch(
        offsets=np.arange(0, 6 * users + 1, 6),
        items=np.concatenate(histories).astype(np.int64),
        behavior_types=np.zeros(6 * users, np.int32),
        times=np.tile(np.arange(6), users) * 1_000_000,
        values=np.full(6 * users, np.nan, np.float32),
        as_of=np.full(users, 6_000_000),
    )


def test_every_baseline_is_beside_the_encoder(trained, make_markov):
    task = leave_one_out(make_markov(users=200, seed=5), filter_seen=False)
    found = evaluate(task, {"encoder": trained.encoder}, ks=(1, 10), resamples=100)
    assert set(found.methods) == {"encoder", *BASELINES}
    assert found.questions == {"all": 200, "seen": 200, "unseen": 0}
    score = {name: scores.estimates["all"]["hr@1"] for name, scores in found.methods.items()}
    assert score["encoder"].value > 0.6 > 0.2 > score["popularity"].value
    assert score["Markov table"].value > 0.6
    gain = found.difference("encoder", "popularity", "hr@1")
    assert 0 < gain.low <= gain.value <= gain.high
    assert np.isclose(gain.value, score["encoder"].value - score["popularity"].value)
    assert np.isnan(found.methods["encoder"].estimates["unseen"]["mrr"].value)


def test_linear_and_factor_models_know_a_users_kind():
    task = leave_one_out(taste(), filter_seen=True)
    found = evaluate(task, {}, baselines=["popularity", "EASE", "matrix factorization"], ks=(5,), resamples=0)
    hits = {name: scores.estimates["all"]["hr@5"].value for name, scores in found.methods.items()}
    assert hits["EASE"] == 1.0  # five items of a kind are left
    assert hits["matrix factorization"] >= 0.9
    assert hits["popularity"] < 0.8


@pytest.mark.parametrize("pairs", [0.01, 1000.0])
def test_ease_is_the_closed_form_of_its_paper(pairs, monkeypatch):
    """Whether histories are counted pair by pair or as dense rows."""
    module = import_module("feast_embeddings.models.evaluation.ease")  # on the face the name is the function's
    monkeypatch.setattr(module, "_PAIRS_PER_PRODUCT", pairs)
    monkeypatch.setattr(module, "_CHUNK", 100)
    histories, index = taste(), ItemIndex(np.arange(20))
    held = np.zeros((80, 20))
    held[np.repeat(np.arange(80), 6), histories.items] = 1
    inverse = np.linalg.inv(held.T @ held + 10 * np.eye(20))
    weights = inverse / -np.diag(inverse)
    np.fill_diagonal(weights, 0)
    assert np.allclose(ease(histories, index, 10.0)(slice(3, 9)), held[3:9] @ weights, atol=1e-5)


def test_ease_above_its_size_keeps_the_most_frequent_items():
    histories, index = taste(), ItemIndex(np.arange(25))
    scores = ease(histories, index, max_items=7)(slice(0, 80))
    counts = np.bincount(histories.items, minlength=25)
    kept = np.sort(np.argsort(-counts, kind="stable")[:7])
    assert np.flatnonzero(scores.any(axis=0)).tolist() == kept.tolist()


def test_factors_of_who_is_asked_are_those_of_who_was_learned_from():
    """Folding a user in equals having learned from the same history; who did nothing known scores nothing."""
    histories, index = taste(), ItemIndex(np.arange(20))
    whole = matrix_factorization(histories, index, dim=4, sweeps=3)(slice(0, 80))
    asked = matrix_factorization(histories, index, dim=4, sweeps=3, asked=histories.take(np.array([7, 3])))(slice(0, 2))
    assert np.allclose(asked, whole[[7, 3]], atol=1e-5)
    unknown = histories.take(np.array([0]))
    unknown.items[:] = 99
    assert not matrix_factorization(histories, index, dim=4, sweeps=1, asked=unknown)(slice(0, 1)).any()


def test_seen_and_unseen_targets_are_told_apart():
    """Given a scorer that names every unseen item and no seen one, then the groups show it."""
    histories = taste()
    histories.items[5::6] = np.where(np.arange(80) < 20, 77, histories.items[5::6])
    task = time_split(histories, 5_000_000, filter_seen=False)
    scores = np.where(task.known, 0.0, 1.0).astype(np.float32)
    found = evaluate(task, {"new": lambda part: np.tile(scores, (part.stop - part.start, 1))}, ks=(1,), resamples=0)
    assert found.questions == {"all": 80, "seen": 60, "unseen": 20}
    hits = {group: found.methods["new"].estimates[group]["hr@1"].value for group in GROUPS}
    assert hits == {"all": 0.25, "seen": 0.0, "unseen": 1.0}


def test_an_encoder_does_not_name_what_it_never_saw(trained, make_markov):
    histories = make_markov(users=50, seed=6)
    histories.items[11::12] = 9999
    task = leave_one_out(histories, filter_seen=False)
    found = evaluate(task, {"encoder": trained.encoder}, baselines=["popularity"], resamples=0)
    assert found.methods["encoder"].estimates["all"]["hr@10"].value == 0


def test_coverage_counts_items_by_the_rank_that_hits_count():
    scores = np.array([[3, 2, 1, 0], [3, 1, 1, 0]], np.float32)
    targets = Ragged.single(np.array([0, 0]))
    covered = rank(lambda part: scores[part], 4, targets, ks=(1, 2, 3)).coverage
    assert covered == {1: 0.25, 2: 0.5, 3: 0.75}  # the tie across place 2 is all out: its mean rank is 2.5
    filtered = Ragged(np.array([0, 1, 2]), np.array([1, 0]))
    assert rank(lambda part: scores[part], 4, Ragged.single(np.array([3, 3])), filtered, ks=(4,)).coverage == {4: 1.0}


def test_what_cannot_be_judged_is_refused(trained, make_markov):
    task = leave_one_out(make_markov(users=20), filter_seen=False)
    nan = {"nan": lambda part: np.full((part.stop - part.start, len(task.catalogue)), np.nan, np.float32)}
    with pytest.raises(EvaluationError, match="hold NaN"):
        evaluate(task, nan)
    with pytest.raises(EvaluationError, match="'magic' is unknown"):
        evaluate(task, {}, baselines=["magic"])
    with pytest.raises(EvaluationError, match="called 'EASE'"):
        evaluate(task, {"EASE": trained.encoder})
    with pytest.raises(EvaluationError, match="no method"):
        evaluate(task, {}, baselines=[])

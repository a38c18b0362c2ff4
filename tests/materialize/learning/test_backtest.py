"""Replayed policies against the real engine, bit for bit, and against what each policy is by definition."""

from __future__ import annotations

import numpy as np
import pytest
from repo_fixture import USERS, MakeRepo, day, tiny_encoder
from ticks_fixture import started, tick_at

from feast_embeddings.materialize import Full, Hybrid, Incremental
from feast_embeddings.materialize.declare import Policy
from feast_embeddings.materialize.learning.backtest import Backtest
from feast_embeddings.materialize.learning.candidates import Candidate, Questions, scheduled
from feast_embeddings.models import HistoryBatch
from feast_embeddings.models.errors import DeclarationError
from feast_embeddings.models.evaluation import cut
from feast_embeddings.transformations import Histories

POLICIES = [
    "Incremental()",
    "Incremental(alpha=0.3)",
    "Incremental(half_life='2d')",
    "Incremental(alpha=0.6, context='new')",
    "Incremental(half_life='12h', context='new')",
    "Full(every='2d')",
    "Hybrid(alpha=0.5, full_every='3d')",
    "Hybrid(alpha=0.5, context='new', full_every='2d')",
]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_replay_has_the_bits_of_the_engine(make_repo: MakeRepo, policy: str) -> None:
    repo = started(make_repo, policy)
    declared, served = repo.spec().policy, {}
    for end in range(5, 11):
        tick_at(repo, end)
        served[end] = repo.vectors()
    behaviors = repo.behaviors(day(10))
    known = np.flatnonzero(np.isin(USERS, behaviors.entities))
    whole = Histories(behaviors).as_of(behaviors.entities, day(10), 1000)
    questions = Questions(
        np.tile(np.arange(len(known)), len(served)),
        np.repeat([day(end) for end in served], len(known)).astype(np.int64),
    )
    replay = Backtest(whole, tiny_encoder(1), questions, day(4), day(10))
    (found,) = replay.run([Candidate("it", declared)])
    for number, vectors in enumerate(served.values()):
        part = slice(number * len(known), (number + 1) * len(known))
        assert found.found[part].tolist() == vectors.found[known].tolist()
        assert found.vectors[part].tobytes() == vectors.values[known].tobytes()
    ticks = list(repo.workspace.ledger.published_ticks("user_embedding", end_after_us=day(4)))
    assert (found.spent.units, found.spent.histories) == (len(ticks), sum(tick.encoded for tick in ticks))


def random_world(seed: int = 0, entities: int = 30) -> HistoryBatch:
    """Ten days of behaviors of many entities, some of them with more than the encoder looks at."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 40, entities)
    total = int(lengths.sum())
    owner = np.repeat(np.arange(entities), lengths)
    times = rng.integers(day(0), day(10), total)
    return HistoryBatch(
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        items=rng.integers(101, 131, total),
        behavior_types=np.zeros(total, np.int32),
        times=times[np.lexsort([times, owner])],
        values=np.full(total, np.nan, np.float32),
        as_of=np.full(entities, day(10)),
    )


def asked_at(world: HistoryBatch, count: int = 200, seed: int = 1) -> Questions:
    rng = np.random.default_rng(seed)
    return Questions(rng.integers(0, len(world), count), rng.integers(day(5), day(10), count))


def by_hand(world: HistoryBatch, questions: Questions, step_us: int) -> np.ndarray:
    """The exact vector at the last tick in which the entity behaved, each encoded by itself."""
    vectors = np.zeros((len(questions.entities), 8), np.float32)
    encoder = tiny_encoder(1)
    for row, (entity, asked) in enumerate(zip(questions.entities, questions.asked_us, strict=True)):
        start, stop = world.offsets[entity : entity + 2]
        end = day(5) + (asked - day(5)) // step_us * step_us
        times = world.times[start:stop]
        if not (times < end).any():
            continue
        last = times[times < end][-1]
        tick = max(day(5), day(5) + ((last - day(5)) // step_us + 1) * step_us)
        known = np.array([start + (times < tick).sum()])
        vectors[row] = encoder.encode(cut(world, np.array([start]), known, np.array([tick])))[0]
    return vectors


def test_the_reference_is_the_encode_of_the_whole_window_at_every_tick() -> None:
    world, every = random_world(), Incremental(every="6h")
    questions = asked_at(world)
    (found,) = Backtest(world, tiny_encoder(1), questions, day(5), day(10)).run([Candidate("exact", every)])
    assert found.vectors.tobytes() == by_hand(world, questions, day(0.25) - day(0)).tobytes()


def test_cached_attention_serves_the_same_for_less() -> None:
    world = random_world(3)
    questions = asked_at(world)
    exact, cached = Backtest(world, tiny_encoder(1), questions, day(5), day(10)).run(
        [Candidate("exact", Incremental(every="6h")), Candidate("cached", Incremental(every="6h"), cached=True)]
    )
    assert np.abs(exact.vectors - cached.vectors).max() < 1e-5
    assert cached.spent.histories == exact.spent.histories
    assert cached.spent.behaviors < exact.spent.behaviors / 2
    assert cached.state_bytes > exact.state_bytes


def test_costs_do_not_depend_on_who_is_asked_about() -> None:
    world = random_world(4)
    candidates = [Candidate("new", Incremental(every="1d", alpha=0.5, context="new")), Candidate("full", Full("1d"))]
    all_asked = Backtest(world, tiny_encoder(1), asked_at(world), day(5), day(10)).run(candidates)
    one = Questions(np.array([7]), np.array([day(9)]))
    one_asked = Backtest(world, tiny_encoder(1), one, day(5), day(10)).run(candidates)
    for every, single in zip(all_asked, one_asked, strict=True):
        assert (every.spent.histories, every.spent.behaviors) == (single.spent.histories, single.spent.behaviors)
        assert every.state_bytes == single.state_bytes
    behaviors = int(((world.times >= day(5)) & (world.times < day(10))).sum())
    assert all_asked[0].spent.behaviors == behaviors  # none of them did more than ten things on a day
    assert all_asked[1].spent.units == 5


def test_waiting_for_more_behaviors_leaves_vectors_behind() -> None:
    world = random_world(5)
    questions = asked_at(world)
    at_once, waiting = Backtest(world, tiny_encoder(1), questions, day(5), day(10)).run(
        [Candidate("1", Incremental(every="6h")), Candidate("3", Incremental(every="6h"), min_new=3)]
    )
    assert waiting.spent.histories < at_once.spent.histories
    assert waiting.behind.mean() > at_once.behind.mean()
    assert (at_once.behind >= 0).all()


@pytest.mark.parametrize(
    ("policy", "ends"),
    [
        (Incremental(every="1d"), [5, 6, 7, 8]),
        (Full(every="2d"), [6, 8]),
        (Hybrid(every="1d", full_every="2d"), [5, 6, 7, 8]),
    ],
)
def test_jobs_run_when_they_are_due(policy: Policy, ends: list[int]) -> None:
    runs = list(scheduled(policy, day(4), day(8.5)))
    assert [at for at, _ in runs] == [day(end) for end in ends]
    assert [unit.end_us for _, unit in runs] == [day(end) for end in ends]


def test_a_cache_that_does_not_fit_is_refused() -> None:
    with pytest.raises(DeclarationError, match="α 0"):
        Candidate("x", Incremental(alpha=0.5), cached=True)

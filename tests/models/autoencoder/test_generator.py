"""Generated histories: drawn from a prior, like real ones without being them, and never NaN."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feast_embeddings.models import (
    BehaviorGenerator,
    GeneratorConfig,
    GeneratorTraining,
    HistoryBatch,
    ItemIndex,
    likeness,
    train_generator,
)
from feast_embeddings.models.autoencoder.bags import Bags
from feast_embeddings.models.errors import BehaviorSourceError, DeclarationError, EvaluationError

TYPES = ("view", "cart", "buy")
CONFIG = GeneratorTraining(
    generator=GeneratorConfig(latent=8, condition=16, hidden=32),
    batch_entities=64,
    steps=250,
    critic_steps=2,
    critic_hidden=32,
    learning_rate=1e-2,
    report_every=50,
)


def tastes(users: int = 400, seed: int = 0) -> HistoryBatch:
    """Three tastes of ten items, six of which each user bought."""
    rng = np.random.default_rng(seed)
    items = rng.integers(0, 3, users)[:, None] * 10 + np.argsort(rng.random((users, 10)), axis=1)[:, :6]
    return HistoryBatch(
        offsets=np.arange(0, users * 6 + 1, 6),
        items=items.reshape(-1).astype(np.int64),
        behavior_types=np.zeros(users * 6, np.int32),
        times=np.tile(np.arange(6) * 1_000_000, users),
        values=np.full(users * 6, np.nan, np.float32),
        as_of=np.full(users, 10_000_000),
    )


@pytest.fixture(scope="module")
def result():
    return train_generator(CONFIG, tastes(), behavior_types=["buy"])


def purity(histories: HistoryBatch) -> float:
    """Mean share of a history's behaviors that are of its commonest taste; a third to a half by chance."""
    counts = np.zeros((len(histories), 3))
    np.add.at(counts, (np.repeat(np.arange(len(histories)), histories.lengths), histories.items // 10), 1)
    return float((counts.max(axis=1) / counts.sum(axis=1)).mean())


def test_it_learns_that_tastes_do_not_mix(result):
    """Given users of one taste each, when histories are drawn from the prior, then they hardly mix tastes either."""
    untrained = BehaviorGenerator(CONFIG.generator, ("buy",), ItemIndex(np.arange(30))).eval()
    lengths = np.full(300, 6)
    assert purity(untrained.generate(lengths)) < 0.6
    assert purity(result.generator.generate(lengths)) > 0.7
    assert all(np.isfinite([report.critic, report.generator, report.size]).all() for report in result.reports)
    assert [report.step for report in result.reports] == [50, 100, 150, 200, 250]


def test_what_it_completes_follows_what_is_known(result):
    """Given users with two behaviors, when filled up to five, then most synthetic ones are of their taste."""
    whole = tastes(200, seed=3)
    known = whole.take(np.arange(200))
    first = np.arange(len(known.items)) % 6 < 2
    sparse = HistoryBatch(
        offsets=np.arange(0, 401, 2),
        items=known.items[first],
        behavior_types=known.behavior_types[first],
        times=known.times[first],
        values=known.values[first],
        as_of=known.as_of,
    )
    completed = result.generator.complete(sparse, np.full(200, 5))
    assert (completed.lengths == 5).all()
    grouped = completed.items.reshape(200, 5)
    of_own_taste = grouped[:, :3] // 10 == grouped[:, 3:4] // 10
    assert of_own_taste.mean() > 0.55  # a third by chance
    assert np.array_equal(grouped[:, 3:].reshape(-1), sparse.items)  # the real ones come last, as they were
    assert all(len(set(row)) == 5 for row in grouped.tolist())
    assert (np.diff(completed.times.reshape(200, 5), axis=1) > 0).all()
    assert (completed.times < np.repeat(completed.as_of, 5)).all()
    untouched = result.generator.complete(sparse, np.ones(200))
    assert np.array_equal(untouched.items, sparse.items)


def test_the_seed_decides(result):
    again = train_generator(replace(CONFIG, steps=3), tastes(80), behavior_types=["buy"]).generator
    same = train_generator(replace(CONFIG, steps=3), tastes(80), behavior_types=["buy"]).generator
    lengths = np.arange(1, 20)
    assert np.array_equal(again.generate(lengths, seed=4).items, same.generate(lengths, seed=4).items)
    assert not np.array_equal(again.generate(lengths, seed=4).items, again.generate(lengths, seed=5).items)
    assert again.generate(lengths).lengths.tolist() == lengths.tolist()


@given(lengths=st.lists(st.integers(0, 12), min_size=1, max_size=6), seed=st.integers(0, 50))
@settings(max_examples=6, deadline=None)
def test_training_on_any_histories_stays_finite(make_histories, lengths, seed):
    """Given histories with empty ones, unknown types and repeats among them, when trained, then no loss is NaN."""
    histories = make_histories([*lengths, 1], seed=seed)
    config = replace(CONFIG, steps=3, batch_entities=4, empty_share=1.0 if seed % 2 else 0.0)
    result = train_generator(config, histories, behavior_types=TYPES)
    assert all(np.isfinite([report.critic, report.generator, report.size]).all() for report in result.reports)
    drawn = result.generator.complete(histories, histories.lengths + 3, seed)
    assert np.isin(drawn.items, histories.items).all()
    assert (drawn.behavior_types < len(TYPES)).all()


def test_string_items_are_generated_too(make_histories):
    histories = make_histories([5, 8], strings=True)
    made = train_generator(replace(CONFIG, steps=1), histories, behavior_types=TYPES).generator.generate(np.array([4]))
    assert made.items.dtype == object
    assert set(made.items) <= set(histories.items)


def bags(rows: list[list[int]], size: int = 20) -> Bags:
    lengths = [len(row) for row in rows]
    columns = np.array([column for row in rows for column in sorted(row)], np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Bags(offsets, columns, np.ones(len(columns), np.float32), size)


def test_copies_are_told_from_learning():
    """Given training rows themselves, fresh draws and noise, when held against the real, then each is told apart."""
    rng = np.random.default_rng(0)

    def draws(count: int) -> list[list[int]]:
        return [rng.choice(10, 4, replace=False).tolist() for _ in range(count)]

    train, real = draws(60), draws(60)
    copied = likeness(bags(train), bags(real), bags(train))
    fresh = likeness(bags(draws(60)), bags(real), bags(train))
    noise = likeness(
        bags([rng.choice(np.arange(10, 20), 4, replace=False).tolist() for _ in range(60)]), bags(real), bags(train)
    )
    assert copied.synthetic_to_train == 0.0 <= fresh.synthetic_to_train <= fresh.real_to_train < 1.0
    assert fresh.precision > 0.9
    assert fresh.coverage > 0.9
    assert fresh.item_coverage == fresh.item_precision == 1.0
    assert (noise.precision, noise.coverage, noise.item_coverage, noise.item_precision) == (0.0, 0.0, 0.0, 0.0)
    assert noise.synthetic_to_train == 1.0


def test_a_generator_that_copies_is_seen():
    """Given long histories, of which none is like another, when training rows come back, then all are copies."""
    rng = np.random.default_rng(1)
    rows = [rng.choice(20, 10, replace=False).tolist() for _ in range(80)]
    assert likeness(bags(rows[:40]), bags(rows[40:]), bags(rows[:40])).copies == 1.0


def test_what_cannot_be_done_is_refused(make_histories):
    with pytest.raises(DeclarationError, match="sizes must be positive"):
        GeneratorConfig(latent=0)
    with pytest.raises(DeclarationError, match="1 or more: raise them"):
        GeneratorTraining(steps=0)
    with pytest.raises(BehaviorSourceError, match="No history holds a known item to learn from"):
        train_generator(CONFIG, make_histories([0, 0]), behavior_types=TYPES)
    with pytest.raises(EvaluationError, match="more than 5 real ones; there are 1, 2 and 1: give more"):
        likeness(bags([[1]]), bags([[1], [2]]), bags([[1]]))

"""Histories and encoders that the tests of models/ share."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from feast_embeddings.models import HistoryBatch, TrainingConfig, TrainResult, train
from feast_embeddings.models.sequence import SequenceConfig

HOUR_US = 3_600_000_000
TYPES = ("view", "cart", "buy")
ITEMS = 60

MakeHistories = Callable[..., HistoryBatch]


def random_histories(lengths: Sequence[int], seed: int = 0, strings: bool = False) -> HistoryBatch:
    """Histories of the given lengths: uniform items, types, times and values, a fifth of the values missing."""
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    total = int(offsets[-1])
    items = rng.integers(0, ITEMS + 10, total)  # the last ten are in no encoder's index
    owner = np.repeat(np.arange(len(lengths)), lengths)
    times = rng.integers(0, 1000 * HOUR_US, total)
    values = rng.lognormal(size=total).astype(np.float32)
    values[rng.random(total) < 0.2] = np.nan
    return HistoryBatch(
        offsets=offsets,
        items=np.array([f"item {item}" for item in items], dtype=object) if strings else items,
        behavior_types=rng.integers(0, len(TYPES), total).astype(np.int32),
        times=times[np.lexsort([times, owner])],
        values=values,
        as_of=np.full(len(lengths), 1001 * HOUR_US),
    )


def markov_histories(users: int = 600, length: int = 12, seed: int = 0) -> HistoryBatch:
    """A world in which item i is followed by i + 1 (mod 40) four times in five, and popularity says nothing."""
    rng = np.random.default_rng(seed)
    items = np.empty((users, length), dtype=np.int64)
    items[:, 0] = rng.integers(0, 40, users)
    for step in range(1, length):
        follows = rng.random(users) < 0.8
        items[:, step] = np.where(follows, (items[:, step - 1] + 1) % 40, rng.integers(0, 40, users))
    total = users * length
    return HistoryBatch(
        offsets=np.arange(0, total + 1, length),
        items=items.reshape(-1) + 1000,
        behavior_types=np.zeros(total, np.int32),
        times=np.tile(np.arange(length) * HOUR_US, users),
        values=np.full(total, np.nan, np.float32),
        as_of=np.full(users, length * HOUR_US),
    )


SMALL = TrainingConfig(
    encoder=SequenceConfig(dim=16, context=8, blocks=1, heads=1, hidden=32, dropout=0.0),
    batch_tokens=1024,
    learning_rate=1e-2,
    warmup_steps=10,
    average_decay=0.9,
    max_epochs=6,
    validation_users=100,
)


@pytest.fixture(scope="session")
def make_histories() -> MakeHistories:
    return random_histories


@pytest.fixture(scope="session")
def make_markov() -> MakeHistories:
    return markov_histories


@pytest.fixture(scope="session")
def small_config() -> TrainingConfig:
    return SMALL


@pytest.fixture(scope="session")
def trained() -> TrainResult:
    """A sequence encoder that learned the Markov world."""
    return train(SMALL, markov_histories(), behavior_types=["view"], device="cpu")

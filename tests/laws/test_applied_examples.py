"""The applied examples: rankers learn from historical features and give the same scores to online ones."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
import pytest
import ranking_rows
from matrix_factorization_ranker import MatrixFactorizationRanker
from ranking_rows import fit, score
from repo_fixture import DAY, ITEMS, TYPES, USERS, MakeRepo, SmallRepo, at, day, moment, rows
from two_tower_ranker import TwoTowerRanker

from feast_embeddings.models import AutoEncoderConfig, AutoEncoderTraining, save_encoder, train_autoencoder
from feast_embeddings.transformations import Histories

FEATURES = {"user_features": ("user_embedding:embedding",), "item_features": ("item_embedding:embedding",)}
historical_rows = partial(ranking_rows.historical_rows, **FEATURES)
online_rows = partial(ranking_rows.online_rows, **FEATURES)


@pytest.fixture
def repo(make_repo: MakeRepo) -> SmallRepo:
    """A shop in which odd users like odd items, with an autoencoder that learned it."""
    repo = make_repo(policy='Full(every="1d")')
    rng = np.random.default_rng(0)
    users = np.repeat(USERS, 12)
    items = ITEMS[2 * rng.integers(0, len(ITEMS) // 2, len(users)) + (users + 1) % 2]
    times = day(0) + rng.integers(0, 3 * DAY, len(users))
    repo.deliver(rows(user=users.tolist(), item=items.tolist(), at=times.tolist()), "shop")
    config = AutoEncoderTraining(
        encoder=AutoEncoderConfig(dim=repo.dim), learning_rate=1e-2, max_epochs=60, validation_entities=0
    )
    repo.apply()
    behaviors = repo.behaviors(day(3))
    histories = Histories(behaviors).as_of(behaviors.entities, day(3), 100)
    encoder = train_autoencoder(config, histories, behavior_types=TYPES).encoder
    save_encoder(encoder, repo.folder / "data" / "encoders" / "main")
    repo.apply()
    with at(day(3)):
        repo.materialize(day(3))
    return repo


@pytest.mark.parametrize("ranker", [MatrixFactorizationRanker, TwoTowerRanker])
def test_a_ranker_learns_from_history_and_serves_online(ranker, repo: SmallRepo) -> None:
    """Given pairs whose label is the users' taste, when learned from history, then online rows get the same scores."""
    rng = np.random.default_rng(1)
    users, items = rng.choice(USERS, 1500), rng.choice(ITEMS, 1500)
    labels = users % 2 == items % 2
    pairs = pd.DataFrame({"user_id": users, "item_id": items, "event_timestamp": moment(day(3.5))})
    learned = historical_rows(repo.store, pairs)
    model = fit(ranker(learned), learned, labels, epochs=6)
    with at(day(3.5)):
        served = online_rows(repo.store, users, items, like=learned)
    assert np.array_equal(served.users, learned.users)
    assert np.array_equal(served.items, learned.items)
    scores = score(model, served)
    assert np.array_equal(scores, score(model, learned))
    assert ((scores > 0) == labels).mean() > 0.9
    stranger = online_rows(repo.store, np.array([999]), np.array([999]), like=learned)
    assert np.isfinite(score(model, stranger)).all()


@pytest.mark.parametrize("ranker", [MatrixFactorizationRanker, TwoTowerRanker])
def test_features_tell_of_users_that_a_ranker_never_met(ranker, repo: SmallRepo) -> None:
    """Given half of the users at training, when the others are ranked, then only their features tell their taste."""
    rng = np.random.default_rng(2)
    users, items = rng.choice(USERS, 2000), rng.choice(ITEMS, 2000)
    labels, met = users % 2 == items % 2, users <= 8
    pairs = pd.DataFrame({"user_id": users, "item_id": items, "event_timestamp": moment(day(3.5))})
    whole = historical_rows(repo.store, pairs)
    right = {}
    for name, rows_of in (("features", whole), ("ids alone", whole.without_features())):
        learned = rows_of.take(np.flatnonzero(met))
        model = fit(ranker(learned), learned, labels[met], epochs=6)
        right[name] = ((score(model, rows_of.take(np.flatnonzero(~met))) > 0) == labels[~met]).mean()
    assert right["features"] > 0.9
    assert right["ids alone"] < 0.7

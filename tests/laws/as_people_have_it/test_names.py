"""What people call things: vectors read together, ids beside features, inputs of an on-demand view."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from feast import Entity, FeatureStore, ValueType
from initialized import feast, initialized, standing_in

from feast_embeddings.materialize import EncoderRef, Serving, item_embedding_view, nearest, pinned, read_vectors
from feast_embeddings.models.errors import DeclarationError

NOW = datetime.now(UTC)
USERS, ITEMS = [1, 2, 3], [1001, 1002, 1003]
ROWS = [{"user_id": user, "item_id": item} for user, item in zip(USERS, ITEMS, strict=True)]
TOGETHER = ["user_embedding:user_vector", "item_embedding:item_vector"]

_ON_DEMAND = """

from feast import Field
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64


@on_demand_feature_view(
    sources=[user_embedding, item_embedding], schema=[Field(name="score", dtype=Float64)], mode="python"
)
def affinity(inputs):
    pairs = zip(inputs["USER"], inputs["ITEM"])
    return {"score": [0.0 if u is None or i is None else float(sum(a * b for a, b in zip(u, i))) for u, i in pairs]}
"""


def _declare(repo: Path, user: str, item: str) -> None:
    """The template's declarations, with an on-demand view over both vectors, which have these names."""
    template = (repo / "template.txt").read_text() + _ON_DEMAND.replace("USER", user).replace("ITEM", item)
    named = template.replace('feature="user_vector"', f"feature={user!r}")
    (repo / "definitions.py").write_text(named.replace('feature="item_vector"', f"feature={item!r}"))
    feast("apply")


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with standing_in(initialized(tmp_path_factory.mktemp("names") / "named", round(NOW.timestamp() * 1e6))) as repo:
        (repo / "template.txt").write_text((repo / "definitions.py").read_text())
        _declare(repo, "user_vector", "item_vector")
        end = NOW - timedelta(hours=1)
        FeatureStore(".").materialize(end - timedelta(days=30), end, ["user_embedding", "item_embedding", "behaviors"])
        yield repo


@pytest.fixture
def store(repo: Path) -> FeatureStore:
    _declare(repo, "user_vector", "item_vector")
    return FeatureStore(".")


@pytest.fixture
def clash(repo: Path) -> Iterator[FeatureStore]:
    """Both vectors have one name."""
    _declare(repo, "embedding", "embedding")
    return FeatureStore(".")


def _scores(store: FeatureStore) -> np.ndarray:
    users = read_vectors(store, TOGETHER[0], USERS)
    items = read_vectors(store, TOGETHER[1], ITEMS)
    assert users.found.all()
    assert items.found.all()
    return np.einsum("nd,nd->n", users.values.astype(float), items.values.astype(float))


def test_vectors_of_users_and_items_are_read_together(store: FeatureStore) -> None:
    answer = store.get_online_features(TOGETHER, ROWS).to_dict()
    assert answer["user_id"] == USERS
    assert answer["item_id"] == ITEMS
    np.testing.assert_array_equal(
        np.array(answer["user_vector"], np.float32), read_vectors(store, TOGETHER[0], USERS).values
    )
    np.testing.assert_array_equal(
        np.array(answer["item_vector"], np.float32), read_vectors(store, TOGETHER[1], ITEMS).values
    )


def test_an_on_demand_view_over_both_is_right_online_and_in_the_past(store: FeatureStore) -> None:
    expected = _scores(store)
    online = store.get_online_features(["affinity:score"], ROWS).to_dict()["score"]
    np.testing.assert_allclose(online, expected, rtol=1e-6)
    spine = pd.DataFrame({"user_id": USERS, "item_id": ITEMS, "event_timestamp": datetime.now(UTC)})
    past = store.get_historical_features(spine, ["affinity:score"]).to_df()
    np.testing.assert_allclose(past["score"], expected, rtol=1e-6)
    assert past["item_id"].tolist() == ITEMS


def test_nearest_and_pins_follow_the_name(store: FeatureStore) -> None:
    users = read_vectors(store, TOGETHER[0], USERS)
    found = nearest(store, TOGETHER[1], users, 3)
    assert found.space == users.space
    pin = f"item_embedding@{users.space}:item_vector"
    np.testing.assert_array_equal(nearest(store, pin, users, 3).ids, found.ids)
    view = store.get_stream_feature_view("user_embedding")
    assert pinned(view, users.space).projection.name_to_use() == f"user_embedding@{users.space}"


def test_a_new_name_finds_what_was_stored_under_the_old_one(repo: Path, store: FeatureStore) -> None:
    before = read_vectors(store, TOGETHER[0], USERS)
    _declare(repo, "taste", "item_vector")
    renamed = FeatureStore(".")
    after = read_vectors(renamed, "user_embedding:taste", USERS)
    assert after.values.tobytes() == before.values.tobytes()
    spine = pd.DataFrame({"user_id": USERS, "event_timestamp": datetime.now(UTC)})
    past = renamed.get_historical_features(spine, ["user_embedding:taste"]).to_df()
    np.testing.assert_array_equal(np.stack(past["taste"]), before.values)
    with pytest.raises(DeclarationError, match="view 'user_embedding' has 'user_embedding:taste'"):
        read_vectors(renamed, TOGETHER[0], USERS)


@pytest.mark.parametrize("full_names", [False, True])
def test_two_inputs_of_one_name_are_refused_online_and_in_the_past(clash: FeatureStore, full_names: bool) -> None:
    refused = "'affinity' takes 'embedding' from 'item_embedding' and from 'user_embedding'.*feature='user_vector'"
    asked: dict[str, Any] = {"features": ["affinity:score"], "full_feature_names": full_names}
    spine = pd.DataFrame({"user_id": USERS, "item_id": ITEMS, "event_timestamp": NOW})
    with pytest.raises(DeclarationError, match=refused):
        clash.get_online_features(entity_rows=ROWS, **asked)
    with pytest.raises(DeclarationError, match=refused):
        asyncio.run(clash.get_online_features_async(entity_rows=ROWS, **asked))
    with pytest.raises(DeclarationError, match=refused if full_names else "Column 'embedding' of the result"):
        clash.get_historical_features(spine, **asked)


def test_an_id_that_was_asked_for_is_not_overwritten_by_a_feature(store: FeatureStore) -> None:
    features = ["behaviors:item_id", TOGETHER[1]]
    with pytest.raises(DeclarationError, match=r"'item_id' of the answer .* full_feature_names=True"):
        store.get_online_features(features, ROWS)
    with pytest.raises(DeclarationError, match="'item_id' of the answer"):
        asyncio.run(store.get_online_features_async(features, ROWS))
    answer = store.get_online_features(features, ROWS, full_feature_names=True).to_dict()
    assert answer["item_id"] == ITEMS
    assert len(answer["behaviors__item_id"]) == len(ROWS)
    spine = pd.DataFrame({"user_id": USERS, "item_id": ITEMS, "event_timestamp": NOW})
    with pytest.raises(DeclarationError, match="Column 'item_id' of the result"):
        store.get_historical_features(spine, features)


def test_alone_a_feature_of_that_name_is_no_clash(store: FeatureStore) -> None:
    answer = store.get_online_features(["behaviors:item_id"], [{"user_id": 1}]).to_dict()
    assert answer["item_id"][0] >= 1_001


@pytest.mark.parametrize("feature", ["", "user vector", "user__vector", "1st", "a:b"])
def test_what_is_no_name_is_refused(feature: str) -> None:
    with pytest.raises(DeclarationError, match=r"is no name for a feature: write one like 'user_vector'"):
        Serving(feature=feature)


def test_a_vector_is_not_called_as_its_own_id() -> None:
    item = Entity(name="item", join_keys=["item_id"], value_type=ValueType.INT64)
    with pytest.raises(DeclarationError, match=r"feature='item_id' is the join key of entity 'item'"):
        item_embedding_view("items", entity=item, encoder=EncoderRef("main", dim=8), serve=Serving(feature="item_id"))

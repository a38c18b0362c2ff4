"""Where a repo keeps things, from its configuration alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from feast import RepoConfig
from feast.repo_config import load_repo_config

from feast_embeddings.materialize.paths import RepoPaths
from feast_embeddings.models.errors import DeclarationError

ENGINE = "feast_embeddings.materialize.engine.EmbeddingEngine"


def configured(folder: Path, **engine: str) -> RepoConfig:
    """The configuration of a repo with these options of its engine."""
    settings = {
        "project": "shop",
        "provider": "local",
        "registry": "registry.db",
        "entity_key_serialization_version": 3,
    }
    (folder / "feature_store.yaml").write_text(yaml.safe_dump(settings | {"batch_engine": engine}))
    return load_repo_config(folder, folder / "feature_store.yaml")


def test_paths_start_at_the_repo_and_nothing_is_made(tmp_path: Path) -> None:
    paths = RepoPaths.of(configured(tmp_path, type=ENGINE))
    state = tmp_path / "data" / "embeddings"
    assert (paths.root, paths.state) == (tmp_path, state)
    assert paths.ledger_url == f"sqlite:///{state / 'ledger.db'}"
    assert (paths.quarantine, paths.encoder("abc")) == (state / "quarantine", state / "encoders" / "abc")
    assert [path.name for path in tmp_path.iterdir()] == ["feature_store.yaml"]


def test_the_ledger_and_the_state_stand_where_the_engine_is_told(tmp_path: Path) -> None:
    paths = RepoPaths.of(configured(tmp_path, type=ENGINE, state="elsewhere", ledger="postgresql://db/ledger"))
    assert (paths.state, paths.ledger_url) == (tmp_path / "elsewhere", "postgresql://db/ledger")


def test_a_repo_without_our_engine_has_none(tmp_path: Path) -> None:
    with pytest.raises(DeclarationError, match=r"Project 'shop': batch_engine is 'local': write `batch_engine: \{type"):
        RepoPaths.of(configured(tmp_path, type="local"))

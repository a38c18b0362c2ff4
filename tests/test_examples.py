"""Each example is applied and materialized as it stands, on small generated behaviors."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from feast import FeatureStore
from feast.repo_config import load_repo_config
from feast.repo_operations import apply_total

from feast_embeddings.materialize import read_vectors
from feast_embeddings.materialize.clock import simulated
from feast_embeddings.materialize.declare import behaviors_of, embedding_specs
from feast_embeddings.materialize.demo import ids_of, write_example
from feast_embeddings.materialize.files import Workspace
from feast_embeddings.models import ItemIndex, SequenceConfig, SequenceEncoder, save_encoder
from feast_embeddings.transformations import contract_of

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
END_US = 1_717_200_000_000_000  # 2024-06-01
DAY_US = 86_400_000_000
pytestmark = pytest.mark.filterwarnings("ignore:Stream feature views are experimental:RuntimeWarning")


def test_there_is_one_for_each_trade() -> None:
    assert {path.stem for path in EXAMPLES} >= {"ecommerce", "news", "video", "music", "advertising"}


@pytest.mark.parametrize("source", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_applied_and_materialized(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given generated behaviors, when the example is applied and materialized, then users and items have vectors."""
    folder = write_example(source, tmp_path / source.stem, users=12, items=24, days=6, end_us=END_US)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "definitions", raising=False)
    apply_total(load_repo_config(Path(), Path("feature_store.yaml")), Path(), skip_source_validation=True)
    monkeypatch.delitem(sys.modules, "definitions")
    store = FeatureStore(".")
    user, item = sorted(embedding_specs(store.registry, store.project), key=lambda spec: spec.tower, reverse=True)
    contract = contract_of(behaviors_of(store.registry, store.project, user))
    torch.manual_seed(0)
    catalogue = ItemIndex(ids_of(range(1001, 1025), contract.item_dtype, "item"))
    config = SequenceConfig(dim=user.dim, context=10, blocks=1, heads=1, hidden=8)
    save_encoder(SequenceEncoder(config, contract.type_names, catalogue).eval(), folder / user.artifact)
    with simulated(END_US):
        store.materialize(_moment(END_US - 10 * DAY_US), _moment(END_US - DAY_US // 12))
        store.materialize_incremental(_moment(END_US))
        users = read_vectors(store, user.reference, ids_of(range(1, 13), contract.entity_dtype, "user"))
        items = read_vectors(store, item.reference, ids_of(range(1001, 1025), contract.item_dtype, "item"))
    assert users.found.mean() > 0.5
    assert items.found.all()
    assert users.space == items.space
    assert np.isfinite(users.values).all()
    counts = Workspace.of(store.config).ledger.counts(user.view)
    assert counts["read"] == sum(number for what, number in counts.items() if what != "read")


def _moment(us: int) -> datetime:
    return datetime.fromtimestamp(us / 1_000_000, UTC)

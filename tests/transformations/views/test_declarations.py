"""The declarations live in a real Feast: applied twice without change, read by stock historical retrieval."""

import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Entity, FeatureStore, FeatureView, ValueType

from feast_embeddings.models.errors import DeclarationError
from feast_embeddings.transformations import (
    ActivitySpec,
    BehaviorContract,
    BehaviorType,
    CleaningRules,
    activity_spec_of,
    activity_view,
    behavior_source,
    behaviors_name_of,
    behaviors_view,
    contract_of,
    kind_of,
    rules_of,
)
from feast_embeddings.transformations.views import tags

CONTRACT = BehaviorContract(
    join_key="user_id",
    entity="uid",
    item="sku",
    event_time="at",
    behavior_type="kind",
    value="price",
    created_time="written",
    types=(BehaviorType("view"), BehaviorType("buy", 2.0)),
)
RULES = CleaningRules(max_per_day=100)
USER = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)
STAMP = pa.timestamp("us", tz="UTC")

CONFIG = """
project: shop
provider: local
registry: {registry_type: sql, path: "sqlite:///FOLDER/registry.db"}
offline_store: {type: duckdb}
online_store: {type: sqlite, path: online.db}
entity_key_serialization_version: 3
"""
DEFINITIONS = """
from feast import Entity, ValueType
from feast_embeddings.transformations.views import tags
from feast_embeddings.transformations import (
    BehaviorContract, BehaviorType, CleaningRules, activity_view, behavior_source, behaviors_view
)

contract = BehaviorContract(
    join_key="user_id", entity="uid", item="sku", event_time="at", behavior_type="kind", value="price",
    created_time="written", types=(BehaviorType("view"), BehaviorType("buy", 2.0)),
)
user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)
source = behavior_source("log", "behaviors.parquet", contract)
behaviors = behaviors_view("behaviors", user, source, contract, CleaningRules(max_per_day=100))
activity = activity_view("activity", user, behaviors, windows=("1d", "7d"))
"""


APPLY_TWICE = """
import sys, warnings
warnings.simplefilter("ignore")
from click.testing import CliRunner
from feast.cli.cli import cli
for _ in range(2):
    sys.modules.pop("definitions", None)  # read anew, as a second process would
    result = CliRunner().invoke(cli, ["apply"], catch_exceptions=False)
    print("=== applied", result.exit_code, result.output)
"""


def apply_twice(folder: Path) -> list[str]:
    """What two runs of `feast apply` say; one process for both, as starting Feast takes most of the time."""
    command = [sys.executable, "-c", APPLY_TWICE]
    finished = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=120)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout.split("=== applied")[1:]


@pytest.fixture(scope="module")
def applied(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("repo")
    (folder / "feature_store.yaml").write_text(CONFIG.replace("FOLDER", str(folder)))
    (folder / "definitions.py").write_text(DEFINITIONS)
    rows = pa.table(
        {
            "uid": pa.array([1, 1, 2], pa.int64()),
            "sku": pa.array([10, 11, 12], pa.int64()),
            "kind": pa.array(["view", "buy", "view"]),
            "at": pa.array([0, 10_000_000, 5_000_000], STAMP),
            "price": pa.array([None, 2.5, 1.0]),
            "written": pa.array([0, 10_000_000, 5_000_000], STAMP),
        }
    )
    pq.write_table(rows, folder / "behaviors.parquet")
    return folder, apply_twice(folder)


@pytest.fixture
def repo(applied: tuple[Path, list[str]]) -> Path:
    return applied[0]


def test_applying_again_changes_nothing(applied: tuple[Path, list[str]]) -> None:
    first, second = applied[1]
    assert "Created feature view behaviors" in first
    assert "No changes to registry" in second
    assert "No changes to infrastructure" in second


def test_what_was_declared_is_read_back_from_the_registry(repo: Path) -> None:
    store = FeatureStore(repo_path=str(repo))
    behaviors, activity = store.get_feature_view("behaviors"), store.get_feature_view("activity")
    assert (kind_of(behaviors), kind_of(activity)) == ("behaviors", "activity")
    assert contract_of(behaviors) == CONTRACT
    assert rules_of(behaviors) == RULES
    assert activity_spec_of(activity) == ActivitySpec(("1d", "7d"))
    assert behaviors_name_of(activity) == "behaviors"
    assert [field.name for field in activity.features] == [
        "view_1d",
        "view_7d",
        "buy_1d",
        "buy_7d",
        "recency_seconds",
    ]


@pytest.mark.filterwarnings("ignore:fetch_arrow_table:DeprecationWarning")  # ibis, on DuckDB 2
def test_stock_feast_joins_the_latest_behavior_in_time(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repo)  # stock reads take the path relative to the working directory
    asked = pd.DataFrame(
        {
            "user_id": [1, 1, 2, 3],
            "event_timestamp": [datetime.fromtimestamp(second, UTC) for second in (9, 10, 20, 20)],
        }
    )
    features = ["behaviors:item_id", "behaviors:behavior_type", "behaviors:value"]
    frame = FeatureStore(repo_path=str(repo)).get_historical_features(asked, features).to_df()
    frame = frame.sort_values(["user_id", "event_timestamp"])
    found = [
        (None if pd.isna(item) else int(item), kind if isinstance(kind, str) else None)
        for item, kind in zip(frame["item_id"], frame["behavior_type"], strict=True)
    ]
    assert found == [(10, "view"), (11, "buy"), (12, "view"), (None, None)]


def test_columns_that_already_have_the_feature_s_name_are_not_renamed() -> None:
    contract = BehaviorContract(
        join_key="user_id",
        entity="user_id",
        item="item_id",
        event_time="at",
        default_type="v",
        types=(BehaviorType("v"),),
    )
    source = behavior_source("log", Path("log"), contract)
    assert (source.field_mapping, source.timestamp_field, source.created_timestamp_column) == ({}, "at", "")
    view = behaviors_view("behaviors", USER, source, contract)
    assert [field.name for field in view.features] == ["item_id"]
    assert rules_of(view) == CleaningRules()


def declared() -> FeatureView:
    return behaviors_view("behaviors", USER, behavior_source("log", "log.parquet", CONTRACT), CONTRACT, RULES)


def test_an_entity_of_another_join_key_is_refused() -> None:
    other = Entity(name="shop", join_keys=["shop_id"], value_type=ValueType.INT64)
    with pytest.raises(DeclarationError, match="'shop' has join key 'shop_id', the contract 'user_id'"):
        behaviors_view("behaviors", other, behavior_source("log", "log.parquet", CONTRACT), CONTRACT)
    with pytest.raises(DeclarationError, match="Use the entity of the behaviors view"):
        activity_view("activity", other, declared())


@pytest.mark.parametrize("read", [contract_of, rules_of])
def test_a_view_of_another_kind_has_no_contract(read: Callable[[FeatureView], Any]) -> None:
    with pytest.raises(DeclarationError, match=r"'activity' is not one of behaviors .* behaviors_view\("):
        read(activity_view("activity", USER, declared()))


@pytest.mark.parametrize("read", [activity_spec_of, behaviors_name_of])
def test_a_view_of_another_kind_has_no_activity_spec(read: Callable[[FeatureView], Any]) -> None:
    with pytest.raises(DeclarationError, match=r"'behaviors' is not one of activity .* activity_view\("):
        read(declared())


def test_altered_tags_are_refused() -> None:
    view = declared()
    view.tags[tags.CONTRACT] = "{}"
    with pytest.raises(DeclarationError, match="not a behavior contract"):
        contract_of(view)
    del view.tags[tags.CONTRACT]
    with pytest.raises(DeclarationError, match="contract is missing"):
        contract_of(view)

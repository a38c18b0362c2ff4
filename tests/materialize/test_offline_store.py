"""Historical retrieval through Feast's own door: rows in order, ours and ordinary views side by side."""

from datetime import datetime, timedelta

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import FeatureService, FeatureStore, FeatureView, Field, FileSource
from feast.infra.offline_stores.file_source import SavedDatasetFileStorage
from feast.types import Float64
from served_fixture import BEHAVIORS, build, day, first, items

from feast_embeddings.materialize.declare import pinned
from feast_embeddings.models.errors import DeclarationError, SpaceError

pytestmark = pytest.mark.filterwarnings("ignore:On demand feature view is an experimental feature:RuntimeWarning")


@pytest.fixture
def repo(tmp_path):
    return build(tmp_path / "repo")


# ── rows and columns ─────────────────────────────────────────────────────────────────────────────────────────


def test_rows_come_back_in_their_order_with_all_their_columns(repo):
    repo.refresh(1, {1: 1.0, 2: 2.0})
    frame = pd.DataFrame(
        {
            "note": ["a", "b", "c", "d", "e"],
            "user_id": [2, 1, 9, 1, 2],
            "event_timestamp": [day(5), day(0), day(5), day(5), day(5)],
            "label": [0.5, None, 1.5, 2.5, 3.5],
        },
        index=[7, 7, 1, 0, 3],
    )

    job = repo.store.get_historical_features(frame, ["user_embedding:embedding", "scores:score"])
    result = job.to_df()

    assert list(result.columns) == ["note", "user_id", "event_timestamp", "label", "embedding", "score"]
    assert result["note"].tolist() == ["a", "b", "c", "d", "e"]
    assert result["label"].tolist()[2:] == [1.5, 2.5, 3.5]
    assert first(result["embedding"]) == [2.0, None, None, 1.0, 2.0]
    assert result["score"].fillna(-1).tolist() == [0.3, 0.1, -1, 0.2, 0.3]
    assert result["embedding"][0].dtype == np.float32
    assert job.to_arrow().schema.field("embedding").type == pa.list_(pa.float32())


def test_full_names_carry_the_view_or_the_pin(repo):
    repo.refresh(1, {1: 1.0})
    service = FeatureService(name="pinned", features=[pinned(repo.view, repo.space)])
    repo.store.apply([service])
    rows = [(1, day(3))]

    plain = repo.ask(["user_embedding:embedding", "scores:score"], rows, full_feature_names=True)
    by_pin = repo.ask(repo.store.get_feature_service("pinned"), rows, full_feature_names=True)

    assert list(plain.columns)[2:] == ["user_embedding__embedding", "scores__score"]
    assert first(by_pin[f"user_embedding@{repo.space}__embedding"]) == [1.0]


@pytest.mark.parametrize(
    "times",
    [
        [datetime(2026, 1, 2, 12, 0), datetime(2026, 1, 2, 11, 59)],  # noqa: DTZ001 - naive is what is tested
        ["2026-01-02 12:00:00", "2026-01-02 11:59:00"],
        ["2026-01-02T14:00:00+02:00", "2026-01-02T13:59:00+02:00"],
        list(pd.to_datetime(["2026-01-02 07:00", "2026-01-02 06:59"]).tz_localize("America/New_York")),
    ],
    ids=["naive", "text", "text with zone", "another zone"],
)
def test_times_of_any_kind_are_the_same_times(repo, times):
    repo.refresh(1, {1: 1.0})

    result = repo.ask(["user_embedding:embedding"], list(zip([1, 1], times, strict=True)))

    assert first(result["embedding"]) == [1.0, None]
    assert result["event_timestamp"].tolist() == [pd.Timestamp(day(1.5)), pd.Timestamp(day(1.5)) - pd.Timedelta("1min")]


def test_a_lone_datetime_column_is_taken_for_the_time_as_feast_does(repo):
    repo.refresh(1, {1: 1.0})
    frame = pd.DataFrame({"user_id": [1], "seen": [day(3)]})

    result = repo.store.get_historical_features(frame, ["user_embedding:embedding"]).to_df()

    assert first(result["embedding"]) == [1.0]


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        ("SELECT 1", "entity_df of type str"),
        (pd.DataFrame({"event_timestamp": [day(1)]}), "no column 'user_id', the join key of view 'user_embedding'"),
        (pd.DataFrame({"user_id": [1]}), "no column event_timestamp"),
        (pd.DataFrame({"user_id": ["1"], "event_timestamp": [day(1)]}), "'user_id' of entity_df is string"),
        (pd.DataFrame({"user_id": [1.5], "event_timestamp": [day(1)]}), "'user_id' of entity_df is double"),
        (pd.DataFrame({"user_id": [1], "event_timestamp": ["soon"]}), "does not hold times"),
        (
            pd.DataFrame({"user_id": [1], "event_timestamp": [day(1)], "embedding": [0]}),
            "'embedding' of the result would stand for",
        ),
    ],
)
def test_an_entity_df_that_cannot_be_answered_is_refused(repo, frame, message):
    with pytest.raises(DeclarationError, match=message):
        repo.store.get_historical_features(frame, ["user_embedding:embedding"])


def test_no_entity_df_at_all_is_refused(repo):
    with pytest.raises(DeclarationError, match="entity_df of type NoneType"):
        repo.store.get_historical_features(None, ["user_embedding:embedding"], start_date=day(0), end_date=day(1))


def test_missing_ids_and_times_are_answered_with_null(repo):
    repo.refresh(1, {1: 1.0})
    frame = pd.DataFrame({"user_id": [1, None, 1], "event_timestamp": [day(4), day(4), None]})

    features = ["user_embedding:embedding", "history:history_items", "activity:view_7d"]
    result = repo.store.get_historical_features(frame, features).to_df()

    assert first(result["embedding"]) == [1.0, None, None]
    assert [None if items is None else list(items) for items in result["history_items"]] == [[10, 11], None, None]
    assert result["view_7d"].fillna(-1).tolist() == [3, -1, -1]


def test_no_rows_give_no_rows(repo):
    repo.refresh(1, {1: 1.0})

    frame = pd.DataFrame({"user_id": np.array([], np.int64), "event_timestamp": pd.DatetimeIndex([], tz="UTC")})
    result = repo.store.get_historical_features(
        frame, ["user_embedding:embedding", "history:history_items", "activity:view_7d"]
    )

    assert result.to_arrow().num_rows == 0


# ── ordinary views ───────────────────────────────────────────────────────────────────────────────────────────


def test_ordinary_views_answer_as_stock_feast_does(repo, monkeypatch):
    repo.refresh(1, {1: 1.0})
    frame = pd.DataFrame({"user_id": [2, 1, 1, 3, 1], "event_timestamp": [day(4), day(1), day(9), day(4), day(4)]})
    features = ["scores:score", "behaviors:item_id"]

    result = repo.store.get_historical_features(frame, ["user_embedding:embedding", *features]).to_df()

    stock_config = repo.store.config.model_copy(update={"offline_store_config": {"type": "duckdb"}})
    stock_config._offline_store = None
    monkeypatch.chdir(repo.root)  # stock reads relative paths from the working directory
    stock = FeatureStore(config=stock_config).get_historical_features(frame, features).to_df()
    keys = ["user_id", "event_timestamp"]
    pd.testing.assert_frame_equal(
        result.drop(columns="embedding").sort_values(keys, ignore_index=True),
        stock.sort_values(keys, ignore_index=True),
        check_dtype=False,
    )


def test_an_on_demand_view_over_an_ordinary_one_still_works(repo):
    repo.refresh(1, {1: 1.0, 2: 2.0})
    frame = pd.DataFrame({"user_id": [2, 1], "event_timestamp": [day(4), day(4)], "factor": [10.0, 100.0]})

    job = repo.store.get_historical_features(frame, ["scaled_scores:scaled", "user_embedding:embedding"])
    result = job.to_df()

    assert [view.name for view in job.on_demand_feature_views] == ["scaled_scores"]
    assert result["scaled"].tolist() == [3.0, 20.0]
    assert first(result["embedding"]) == [2.0, 1.0]


def test_the_job_tells_what_it_holds_and_persists_it(repo):
    repo.refresh(1, {1: 1.0, 2: 2.0})
    frame = pd.DataFrame({"user_id": [2, 1], "event_timestamp": [day(4), day(5)]})
    job = repo.store.get_historical_features(frame, ["user_embedding:embedding", "scores:score"])

    job.persist(SavedDatasetFileStorage(path="data/saved.parquet"))

    saved = pq.read_table(repo.root / "data" / "saved.parquet")
    assert saved["embedding"].to_pylist() == [[2.0, 2.0], [1.0, 1.0]]
    assert job.metadata.features == ["user_embedding:embedding", "scores:score"]
    assert job.metadata.keys == ["user_id"]
    assert (job.metadata.min_event_timestamp, job.metadata.max_event_timestamp) == (day(4), day(5))
    assert not job.full_feature_names


def test_a_renamed_ordinary_view_materializes_from_any_working_directory(repo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    repo.store.materialize(day(0), day(4), feature_views=["behaviors", "scores"])

    online = repo.store.get_online_features(
        ["behaviors:item_id", "behaviors:behavior_type", "scores:score"], [{"user_id": 1}, {"user_id": 2}]
    ).to_dict()
    assert online["item_id"] == [14, 20]
    assert online["behavior_type"] == ["buy", "view"]
    assert online["score"] == [0.2, 0.3]


def test_a_folder_of_files_is_an_ordinary_source_too(repo):
    parts = repo.root / "data" / "scores"
    parts.mkdir()
    table = pq.read_table(repo.root / "data" / "scores.parquet")
    for number in range(3):
        pq.write_table(table.slice(number, 1), parts / f"{number}.parquet")
    user = repo.store.get_entity("user")
    source = FileSource(name="scores", path="data/scores", timestamp_field="at")
    view = FeatureView(name="scores", entities=[user], schema=[Field(name="score", dtype=Float64)], source=source)
    repo.store.apply([view])

    assert repo.ask(["scores:score"], [(1, day(9)), (2, day(9))])["score"].tolist() == [0.2, 0.3]


def test_rows_are_appended_to_an_ordinary_view_and_to_no_other(repo):
    rows = pd.DataFrame({"user_id": [3], "score": [0.9], "at": [day(2)]})

    repo.store.write_to_offline_store("scores", rows)

    assert repo.ask(["scores:score"], [(3, day(9))])["score"].tolist() == [0.9]
    with pytest.raises(DeclarationError, match="'user_embedding' is an embedding view"):
        repo.store._get_provider().offline_store.offline_write_batch(repo.store.config, repo.view, pa.table({}), None)


# ── embedding views ──────────────────────────────────────────────────────────────────────────────────────────


def test_the_live_space_and_the_pinned_one_are_read_apart(repo):
    repo.refresh(1, {1: 1.0})
    repo.refresh(3, {1: 9.0}, space="another0space")
    repo.store.apply([FeatureService(name="old", features=[pinned(repo.view, repo.space)])])
    rows = [(1, day(2)), (1, day(5))]

    assert first(repo.ask(["user_embedding:embedding"], rows)["embedding"]) == [None, 9.0]
    assert first(repo.ask(repo.store.get_feature_service("old"), rows)["embedding"]) == [1.0, 1.0]

    repo.refresh(6, {1: 9.5}, space="another0space")
    with pytest.raises(SpaceError, match=repo.space):
        repo.ask(repo.store.get_feature_service("old"), rows)


def test_the_ttl_of_the_view_is_kept(repo):
    repo.refresh(1, {1: 1.0})

    result = repo.ask(["user_embedding:embedding"], [(1, day(31.5)), (1, day(31.5) + timedelta(microseconds=1))])

    assert first(result["embedding"]) == [1.0, None]


def test_before_anything_was_materialized_all_is_null(repo):
    with pytest.warns(UserWarning, match="it has served none yet"):
        result = repo.ask(["user_embedding:embedding", "history:history_times"], [(1, day(5)), (2, day(5))])

    assert result["embedding"].tolist() == [None, None]
    assert result["history_times"].tolist() == [None, None]


def test_string_ids_work_through_every_kind_of_view(tmp_path):
    named = BEHAVIORS.assign(user=BEHAVIORS["user"].map("u{}".format), item=BEHAVIORS["item"].map("i{}".format))
    repo = build(tmp_path / "repo", behaviors=named, entity_dtype="string", item_dtype="string")
    repo.refresh(3, {"u1": 1.0, "u2": 2.0})
    features = ["user_embedding:embedding", "history:history_items", "activity:view_7d"]

    result = repo.ask(features, [("u2", day(4)), ("ü", day(4)), ("u1", day(4)), ("u1", day(0))])

    assert first(result["embedding"]) == [2.0, None, 1.0, None]
    assert items(result) == [["i20"], None, ["i10", "i12", "i13"], None]
    assert result["view_7d"].fillna(-1).tolist() == [1, -1, 3, -1]  # null: online, such a user has no row

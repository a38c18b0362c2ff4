"""Historical retrieval through Feast's own door: rows in order, ours and ordinary views side by side."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import (
    Entity,
    FeatureService,
    FeatureStore,
    FeatureView,
    Field,
    FileSource,
    RepoConfig,
    RequestSource,
    ValueType,
)
from feast.infra.offline_stores.file_source import SavedDatasetFileStorage
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64

from feast_embeddings.materialize.clock import simulated
from feast_embeddings.materialize.embedding_log import LogStamp
from feast_embeddings.materialize.ledger import Tick
from feast_embeddings.materialize.policy import Incremental
from feast_embeddings.materialize.views import embedding_view, history_view, pinned, spec_of
from feast_embeddings.materialize.workspace import Workspace
from feast_embeddings.models import ItemIndex, SequenceConfig, SequenceEncoder, save_encoder
from feast_embeddings.models.errors import DeclarationError, SpaceError
from feast_embeddings.transformations import (
    BehaviorContract,
    BehaviorType,
    activity_view,
    behavior_source,
    behaviors_view,
)

pytestmark = pytest.mark.filterwarnings("ignore:On demand feature view is an experimental feature:RuntimeWarning")

START = datetime(2026, 1, 1, tzinfo=UTC)
TYPES = (BehaviorType("view"), BehaviorType("buy"), BehaviorType("unbuy", cancels="buy"))
STORE = "feast_embeddings.materialize.offline_store.EmbeddingOfflineStore"
ENGINE = "feast_embeddings.materialize.engine.EmbeddingEngine"


def day(number: float) -> datetime:
    """Midnight UTC of a day of January 2026, counted from 0; fractions are parts of the day."""
    return START + timedelta(days=number)


def us(number: float) -> int:
    return round(day(number).timestamp() * 1_000_000)


@dataclass
class Repo:
    """A feature repo in a folder that is not the working directory."""

    root: Path
    store: FeatureStore
    workspace: Workspace
    space: str

    @property
    def view(self) -> FeatureView:
        return self.store.get_stream_feature_view("user_embedding")

    def ask(self, features, rows, **options) -> pd.DataFrame:
        frame = pd.DataFrame(rows, columns=["user_id", "event_timestamp"])
        return self.store.get_historical_features(frame, features, **options).to_df()

    def refresh(self, at: float, vectors: dict, space: str | None = None) -> Tick:
        """A full refresh as of day ``at``, cut over at noon of it."""
        ledger, spec = self.workspace.ledger, spec_of(self.view)
        space = space or self.space
        with simulated(us(at)):
            tick = ledger.record_refresh(
                spec.view, spec.encoder, space, start_us=None, end_us=us(at), created_from_us=None
            )
            name = tick.fills[0]
            self._log(tick, name, space, us(at + 0.5), vectors)
            ledger.update_tick(tick, state="written", window_start_us=us(at + 0.5))
            generation = ledger.record_generation(spec.encoder, {spec.view: name})
            before = {fill.fill: "retained" for fill in ledger.fills(view=spec.view, states=("live",))}
            before |= {fill.fill: "retired" for fill in ledger.fills(view=spec.view, states=("retained",))}
            ledger.finish_cutover(generation, us(at + 0.5), {**before, name: "live"})
        return ledger.tick(spec.view, tick.number)

    def tick(self, start: float, end: float, vectors: dict, created_from: float | None = None) -> Tick:
        """An incremental tick over days [start, end), published at noon of day ``end``, into the live fill."""
        ledger, spec = self.workspace.ledger, spec_of(self.view)
        (live,) = ledger.fills(view=spec.view, states=("live",))
        created = None if created_from is None else us(created_from)
        with simulated(us(end)):
            tick = ledger.record_tick(
                spec.view, start_us=us(start), end_us=us(end), created_from_us=created, targets=[live.fill]
            )
        self._log(tick, live.fill, live.space, us(end + 0.5), vectors)
        return ledger.update_tick(tick, state="published", published_us=us(end + 0.5), window_start_us=us(end + 0.5))

    def _log(self, tick: Tick, fill: str, space: str, at_us: int, vectors: dict) -> None:
        log = self.workspace.log(spec_of(self.view))
        ids = np.array(list(vectors), object if isinstance(next(iter(vectors)), str) else np.int64)
        log.stage(fill, tick.number, ids, np.array([[value, value] for value in vectors.values()], np.float32))
        log.publish(LogStamp(fill, space, tick.number, tick.end_us, at_us, at_us), live=True)


BEHAVIORS = pd.DataFrame(
    [
        # user, item, kind, price, happened (days), written (days)
        (1, 10, "view", 1.0, 0.25, 0.25),
        (1, 11, "buy", 2.0, 0.50, 0.50),
        (2, 20, "view", None, 1.25, 1.25),
        (1, 12, "view", 3.0, 1.50, 1.50),
        (1, 11, "unbuy", None, 2.50, 2.50),
        (1, 13, "view", 4.0, 2.75, 2.75),
        (1, 14, "buy", 5.0, 3.50, 3.50),
    ],
    columns=["user", "item", "kind", "price", "happened", "written"],
)


def build(root: Path, *, created: bool = False, behaviors: pd.DataFrame = BEHAVIORS, **contract) -> Repo:
    """Declares everything there is over a behavior table and an ordinary table, by relative paths."""
    (root / "data").mkdir(parents=True)
    frame = behaviors.assign(happened=behaviors["happened"].map(day), written=behaviors["written"].map(day))
    schema = pa.Table.from_pandas(frame, preserve_index=False)
    for name in ("happened", "written"):
        index = schema.column_names.index(name)
        schema = schema.set_column(index, name, schema[name].cast(pa.timestamp("us", tz="UTC")))
    pq.write_table(schema, root / "data" / "behaviors.parquet")
    pq.write_table(
        pa.table(
            {
                "user_id": [1, 1, 2],
                "score": [0.1, 0.2, 0.3],
                "at": pa.array([day(0), day(2), day(1)], pa.timestamp("us", tz="UTC")),
            }
        ),
        root / "data" / "scores.parquet",
    )
    settings = SequenceConfig(dim=2, context=3, blocks=1, heads=1, hidden=4)
    encoder = SequenceEncoder(settings, tuple(kind.name for kind in TYPES), ItemIndex(np.arange(10, 30)))
    space = save_encoder(encoder, root / "encoder")
    save_encoder(encoder, root / "data" / "embeddings" / "encoders" / space)
    config = RepoConfig(
        project="shop",
        provider="local",
        registry=str(root / "data" / "registry.db"),
        online_store={"type": "sqlite", "path": str(root / "data" / "online.db")},
        offline_store={"type": STORE},
        batch_engine={"type": ENGINE},
        entity_key_serialization_version=3,
        repo_path=root,
    )
    store = FeatureStore(config=config)
    text = contract.get("entity_dtype") == "string"
    user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING if text else ValueType.INT64)
    of = BehaviorContract(
        join_key="user_id",
        entity="user",
        item="item",
        event_time="happened",
        types=TYPES,
        behavior_type="kind",
        value="price",
        created_time="written" if created else None,
        **contract,
    )
    views = declare(user, of)
    store.apply([user, *views])
    return Repo(root, store, Workspace.of(config), space)


def declare(user: Entity, contract: BehaviorContract) -> list:
    behaviors = behaviors_view(
        "behaviors", user, behavior_source("behaviors", "data/behaviors.parquet", contract), contract
    )
    history = history_view("history", entity=user, behaviors=behaviors)
    embedding = embedding_view(
        "user_embedding",
        entity=user,
        behaviors=behaviors,
        history=history,
        encoder="shop",
        dim=2,
        policy=Incremental(),
        ttl=timedelta(days=30),
    )
    scores = FeatureView(
        name="scores",
        entities=[user],
        ttl=timedelta(days=30),
        schema=[Field(name="score", dtype=Float64)],
        source=FileSource(name="scores", path="data/scores.parquet", timestamp_field="at"),
    )
    request = RequestSource(name="request", schema=[Field(name="factor", dtype=Float64)])

    @on_demand_feature_view(sources=[scores, request], schema=[Field(name="scaled", dtype=Float64)], mode="pandas")
    def scaled_scores(frame: pd.DataFrame) -> pd.DataFrame:
        import pandas as pd

        return pd.DataFrame({"scaled": frame["score"] * frame["factor"]})

    return [
        behaviors,
        history,
        embedding,
        activity_view("activity", user, behaviors, ["1d", "7d"]),
        scores,
        scaled_scores,
    ]


@pytest.fixture
def repo(tmp_path):
    return build(tmp_path / "repo")


def first(column: pd.Series) -> list[float | None]:
    """First numbers of a column of vectors."""
    return [None if vector is None else float(vector[0]) for vector in column]


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
    result = repo.ask(["user_embedding:embedding", "history:history_times"], [(1, day(5)), (2, day(5))])

    assert result["embedding"].tolist() == [None, None]
    assert result["history_times"].tolist() == [None, None]


# ── histories and activity ───────────────────────────────────────────────────────────────────────────────────


def items(frame: pd.DataFrame) -> list[list[int] | None]:
    return [None if row is None else list(row) for row in frame["history_items"]]


def test_a_history_is_what_the_last_published_tick_had_written(repo):
    repo.refresh(1, {1: 1.0})
    repo.tick(1, 2, {1: 1.0, 2: 2.0})
    repo.tick(2, 3, {1: 1.0})
    names = [f"history:history_{name}" for name in ("items", "types", "times", "values")]

    result = repo.ask(names, [(1, day(1.4)), (1, day(1.5)), (1, day(2.6)), (2, day(2.4)), (2, day(2.5)), (1, day(9))])

    # noon of the day is when each is published; the purchase taken back on day 2 had been in the histories
    assert items(result) == [None, [10, 11], [10, 11, 12], None, [20], [11, 12, 13]]
    assert list(result["history_types"][5]) == [1, 0, 0]
    assert list(result["history_times"][2]) == [us(0.25), us(0.5), us(1.5)]
    assert np.isnan(result["history_values"][4][0])
    assert result["history_values"][2].dtype == np.float32


def test_a_refresh_forgets_what_was_taken_back(repo):
    repo.refresh(1, {1: 1.0})
    repo.tick(1, 3, {1: 1.0, 2: 2.0})
    repo.refresh(4, {1: 1.0, 2: 2.0})

    assert items(repo.ask(["history:history_items"], [(1, day(3.6)), (1, day(4.6))])) == [[11, 12, 13], [12, 13, 14]]


def test_a_late_behavior_is_in_the_histories_from_the_tick_that_applied_it(tmp_path):
    late = pd.DataFrame([(1, 15, "view", 0.0, 0.75, 2.5)], columns=BEHAVIORS.columns)
    repo = build(tmp_path / "repo", created=True, behaviors=pd.concat([BEHAVIORS, late], ignore_index=True))
    repo.refresh(1, {1: 1.0})
    repo.tick(1, 2, {1: 1.0, 2: 2.0}, created_from=1)
    repo.tick(2, 3, {1: 1.0}, created_from=2)

    result = repo.ask(["history:history_items"], [(1, day(1.6)), (1, day(2.6)), (1, day(3.6))])

    assert items(result) == [[10, 11], [10, 11, 12], [15, 12, 13]]


def test_plain_behaviors_give_the_same_histories_from_one_reading(tmp_path):
    plain = BEHAVIORS.assign(kind="view")
    exact, quick = (
        build(tmp_path / name, created=created, behaviors=plain) for name, created in (("a", True), ("b", False))
    )
    rows = [(user, day(number / 4)) for user in (1, 2, 3) for number in range(24)]
    answers = []
    for repo in (exact, quick):
        with_rules = repo.store.get_feature_view("behaviors")
        with_rules.tags["feast_embeddings.cleaning"] = '{"cancellations": false}'
        repo.store.apply([with_rules])
        repo.refresh(1, {1: 1.0})
        repo.tick(1, 2, {1: 1.0, 2: 2.0}, created_from=1)
        repo.tick(2, 3, {1: 1.0}, created_from=2)
        repo.refresh(4, {1: 1.0, 2: 2.0})
        answers.append(items(repo.ask(["history:history_items"], rows)))

    assert answers[0] == answers[1]
    assert answers[0][23] == [11, 13, 14]


def test_activity_counts_up_to_the_time_asked_for_and_nothing_later(repo):
    names = [f"activity:{name}" for name in ("view_7d", "buy_7d", "view_1d", "recency_seconds")]

    result = repo.ask(names, [(1, day(2.5)), (1, day(3)), (1, day(0.25)), (7, day(3)), (2, day(2))])

    # day 2.5: the purchase of day 0.5 is taken back at that very time, so it still counts strictly before it
    assert result["buy_7d"].tolist() == [1, 0, 0, 0, 0]
    assert result["view_7d"].tolist() == [2, 3, 0, 0, 1]
    assert result["view_1d"].tolist() == [1, 1, 0, 0, 1]
    assert result["recency_seconds"].fillna(-1).tolist() == [86_400, 21_600, -1, -1, 64_800]


def test_activity_by_created_time_is_refused(tmp_path):
    repo = build(tmp_path / "repo", created=True)

    with pytest.raises(DeclarationError, match="'activity' counts by event time"):
        repo.ask(["activity:view_7d"], [(1, day(2))], filter_by_created_timestamp=True)


def test_string_ids_work_through_every_kind_of_view(tmp_path):
    named = BEHAVIORS.assign(user=BEHAVIORS["user"].map("u{}".format), item=BEHAVIORS["item"].map("i{}".format))
    repo = build(tmp_path / "repo", behaviors=named, entity_dtype="string", item_dtype="string")
    repo.refresh(3, {"u1": 1.0, "u2": 2.0})
    features = ["user_embedding:embedding", "history:history_items", "activity:view_7d"]

    result = repo.ask(features, [("u2", day(4)), ("ü", day(4)), ("u1", day(4)), ("u1", day(0))])

    assert first(result["embedding"]) == [2.0, None, 1.0, None]
    assert items(result) == [["i20"], None, ["i10", "i12", "i13"], None]
    assert result["view_7d"].tolist() == [1, 0, 3, 0]

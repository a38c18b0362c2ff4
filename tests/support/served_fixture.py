"""A feature repo for historical retrieval, its ledger and log filled by hand: no jobs, no online store."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, RequestSource, ValueType
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64

from feast_embeddings.materialize.clock import simulated
from feast_embeddings.materialize.declare import (
    EncoderRef,
    Incremental,
    Inputs,
    Serving,
    embedding_view,
    history_view,
    spec_of,
)
from feast_embeddings.materialize.files import LogStamp, Workspace
from feast_embeddings.materialize.ledger import Tick
from feast_embeddings.models import ItemIndex, SequenceConfig, SequenceEncoder, save_encoder
from feast_embeddings.transformations import (
    BehaviorContract,
    BehaviorType,
    activity_view,
    behavior_source,
    behaviors_view,
)

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
        inputs=Inputs(behaviors, history),
        encoder=EncoderRef("shop", dim=2),
        policy=Incremental(),
        serve=Serving(ttl=timedelta(days=30)),
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


def first(column: pd.Series) -> list[float | None]:
    """First numbers of a column of vectors."""
    return [None if vector is None else float(vector[0]) for vector in column]


def items(frame: pd.DataFrame) -> list[list[int] | None]:
    return [None if row is None else list(row) for row in frame["history_items"]]

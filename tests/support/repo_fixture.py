"""A small real feature repo in a folder of its own, and jobs on it as Feast runs them, each in a fresh store."""

from __future__ import annotations

import runpy
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from feast import Entity, FeatureService, FeatureStore, FeatureView

from feast_embeddings.materialize import engine
from feast_embeddings.materialize.clock import SimulatedClock, simulated
from feast_embeddings.materialize.declare import EmbeddingSpec, behaviors_of, embedding_specs
from feast_embeddings.materialize.files import BehaviorLog, Workspace
from feast_embeddings.materialize.ledger import Fill, Tick
from feast_embeddings.materialize.online import FillPlace, FillRows, HistoryPlace, OnlineServer, read_fill, read_history
from feast_embeddings.materialize.serving import Vectors, read_vectors
from feast_embeddings.materialize.ticks import Outcome, Runner, listening
from feast_embeddings.materialize.upkeep import retire
from feast_embeddings.models import HistoryBatch, ItemIndex, SequenceConfig, SequenceEncoder, save_encoder
from feast_embeddings.models.types import Ids
from feast_embeddings.transformations import Behaviors

HOUR = 3_600_000_000
DAY = 24 * HOUR
T0 = 1_709_251_200_000_000
"""2024-03-01, UTC: the first behavior of every small shop."""
TYPES = ("view", "purchase")
VIEWS = ("user_embedding", "item_embedding")
DIM = 8
USERS = np.arange(1, 13, dtype=np.int64)
ITEMS = np.arange(101, 131, dtype=np.int64)
SCHEMA = pa.schema(
    [
        ("user", pa.int64()),
        ("item", pa.int64()),
        ("event", pa.string()),
        ("at", pa.timestamp("us", tz="UTC")),
        ("price", pa.float64()),
        ("id", pa.string()),
        ("created", pa.timestamp("us", tz="UTC")),
    ]
)

_YAML = """\
project: {project}
provider: local
registry: data/registry.db
online_store:
  type: feast_embeddings.materialize.online_store.EmbeddingOnlineStore
  connection_string: {connection}
offline_store: {{type: feast_embeddings.materialize.offline_store.EmbeddingOfflineStore}}
batch_engine: {{type: feast_embeddings.materialize.engine.EmbeddingEngine, device: cpu}}
entity_key_serialization_version: 3
"""

_DEFINITIONS = """\
from datetime import timedelta

from feast import Entity, ValueType

from feast_embeddings.materialize import (
    EncoderRef, Full, Hybrid, Incremental, Inputs, Serving, embedding_view, history_view, item_embedding_view,
)
from feast_embeddings.transformations import (
    BehaviorContract, BehaviorType, CleaningRules, activity_view, behavior_source, behaviors_view,
)

user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)
item = Entity(name="item", join_keys=["item_id"], value_type=ValueType.INT64)
contract = BehaviorContract(
    join_key="user_id", entity="user", item="item", behavior_type="event", event_time="at", value="price",
    dedup_id="id", types=(BehaviorType("view"), BehaviorType("purchase")), {contract}
)
log = behavior_source("behavior_log", path="data/behaviors", contract=contract)
behaviors = behaviors_view("behaviors", entity=user, source=log, contract=contract, rules=CleaningRules({rules}))
history = history_view("history", entity=user, behaviors=behaviors)
main = EncoderRef("main", dim={dim})
user_embedding = embedding_view(
    "user_embedding", entity=user, inputs=Inputs(behaviors, history), encoder=main, policy={policy},
)
item_embedding = item_embedding_view("item_embedding", entity=item, encoder=main)
"""


def day(number: float) -> int:
    """Microseconds of a day of the shop."""
    return T0 + round(number * DAY)


def moment(us: int) -> datetime:
    """As Feast takes it."""
    return datetime.fromtimestamp(us / 1_000_000, UTC)


def rows(**columns: Sequence[Any]) -> pa.Table:
    """Raw behaviors from columns; those left out get plain values."""
    count = len(columns["at"])
    full: dict[str, Any] = {
        "user": [1] * count,
        "item": [101] * count,
        "event": ["view"] * count,
        "price": [None] * count,
        "id": [None] * count,
        "created": columns["at"],
    }
    full |= columns
    return pa.table(
        {
            name: pa.array(full[name], pa.int64() if "time" in str(kind) else kind)
            for name, kind in zip(SCHEMA.names, SCHEMA.types, strict=True)
        }
    ).cast(SCHEMA)


def shop(days: int, seed: int = 0) -> pa.Table:
    """Behaviors of ``days`` days: on each, about half of the users do one to four things."""
    rng = np.random.default_rng(seed)
    active = np.argwhere(rng.random((days, len(USERS))) < 0.5)
    active = np.repeat(active, rng.integers(1, 5, len(active)), axis=0)
    count = len(active)
    at = T0 + active[:, 0] * DAY + rng.integers(0, DAY, count)
    return rows(
        user=USERS[active[:, 1]].tolist(),
        item=rng.choice(ITEMS, count).tolist(),
        event=rng.choice(TYPES, count).tolist(),
        price=[float(price) if price > 3 else None for price in rng.uniform(0, 20, count).round(2)],
        id=[f"{seed}-{number}" for number in range(count)],
        at=at.tolist(),
    )


def tiny_encoder(seed: int, *, dim: int = DIM, context: int = 10, items: Ids = ITEMS) -> SequenceEncoder:
    """An encoder of random weights: as good as a trained one, for what is tested here."""
    torch.manual_seed(seed)
    config = SequenceConfig(dim=dim, context=context, blocks=1, heads=1, hidden=8)
    return SequenceEncoder(config, TYPES, ItemIndex(items)).eval()


class StoppedError(Exception):
    """What a test raises at a step."""


@contextmanager
def stopping_at(step: str, nth: int = 1) -> Iterator[None]:
    """Stop the job where it reaches ``step`` for the ``nth`` time."""
    left = nth

    def listener(name: str) -> None:
        nonlocal left
        if name == step:
            left -= 1
            if left == 0:
                raise StoppedError(step)

    with listening(listener):
        yield


@dataclass(frozen=True)
class Frozen:
    """A repo as it was: a copy of its folder, and its keys in Redis."""

    folder: Path
    keys: dict[bytes, bytes]


@dataclass
class SmallRepo:
    """A feature repo in ``folder``; the process must be in that folder."""

    folder: Path
    connection: str
    project: str
    policy: str = "Incremental()"
    contract: str = ""
    rules: str = ""
    dim: int = DIM
    _store: FeatureStore | None = field(default=None, repr=False)

    def write(self) -> SmallRepo:
        """Write the repo's two files."""
        text = _YAML.format(project=self.project, connection=self.connection)
        (self.folder / "feature_store.yaml").write_text(text)
        self.declare(self.policy)
        (self.folder / "data" / "behaviors").mkdir(parents=True)
        return self

    def declare(self, policy: str) -> None:
        """Write the declarations."""
        self.policy = policy
        text = _DEFINITIONS.format(policy=policy, contract=self.contract, rules=self.rules, dim=self.dim)
        (self.folder / "definitions.py").write_text(text)

    def deliver(self, table: pa.Table, name: str) -> None:
        """Add a file of behaviors, or replace it."""
        pq.write_table(table, self.folder / "data" / "behaviors" / f"{name}.parquet")

    def encode_with(self, encoder: SequenceEncoder) -> str:
        """Put an encoder where it is declared, and apply it; its space."""
        space = save_encoder(encoder, self.folder / "data" / "encoders" / "main")
        self.apply()
        return space

    def apply(self) -> None:
        """`feast apply`, in this process."""
        found = runpy.run_path(str(self.folder / "definitions.py"))
        kinds = (Entity, FeatureView, FeatureService)
        self._store = None
        FeatureStore(".").apply([value for value in found.values() if isinstance(value, kinds)])

    def materialize(self, end_us: int, views: list[str] | None = None) -> None:
        """`feast materialize`, as a fresh job."""
        FeatureStore(".").materialize(moment(T0), moment(end_us), views or list(VIEWS))

    def incremental(self, end_us: int, views: list[str] | None = None) -> None:
        """`feast materialize-incremental`, as a fresh job."""
        FeatureStore(".").materialize_incremental(moment(end_us), views or list(VIEWS))

    def run(self, end_us: int, view: str = "user_embedding", *, refresh: bool = False) -> Outcome:
        """The engine's part of such a job alone, as a fresh one: quicker."""
        runner = Runner(self.workspace, self.server, self.store.registry, self.spec(view))
        return runner.refresh(end_us) if refresh else runner.run_due(end_us)

    def retire(self) -> list[str]:
        """`feast-embeddings retire`."""
        return retire(self.workspace, self.server, self.store.registry)

    def freeze(self) -> Frozen:
        """The repo's files and its part of Redis, for any number of later runs from here."""
        copy = self.folder.with_name(f"{self.folder.name}-frozen")
        shutil.copytree(self.folder, copy)
        with self.redis() as client:
            return Frozen(copy, {key: client.dump(key) for key in self._keys(client)})

    def thaw(self, frozen: Frozen) -> None:
        """Back to where :meth:`freeze` was called."""
        shutil.rmtree(self.folder / "data")
        for file in frozen.folder.iterdir():
            if file.is_dir():
                shutil.copytree(file, self.folder / file.name)
            else:
                shutil.copy(file, self.folder / file.name)
        with self.redis() as client:
            client.delete(*self._keys(client))
            for key, dump in frozen.keys.items():
                client.restore(key, 0, dump)
        self._store = None

    @contextmanager
    def redis(self) -> Iterator[Any]:
        """A plain client of the server."""
        with self.server.client() as client:
            yield client

    def _keys(self, client: Any) -> list[bytes]:
        return [key for key in client.scan_iter(count=1000) if self.project.encode() in key]

    # ── what came of it ──────────────────────────────────────────────────────────────────────────────────

    @property
    def store(self) -> FeatureStore:
        """A feature store for looking at things."""
        if self._store is None:
            self._store = FeatureStore(".")
        return self._store

    @property
    def server(self) -> OnlineServer:
        """Its Redis."""
        return OnlineServer.of(self.store.config)

    @property
    def workspace(self) -> Workspace:
        """The state."""
        return Workspace.of(self.store.config)

    def spec(self, view: str = "user_embedding") -> EmbeddingSpec:
        """A view's declaration."""
        (found,) = (spec for spec in embedding_specs(self.store.registry, self.project) if spec.view == view)
        return found

    def fills(self, *states: str, view: str = "user_embedding") -> list[Fill]:
        """A view's fills in these states."""
        return self.workspace.ledger.fills(view=view, states=states or None)

    def last_tick(self, view: str = "user_embedding") -> Tick | None:
        """The last finished tick."""
        return self.workspace.ledger.last_tick(view)

    def counts(self, number: int | None = None) -> dict[str, int]:
        """What became of the behaviors of a tick, or of all ticks."""
        return self.workspace.ledger.counts("user_embedding", number)

    def vectors(self, view: str = "user_embedding") -> Vectors:
        """Vectors of every entity, as an online read returns them."""
        return read_vectors(self.store, f"{view}:embedding", USERS if view == "user_embedding" else ITEMS)

    def rows_of(self, fill: str, view: str = "user_embedding") -> FillRows:
        """Vectors of every entity in one fill."""
        key, ids = ("user_id", USERS) if view == "user_embedding" else ("item_id", ITEMS)
        return read_fill(self.server, FillPlace(view, key, fill, "embedding"), self.dim, ids)

    def histories(self, as_of_us: int = 1 << 60) -> HistoryBatch:
        """Histories of every user, as Redis holds them."""
        return read_history(self.server, HistoryPlace("history", "user_id", "int64"), USERS, as_of_us)

    def behaviors(self, end_us: int) -> Behaviors:
        """Every clean behavior before a time."""
        view = behaviors_of(self.store.registry, self.project, self.spec())
        return BehaviorLog.of(view, self.folder, self.workspace.ledger).until(end_us, 1 << 60)

    def log(self, view: str = "user_embedding") -> pa.Table:
        """The whole embedding log of a view, live and retained, in order."""
        log = self.workspace.log(self.spec(view))
        table = pa.concat_tables([pq.read_table(file, schema=log.schema) for file in log.files()])
        return table.sort_by([("fill", "ascending"), ("tick", "ascending"), (log.join_key, "ascending")])

    def feast_watermark(self, view: str = "user_embedding") -> datetime | None:
        """Feast's own idea of how far a view is."""
        found = FeatureStore(".").registry.get_stream_feature_view(view, self.project)
        return found.most_recent_end_time

    def snapshot(self) -> dict[str, Any]:
        """Everything a reader could see, for comparing two runs bit by bit."""
        live = {name: self.fills("live", view=name) for name in ("user_embedding", "item_embedding")}
        state: dict[str, Any] = {"history": batch_bytes(self.histories())}
        for view, found in live.items():
            state[f"{view} read"] = self.vectors(view).values.tobytes()
            state[f"{view} fills"] = [(fill.fill, fill.state) for fill in self.fills(view=view)]
            state[f"{view} log"] = self.log(view).to_pydict()
            for fill in (*found, *self.fills("retained", view=view)):
                stored = self.rows_of(fill.fill, view)
                state[f"{view} {fill.state}"] = (stored.vectors.tobytes(), stored.tick.tolist())
        return state


def batch_bytes(batch: HistoryBatch) -> tuple[bytes, ...]:
    """A batch of histories, bit by bit, whatever time it was asked for."""
    columns = (batch.offsets, batch.items, batch.behavior_types, batch.times, batch.values)
    return tuple(column.tobytes() for column in columns)


@contextmanager
def retiring_never() -> Iterator[None]:
    """Jobs of the engine have no time for retired fills."""
    before = engine.RETIRE_S
    engine.RETIRE_S = 0.0  # type: ignore[misc]
    try:
        yield
    finally:
        engine.RETIRE_S = before  # type: ignore[misc]


MakeRepo = Callable[..., SmallRepo]


@contextmanager
def at(us: int) -> Iterator[SimulatedClock]:
    """The package's clock at ``us``."""
    with simulated(us) as clock:
        yield clock

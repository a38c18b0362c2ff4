"""A small shop's repo, as the makers of this folder begin it, and jobs on it that stop where they are told to."""

from __future__ import annotations

import runpy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from earlier_head import VIEWS, RankedSum, at, click, day, moment
from feast import Entity, FeatureService, FeatureStore, FeatureView

from feast_embeddings.materialize.steps import listening
from feast_embeddings.materialize.views import EmbeddingSpec
from feast_embeddings.materialize.workspace import embedding_specs
from feast_embeddings.models import ItemIndex, SequenceConfig, SequenceEncoder, save_encoder

PEOPLE, KNOWN, UNSEEN = np.arange(1, 31), np.arange(101, 121), 900
TYPES = ("view", "purchase")
YAML = """\
project: {project}
provider: local
registry: data/registry.db
online_store:
  type: feast_embeddings.materialize.online_store.EmbeddingOnlineStore
  connection_string: {url}
offline_store: {{type: feast_embeddings.materialize.offline_store.EmbeddingOfflineStore}}
batch_engine: {{type: feast_embeddings.materialize.engine.EmbeddingEngine, device: cpu}}
entity_key_serialization_version: 3
"""
DEFINITIONS = '''\
"""A small shop's embeddings."""

from feast import Entity, FeatureService, ValueType

from feast_embeddings.materialize import Hybrid, Incremental, embedding_view, history_view, item_embedding_view, pinned
from feast_embeddings.transformations import BehaviorContract, BehaviorType, behavior_source, behaviors_view

user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)
item = Entity(name="item", join_keys=["item_id"], value_type=ValueType.INT64)
contract = BehaviorContract(
    join_key="user_id",
    entity="user",
    item="item",
    behavior_type="event",
    event_time="at",
    value="price",
    dedup_id="id",
    types=(BehaviorType("view"), BehaviorType("purchase")),
    created_time={created},
)
log = behavior_source("behavior_log", path="data/behaviors", contract=contract)
behaviors = behaviors_view("behaviors", entity=user, source=log, contract=contract)
history = history_view("history", entity=user, behaviors=behaviors)
user_embedding = embedding_view(
    "user_embedding",
    entity=user,
    behaviors=behaviors,
    history=history,
    encoder="main",
    dim=8,
    policy={policy},
)
item_embedding = item_embedding_view("item_embedding", entity=item, encoder="main", dim=8, unseen=user_embedding)
{services}'''
SERVICE = """\
pinned_{number} = FeatureService(
    name="pinned_{number}",
    features=[pinned(user_embedding, "{space}"), pinned(item_embedding, "{space}")],
)
"""
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


class Repo:
    """The repo that is being made, in the folder where the process is."""

    def __init__(self, name: str, url: str, policy: str, created: str | None = None) -> None:
        self.name, self._options = name, {"policy": policy, "created": repr(created)}
        self._spaces: list[str] = []
        Path("data/behaviors").mkdir(parents=True)
        Path("feature_store.yaml").write_text(YAML.format(project=name, url=url))

    @property
    def store(self) -> FeatureStore:
        """A fresh feature store."""
        return FeatureStore(".")

    @property
    def users(self) -> EmbeddingSpec:
        """The declaration of the user view."""
        (spec,) = (each for each in embedding_specs(self.store.registry, self.name) if each.tower == "user")
        return spec

    def encode_with(self, encoder: SequenceEncoder | RankedSum) -> None:
        """Declare an encoder, and the spaces of those before it as pinned."""
        pins = [SERVICE.format(number=number, space=space) for number, space in enumerate(self._spaces, 1)]
        self._spaces.append(save_encoder(encoder, "data/encoders/main"))
        Path("definitions.py").write_text(DEFINITIONS.format(**self._options, services="".join(pins)))
        kinds = (Entity, FeatureView, FeatureService)
        self.store.apply([value for value in runpy.run_path("definitions.py").values() if isinstance(value, kinds)])

    def materialize(self, end: float, views: Sequence[str] = VIEWS, now: float | None = None) -> None:
        """`feast materialize` up to a day, at that day or later."""
        with at(now or end):
            self.store.materialize(moment(0), moment(end), list(views))

    def incremental(self, end: float, *views: str) -> None:
        """`feast materialize-incremental` up to a day, at that day."""
        with at(end):
            self.store.materialize_incremental(moment(end), list(views or VIEWS))


class StoppedError(Exception):
    """Raised at a step, as if the job's process had died there."""


@contextmanager
def stopping_at(step: str, first: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Stop the job where it comes to a step, after something else was done first."""
    came = False

    def listener(name: str) -> None:
        nonlocal came
        if name == step and not came:
            came = True
            first()
            raise StoppedError(step)

    with listening(listener), suppress(StoppedError):
        yield
        raise AssertionError(f"no job came to {step}")


def ranked(seed: int) -> RankedSum:
    """An encoder whose numbers are whole eighths."""
    encoder = RankedSum(TYPES, ItemIndex(KNOWN), dim=8, context=6)
    rows = np.random.default_rng(seed).integers(-8, 9, (len(KNOWN) + 1, 8))
    encoder.item_table.weight.data = torch.from_numpy(rows.astype(np.float32) / 8)
    return encoder.eval()


def sequence(seed: int) -> SequenceEncoder:
    """An encoder such as people train."""
    torch.manual_seed(seed)
    config = SequenceConfig(dim=8, context=6, blocks=1, heads=1, hidden=8)
    return SequenceEncoder(config, TYPES, ItemIndex(KNOWN)).eval()


def deliver(name: str, rows: Sequence[dict[str, Any]]) -> None:
    """A file of behaviors; one that says nothing else was created when it happened."""
    full = [{"created": each["at"], **each} for each in rows]
    columns = {field.name: pa.array([each[field.name] for each in full], _raw(field.type)) for field in SCHEMA}
    pq.write_table(pa.table(columns).cast(SCHEMA), f"data/behaviors/{name}.parquet")


def lived(start: float, end: float, seed: int, count: int, unseen: int = 0) -> list[dict[str, Any]]:
    """Behaviors of random users at random times, some of them with an item that no encoder knows."""
    rng = np.random.default_rng(seed)
    items = rng.choice(KNOWN, count)
    items[:unseen] = UNSEEN + rng.integers(0, 2, unseen)
    times = np.sort(rng.integers(day(start), day(end), count))
    luck, users = rng.random(count), rng.choice(PEOPLE, count)
    more = [{"event": TYPES[int(each < 0.3)], "price": round(each * 9, 2) if each > 0.5 else None} for each in luck]
    columns = (users.tolist(), rng.permutation(items).tolist(), times.tolist(), more)
    return [click(user, item, us, **rest) for user, item, us, rest in zip(*columns, strict=True)]


def _raw(kind: pa.DataType) -> pa.DataType:
    return pa.int64() if pa.types.is_timestamp(kind) else kind

"""Views, rows and readings for tests of the online store."""

import asyncio
from datetime import timedelta

import numpy as np
from feast import Entity, FeatureView, Field, FileSource, PushSource, ValueType
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus
from feast.types import Array, Float32, Int32, Int64

from feast_embeddings.materialize.online import (
    FillPlace,
    FillRef,
    Manifest,
    OnlineServer,
    TickStamp,
    publish_manifest,
    write_fill,
)

START = 1_700_000_000_000_000
HOUR = 3_600_000_000
NAMES = {FieldStatus.PRESENT: "present", FieldStatus.NOT_FOUND: "not found", FieldStatus.OUTSIDE_MAX_AGE: "too old"}
user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)


def declared(name, schema, ttl=timedelta(0), **tags):
    log = FileSource(name=f"{name}_log", path=f"{name}.parquet", timestamp_field="event_timestamp")
    return FeatureView(
        name=name,
        entities=[user],
        ttl=ttl,
        schema=[Field(name="user_id", dtype=Int64), *schema],
        source=PushSource(name=f"{name}_push", batch_source=log),
        tags={f"feast_embeddings.{key}": value for key, value in tags.items()},
    )


def embedding(name, ttl=timedelta(0), encoder="shop"):
    schema = [Field(name="embedding", dtype=Array(Float32))]
    return declared(name, schema, ttl, kind="embedding", encoder=encoder, dim="4")


def history():
    schema = [
        Field(name="history_items", dtype=Array(Int64)),
        Field(name="history_types", dtype=Array(Int32)),
        Field(name="history_times", dtype=Array(Int64)),
        Field(name="history_values", dtype=Array(Float32)),
    ]
    return declared("history", schema, kind="history")


def plain():
    return declared("profile", [Field(name="age", dtype=Int64), Field(name="score", dtype=Float32)])


def door_of(feature_store):
    """Feast's door: the online store."""
    return feature_store._get_provider().online_store


def server_of(store):
    """The server of a feature store in this process; or ``store`` itself, where it is a server already."""
    return store if isinstance(store, OnlineServer) else OnlineServer.of(store.config)


def another_process(feature_store):
    """What another process has: a server that shares nothing with this one's but the data."""
    known = OnlineServer.of(feature_store.config)
    return OnlineServer(known.project, known.address, feature_store.config.online_store)


def place_of(view, fill, join_key="user_id"):
    return FillPlace(view, join_key, fill, "embedding")


def fill(store, view, name, number, ids=(1, 2), event_time=START, tick=1):
    """Writes a fill whose vectors are all ``number``."""
    matrix = np.full((len(ids), 4), number, np.float32)
    write_fill(server_of(store), place_of(view, name), TickStamp(tick, START, event_time), np.array(ids), matrix)


def cut_over(store, generation, retained=None, **fills):
    refs = {view: FillRef(name, f"space-{name}") for view, name in fills.items()}
    kept = {view: (FillRef(name, f"space-{name}"),) for view, name in (retained or {}).items()}
    publish_manifest(server_of(store), Manifest("shop", generation, refs, kept))


def ask(feature_store, features, ids=(1, 2)):
    return feature_store.get_online_features(features, [{"user_id": i} for i in ids], full_feature_names=True)


def ask_async(feature_store, features, ids=(1, 2)):
    async def reading():
        try:
            return await feature_store.get_online_features_async(
                features, [{"user_id": i} for i in ids], full_feature_names=True
            )
        finally:
            await door_of(feature_store).close()

    return asyncio.run(reading())


def statuses(response, column):
    position = list(response.proto.metadata.feature_names.val).index(column)
    return [NAMES[status] for status in response.proto.results[position].statuses]

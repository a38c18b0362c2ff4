"""A Redis cluster of three masters: every door of the online store, over all of them."""

from collections import Counter

import numpy as np
import pytest
from online_fixture import START, ask, cut_over, embedding, history, online_of, user
from servers_fixture import BINARIES, running_cluster

from feast_embeddings.materialize.online import fills as online
from feast_embeddings.materialize.online import keys
from feast_embeddings.materialize.online.removal import batches_from, servers_of
from feast_embeddings.materialize.serving.vectors import read_vectors
from feast_embeddings.models.encoder.batch import HistoryBatch
from feast_embeddings.models.errors import OnlineStoreError

IDS = np.arange(200)


@pytest.fixture
def cluster(redis_server, tmp_path):
    binary = BINARIES["valkey" if redis_server.startswith("embedded") else "redis-server"]
    with running_cluster(binary, tmp_path / "cluster") as servers:
        yield servers


def vectors(seed):
    return np.random.default_rng(seed).normal(size=(len(IDS), 4)).astype(np.float32)


def write(store, view, fill, tick, values):
    place = ("user_id", fill, "embedding", tick, START + tick, START)
    return online.write_fill(*online_of(store), view, *place, IDS, values)


def test_three_masters_serve_one_generation_and_guard_every_row(cluster, make_store):
    # given views on a cluster, written, written again, and by a newer tick
    store = make_store(redis_type="redis_cluster", connection_string=cluster[0].url)
    store.apply([user, embedding("users"), embedding("items"), history()])
    assert [write(store, "users", "a", tick, vectors(tick)) for tick in (1, 1, 2)] == [200, 0, 200]
    write(store, "users", "b", 3, vectors(3))
    write(store, "items", "b", 3, vectors(4))
    offsets = np.arange(len(IDS) + 1)
    batch = HistoryBatch(offsets, IDS, IDS.astype(np.int32), IDS, IDS.astype(np.float32), np.full(len(IDS), START))
    assert online.write_history(*online_of(store), "history", "user_id", 3, START, START, IDS, batch, "int64") == 200

    # then every master holds about a third of the entities
    sizes = [_size(server) for server in cluster]
    assert sum(sizes) == 200
    assert min(sizes) > 30

    # when generations are cut over, then both doors read them whole
    cut_over(store, 1, users="a")
    assert np.array_equal(read_vectors(store, "users:embedding", IDS).values, vectors(2))
    cut_over(store, 2, {"users": "a"}, users="b", items="b")
    answer = ask(store, ["users:embedding", "items:embedding", "history:history_items"], IDS.tolist()).to_dict()
    assert np.array_equal(np.array(answer["users__embedding"], np.float32), vectors(3))
    assert np.array_equal(np.array(answer["items__embedding"], np.float32), vectors(4))
    assert answer["history__history_items"] == [[number] for number in IDS]
    assert read_vectors(store, "users:embedding", [7, 777]).found.tolist() == [True, False]
    assert online.read_manifest(*online_of(store), "shop").generation == 2

    # when the older fill is removed, then nothing of it is left on any master
    online.remove_fill(*online_of(store), "users", "user_id", "a", ["embedding"])
    left = Counter(name for server in cluster for name in _fields(server))
    assert left[keys.timestamp_field("users@a")] == left[keys.feature_field("users@a", "embedding")] == 0
    assert left[keys.timestamp_field("users@b")] == 200

    # when its keys are gone through, master after master, and again from a place on the way, then none is left out
    with online_of(store)[0].redis(store.config) as client:
        servers = servers_of(client)
        assert len(servers) == 3
        steps = list(batches_from(servers, store.project, "user_id", (min(servers), 0), 10))
        stop = next(number for number, (_, (server, cursor)) in enumerate(steps) if server != min(servers) and cursor)
        rest = list(batches_from(servers, store.project, "user_id", steps[stop][1], 10))
    first, again = ([key for batch, _ in part for key in batch] for part in (steps, [*steps[: stop + 1], *rest]))
    assert sorted(first) == sorted(again)
    assert len(set(first)) == len(first) == 200

    # when a master is gone, then the error names the cluster
    cluster[1].kill()
    with pytest.raises(OnlineStoreError, match=f"Redis at redis://127.0.0.1:{cluster[0].port}"):
        write(store, "users", "b", 4, vectors(5))
    online_of(store)[0]._client.close()


def _size(server):
    with server.client() as client:
        return sum(1 for key in client.scan_iter(count=1000) if not key.startswith(b"feast-embeddings"))


def _fields(server):
    with server.client() as client:
        for key in client.scan_iter(count=1000):
            if client.type(key) == b"hash":
                yield from client.hkeys(key)

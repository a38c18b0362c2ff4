"""Where the online store connects to, what its errors name, and processes that share it."""

import os
from datetime import timedelta

import pytest
from online_fixture import ask, cut_over, embedding, fill, history, plain, user

from feast_embeddings.materialize.clock import now_us
from feast_embeddings.materialize.online.addresses import address_of
from feast_embeddings.materialize.serving import read_vectors
from feast_embeddings.models.errors import OnlineStoreError


@pytest.fixture
def store(make_store):
    feature_store = make_store()
    feature_store.apply([user, embedding("users"), embedding("items"), history(), plain()])
    return feature_store


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("redis://someone:s3cr%2Cet@127.0.0.1:1/2", "redis://127.0.0.1:1/2"),
        ("redis://127.0.0.1:1/0?password=s3cret", "redis://127.0.0.1:1/0"),
        ("unix://:s3cret@/nowhere/redis.sock", "unix:///nowhere/redis.sock"),
    ],
)
def test_an_unreachable_server_is_named_without_its_password(make_store, address, shown):
    # given a server that is not there
    store = make_store(connection_string=address)
    store.apply([user, embedding("users"), plain()])

    # then every door says so, and what to do, without the secret
    doors = [
        lambda: ask(store, ["users:embedding"]),
        lambda: ask(store, ["profile:age"]),
        lambda: read_vectors(store, "users:embedding", [1]),
    ]
    for door in doors:
        with pytest.raises(OnlineStoreError) as caught:
            door()
        message = str(caught.value)
        assert f"Redis at {shown} cannot be reached" in message
        assert "online_store.connection_string in feature_store.yaml" in message
        assert "s3cr" not in message


def test_feasts_own_form_is_named_without_its_password():
    assert str(address_of("one:1,two:2,db=1,password=s3cret,ssl=true", None)) == "one:1,two:2,db=1"


def test_an_embedded_store_without_a_repo_says_what_to_write():
    with pytest.raises(OnlineStoreError, match="name an absolute folder: embedded:/var/lib/features"):
        address_of("embedded", None)


def test_a_wrong_password_is_named_as_such(store, make_store, redis_client, redis_server):
    pool = redis_client.connection_pool.connection_kwargs
    target = f"/{pool['path']}"[1:] if "path" in pool else None
    address = f"unix://:wrong@{target}" if target else f"redis://:wrong@127.0.0.1:{pool['port']}/0"
    other = make_store(connection_string=address)
    other.apply([user, embedding("users")])
    with pytest.raises(OnlineStoreError, match="refused the credentials") as caught:
        ask(other, ["users:embedding"])
    assert "wrong@" not in str(caught.value)


def test_the_default_keeps_its_data_in_the_feature_repo(make_store):
    from feast_embeddings.materialize.online.embedded import detach

    store = make_store(connection_string="embedded")
    store.apply([user, embedding("users")])
    fill(store, "users", "a", 1.0)
    cut_over(store, 1, users="a")
    assert read_vectors(store, "users:embedding", [1]).found.all()
    assert (store.repo_path / "data" / "valkey" / "appendonlydir").is_dir()
    detach(store.repo_path / "data" / "valkey")

    # and after a stop the same store attaches anew
    with pytest.raises(OnlineStoreError, match=r"embedded server of .* cannot be reached"):
        read_vectors(store, "users:embedding", [1])
    assert read_vectors(store, "users:embedding", [1]).found.all()
    detach(store.repo_path / "data" / "valkey")


def test_a_forked_reader_has_connections_of_its_own(store):
    # given a parent that has read
    fill(store, "users", "a", 1.0)
    cut_over(store, 1, users="a")
    assert read_vectors(store, "users:embedding", [1]).found.all()

    # when a child reads, and the parent reads on
    child = os.fork()
    if child == 0:
        os._exit(0 if all(read_vectors(store, "users:embedding", [1, 2]).found.all() for _ in range(50)) else 1)
    answers = [read_vectors(store, "users:embedding", [1, 2]).found.all() for _ in range(50)]

    # then both have their answers
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert all(answers)


def test_real_time_is_what_the_ttl_counts_from(make_store):
    store = make_store()
    store.apply([user, embedding("users", timedelta(hours=1))])
    fill(store, "users", "a", 1.0, event_time=now_us())
    cut_over(store, 1, users="a")
    assert read_vectors(store, "users:embedding", [1, 2]).found.all()


def test_a_server_that_is_back_in_a_moment_costs_only_that_moment(make_store, tmp_path):
    import threading

    from servers_fixture import BINARIES, running

    # given a store that names its server by a URL, which has answered before
    (tmp_path / "server").mkdir()
    with running(BINARIES["valkey"], tmp_path / "server") as server:
        store = make_store(connection_string=server.url)
        store.apply([user, embedding("users")])
        assert not read_vectors(store, "users:embedding", [1]).found.any()

        # when the server is gone, and comes back soon
        server.kill()
        back = threading.Timer(0.02, server.start)
        back.start()

        # then the next read waits for it
        assert not read_vectors(store, "users:embedding", [1]).found.any()
        back.join()

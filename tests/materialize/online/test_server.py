"""The one server of a feature repo in a process: who shares it, for how long, and every way to say where it is."""

import asyncio
import gc
import subprocess
import time
import weakref
from contextlib import contextmanager

import numpy as np
import pytest
import redis
from feast.infra.online_stores.redis import RedisOnlineStore
from online_fixture import ask_async, cut_over, embedding, fill, user
from servers_fixture import BINARIES, free_port, running, running_cluster

from feast_embeddings.materialize.online.addresses import Address, address_of
from feast_embeddings.materialize.online.server import OnlineServer
from feast_embeddings.materialize.serving import read_vectors
from feast_embeddings.models.errors import OnlineStoreError

BINARY = BINARIES["valkey"]


def test_all_who_ask_for_a_project_at_an_address_share_its_server(make_store):
    one, other, elsewhere = make_store(), make_store(), make_store("another")
    server = OnlineServer.of(one.config)
    assert OnlineServer.of(one.config) is OnlineServer.of(other.config) is server
    assert OnlineServer.of(elsewhere.config) is not server
    assert server.project == "shop"


def test_a_server_lasts_as_long_as_a_configuration_that_names_it(make_store):
    one, other = make_store(), make_store()
    server = weakref.ref(OnlineServer.of(one.config))
    OnlineServer.of(other.config)
    del one
    gc.collect()
    assert server() is not None
    del other
    gc.collect()
    assert server() is None


def test_each_event_loop_has_connections_of_its_own(make_store):
    server = OnlineServer.of(make_store().config)

    async def pinged():
        assert server.open_async() is server.open_async()
        return await server.open_async().ping(), id(server.open_async())

    with asyncio.Runner() as one, asyncio.Runner() as other:
        found = [runner.run(pinged()) for runner in (one, other, one, other)]
        assert found[:2] == found[2:]
        assert found[0] != found[1]
        for runner in (one, other):
            runner.run(server.close_async())


@pytest.mark.parametrize(
    "text",
    [
        "redis:6379",
        "127.0.0.1:6379,db=0,ssl=true,password=s3cret",
        "a:1,b:2,skip_full_coverage_check=true,socket_timeout=0.5,username=ann,password=123",
        'a:1,client_name="x",retry_on_timeout=false,password=a=b',
    ],
)
def test_feasts_own_form_means_what_it_means_to_feast(text):
    nodes, options = RedisOnlineStore._parse_connection_string(text)
    address = address_of(text, None)
    assert address.nodes() == [(node["host"], int(node["port"])) for node in nodes]
    assert address.options() == options


@pytest.mark.parametrize("text", ["", "db=1", "somewhere", "a:1,password=pass,s3cret", "a:b"])
def test_a_form_that_names_no_server_is_refused_and_no_secret_shown(text):
    with pytest.raises(OnlineStoreError, match=r"online_store\.connection_string .*Write `embedded`") as caught:
        Address("stock", text).nodes()
    assert "s3cret" not in str(caught.value)


def test_a_server_with_a_password_and_a_cluster_are_named_in_feasts_own_form(make_store, tmp_path):
    with running(BINARY, tmp_path / "one") as server:
        with server.client() as client:
            client.config_set("requirepass", "123")
        _serves(make_store(connection_string=f"127.0.0.1:{server.port},db=1,password=123"))
        with redis.Redis(port=server.port, password="123", db=1) as client:  # noqa: S106
            assert client.dbsize() > 2
    with running_cluster(BINARY, tmp_path / "cluster") as servers:
        address = ",".join(f"127.0.0.1:{server.port}" for server in servers)
        _serves(make_store(redis_type="redis_cluster", connection_string=address))


def test_the_master_is_found_through_its_sentinel(make_store, tmp_path):
    with running(BINARY, tmp_path / "master") as master, sentinel_of(master.port, tmp_path) as port:
        options = {"redis_type": "redis_sentinel", "sentinel_master": "ours"}
        _serves(make_store(connection_string=f"127.0.0.1:{port}", **options))
        with master.client() as client:
            assert client.dbsize() > 2


def _serves(store):
    """Rows are written, read through both clients, and the connections are closed."""
    store.apply([user, embedding("users")])
    fill(store, "users", "a", 1.0)
    cut_over(store, 1, users="a")
    assert np.array_equal(read_vectors(store, "users:embedding", [1, 2]).values, np.ones((2, 4)))
    assert ask_async(store, ["users:embedding"]).to_dict()["users__embedding"] == [[1.0] * 4] * 2
    OnlineServer.of(store.config).open().close()


@contextmanager
def sentinel_of(master_port, folder):
    """A sentinel that watches one master, named ``ours``; its port."""
    port = free_port()
    settings = folder / "sentinel.conf"
    lines = (f"port {port}", "bind 127.0.0.1", f"dir {folder}", f"sentinel monitor ours 127.0.0.1 {master_port} 1")
    settings.write_text("\n".join(lines))
    command = [BINARY, str(settings), "--sentinel"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process, redis.Redis(port=port) as client:
        try:
            deadline = time.monotonic() + 20
            while not _answers(client):
                assert time.monotonic() < deadline
                time.sleep(0.02)
            yield port
        finally:
            process.terminate()


def _answers(client):
    try:
        return client.ping()
    except redis.ConnectionError:
        return False

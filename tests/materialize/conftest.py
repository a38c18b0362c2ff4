"""Redis-protocol servers and a small feature repo on one of them."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from feast_embeddings.materialize.embedded import detach

REDIS_BINARY = os.environ.get("REDIS_SERVER_BIN") or shutil.which("redis-server")
SERVERS = ["embedded", *(["redis-server"] if REDIS_BINARY else [])]


@pytest.fixture(scope="session", params=SERVERS)
def running_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Connection string of a server that lasts for the session."""
    folder = tmp_path_factory.mktemp("redis")
    if request.param == "embedded":
        yield f"embedded:{folder}"
        detach(folder)
        return
    port = _free_port()
    command = [str(REDIS_BINARY), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        with redis.Redis(port=port) as client:
            _await(client)
        yield f"redis://127.0.0.1:{port}/0"
        process.terminate()


@pytest.fixture
def redis_server(running_server: str) -> Iterator[str]:
    """Connection string of an empty server: the embedded Valkey, and a real redis-server where there is one."""
    with connect(running_server) as client:
        client.flushall()
    yield running_server


def connect(connection_string: str) -> redis.Redis:
    """A plain client of a server that :func:`redis_server` gave."""
    if connection_string.startswith("embedded:"):
        from feast_embeddings.materialize.embedded import client_name, embedded_server

        path = embedded_server(Path(connection_string.removeprefix("embedded:")))
        return redis.Redis(unix_socket_path=str(path), client_name=client_name())
    return redis.Redis.from_url(connection_string)


@pytest.fixture
def redis_client(redis_server: str) -> Iterator[redis.Redis]:
    """A plain client of ``redis_server``."""
    with connect(redis_server) as client:
        yield client


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _await(client: redis.Redis) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            client.ping()
        except redis.ConnectionError:
            time.sleep(0.02)
        else:
            return
    raise AssertionError("redis-server did not answer within 10 s")

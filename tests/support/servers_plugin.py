"""Redis-protocol servers and a small feature repo on one of them."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml
from feast import FeatureStore
from repo_fixture import SmallRepo
from servers_fixture import BINARIES, running

from feast_embeddings.materialize.online import client_name, detach, embedded_server

STORE = "feast_embeddings.materialize.online_store.EmbeddingOnlineStore"
SERVERS = ["embedded", *(name for name in BINARIES if name == "redis-server")]


@pytest.fixture(scope="session", params=SERVERS)
def running_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Connection string of a server that lasts for the session."""
    folder = tmp_path_factory.mktemp("redis")
    if request.param == "embedded":
        yield f"embedded:{folder}"
        detach(folder)
        return
    with running(BINARIES[request.param], folder) as server:
        yield server.url


@pytest.fixture
def redis_server(running_server: str) -> str:
    """Connection string of an empty server: the embedded Valkey, and a real redis-server where there is one."""
    with connect(running_server) as client:
        client.flushall()
    return running_server


def connect(connection_string: str) -> redis.Redis:
    """A plain client of a server that :func:`redis_server` gave."""
    if connection_string.startswith("embedded:"):
        path = embedded_server(Path(connection_string.removeprefix("embedded:")))
        return redis.Redis(unix_socket_path=str(path), client_name=client_name())
    return redis.Redis.from_url(connection_string)


@pytest.fixture
def redis_client(redis_server: str) -> Iterator[redis.Redis]:
    """A plain client of ``redis_server``."""
    with connect(redis_server) as client:
        yield client


@pytest.fixture
def make_store(redis_server: str, tmp_path: Path) -> Callable[..., FeatureStore]:
    """Makes a FeatureStore of its own folder on ``redis_server``: ``make_store(project, type=…, **online_options)``."""

    def make(project: str = "shop", **options: object) -> FeatureStore:
        options = {"type": STORE, "connection_string": redis_server} | options
        folder = tmp_path / f"{project}-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        settings = {
            "project": project,
            "provider": "local",
            "registry": "registry.db",
            "entity_key_serialization_version": 3,
            "online_store": options,
        }
        (folder / "feature_store.yaml").write_text(yaml.safe_dump(settings))
        return FeatureStore(repo_path=str(folder))

    return make


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Connection string of one embedded server for all small repos; each has a project name of its own."""
    folder = tmp_path_factory.mktemp("valkey")
    yield f"embedded:{folder}"
    detach(folder)


@pytest.fixture
def make_repo(valkey: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., SmallRepo]:
    """Makes a :class:`SmallRepo` and moves into its folder: ``make_repo(policy=…, contract=…, rules=…)``."""

    def make(**options: Any) -> SmallRepo:
        project = f"p{uuid.uuid4().hex[:12]}"
        folder = tmp_path / project
        folder.mkdir()
        monkeypatch.chdir(folder)
        return SmallRepo(folder, valkey, project, **options).write()

    return make

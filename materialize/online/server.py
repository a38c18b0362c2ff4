"""The Redis of one feature repo, as everything below Feast's doors is handed it: clients, named errors, manifests."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary, finalize

import redis
import redis.asyncio as redis_asyncio
from feast import RepoConfig
from feast.infra.online_stores.redis import RedisOnlineStoreConfig, RedisType
from pydantic import field_validator
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff
from redis.retry import Retry

from feast_embeddings.materialize.online.addresses import EMBEDDED, Address, address_of, naming
from feast_embeddings.materialize.online.embedded import client_name, embedded_server
from feast_embeddings.materialize.online.manifest import ManifestCache
from feast_embeddings.models.errors import OnlineStoreError


class OnlineOptions(RedisOnlineStoreConfig):
    """What every ``online_store`` of this package has in feature_store.yaml: the options of Feast's Redis store."""

    connection_string: str = EMBEDDED
    """``embedded`` (data in data/valkey of the feature repo), ``embedded:<folder>``, a ``redis://``, ``rediss://``
    or ``unix://`` URL (percent-encode the password), or Feast's ``host:port,db=0,…``."""

    @field_validator("key_ttl_seconds")
    @classmethod
    def _keep_keys(cls, seconds: int | None) -> int | None:
        """An entity's key holds all its views, and only Redis knows when it is gone: past reads would not agree."""
        if seconds:
            raise OnlineStoreError(
                f"online_store.key_ttl_seconds is {seconds} in feature_store.yaml: Redis would drop vectors that past "
                "reads still return. Take the line out, and give views a ttl, which both kinds of reads keep."
            )
        return seconds


class OnlineServer:
    """The Redis server, or cluster, where one project keeps what it serves. Threads may share it.

    Args:
        project: Feast project.
        address: Where it is.
        options: How it is deployed.

    Attributes:
        project: Feast project.
        address: Where it is.
        manifests: The project's manifests, as this process saw them last.
        chunk_rows: Rows that a tick sends between two looks at whether it should stop.
    """

    chunk_rows = 2048

    def __init__(self, project: str, address: Address, options: OnlineOptions) -> None:
        self.project, self.address, self.manifests = project, address, ManifestCache(project)
        self._options = options
        self._opened: Any = None
        self._opened_async: dict[asyncio.AbstractEventLoop, Any] = {}

    @classmethod
    def of(cls, config: RepoConfig) -> OnlineServer:
        """The server of a feature repo: one per process, shared by all who ask for this project at this address.

        Raises:
            OnlineStoreError: feature_store.yaml names another online store, ``embedded`` without a repo, or another
                version of entity keys than 3.
        """
        known = _of_config.get(id(config))
        return known if known is not None else _remembered(config)

    @contextmanager
    def client(self) -> Iterator[Any]:
        """The redis-py client, with its errors raised as OnlineStoreError.

        Raises:
            OnlineStoreError: The server cannot be reached, or refuses a command inside the block.
        """
        with self.reaching():
            yield self.open()

    @contextmanager
    def reaching(self) -> Iterator[None]:
        """As :meth:`client`, for code that opens the client itself."""
        try:
            with naming(self.address):
                yield
        except OnlineStoreError as error:
            if self.address.kind == EMBEDDED and isinstance(error.__context__, redis.ConnectionError):
                self.forget_clients()  # the next call attaches anew, starting the server if need be
            raise

    def open(self) -> Any:
        """The redis-py client; its errors are its own."""
        client = self._opened
        if client is None:
            client = self._opened = _open(redis, Retry, self.address, self._options)
        return client

    def open_async(self) -> Any:
        """The client of redis-py's asyncio for the event loop that runs: connections belong to their loop."""
        loop = asyncio.get_running_loop()
        client = self._opened_async.get(loop)
        if client is None:
            client = _open(redis_asyncio, AsyncRetry, self.address, self._options)
            living = {each: opened for each, opened in self._opened_async.items() if not each.is_closed()}
            self._opened_async = living | {loop: client}
        return client

    async def close_async(self) -> None:
        """Closes the connections of the event loop that runs."""
        client = self._opened_async.pop(asyncio.get_running_loop(), None)
        if client is not None:
            manager = getattr(getattr(client, "connection_pool", None), "sentinel_manager", None)
            for each in (client, *(manager.sentinels if manager else ())):
                await each.aclose()

    def forget_clients(self) -> None:
        """The next use opens connections anew."""
        self._opened, self._opened_async = None, {}


_lock = threading.Lock()
_servers: WeakValueDictionary[tuple[Any, ...], OnlineServer] = WeakValueDictionary()
_of_config: dict[int, OnlineServer] = {}  # by the identity of a RepoConfig, as long as that lives


def _remembered(config: RepoConfig) -> OnlineServer:
    options = config.online_store
    if not isinstance(options, OnlineOptions):
        raise OnlineStoreError(
            "Embedding views need online_store.type feast_embeddings.materialize.online_store.EmbeddingOnlineStore in "
            f"feature_store.yaml; it is {type(options).__name__.removesuffix('Config')}."
        )
    if config.entity_key_serialization_version != 3:
        # Feast 0.67 writes keys of versions 1 and 2 without the lengths by which a removal finds a project's own.
        raise OnlineStoreError(
            f"entity_key_serialization_version is {config.entity_key_serialization_version} in feature_store.yaml: "
            "nothing could be removed or forgotten under such keys. Set it to 3, and materialize anew."
        )
    address = address_of(options.connection_string, config.repo_path)
    deployed = options.redis_type, options.sentinel_master
    with _lock:
        made = OnlineServer(config.project, address, options)
        server = _servers.setdefault((made.project, address, *deployed), made)
        _of_config[id(config)] = server
        finalize(config, _of_config.pop, id(config), None).atexit = False
    return server


def _after_fork() -> None:
    """Connections of the parent process are not a forked child's, and its threads hold no lock here."""
    global _lock  # noqa: PLW0603 - the parent's may be held
    _lock = threading.Lock()
    for server in list(_servers.values()):
        server.forget_clients()


os.register_at_fork(after_in_child=_after_fork)


def _open(library: Any, retry: Any, address: Address, options: RedisOnlineStoreConfig) -> Any:
    """A client of redis-py, or of its asyncio twin."""
    if address.kind == EMBEDDED:
        return library.Redis(**_to_embedded(address, retry))
    if address.kind == "stock":
        return _open_stock(library, address, options)
    if options.redis_type == RedisType.redis_cluster:
        return library.RedisCluster.from_url(address.target)
    # from_url alone makes connections that give up at once, unlike those of Feast's own form
    return library.Redis.from_url(address.target, retry=retry(ExponentialWithJitterBackoff(cap=1, base=0.05), 3))


def _open_stock(library: Any, address: Address, options: RedisOnlineStoreConfig) -> Any:
    nodes, more = address.nodes(), address.options()
    if options.redis_type == RedisType.redis_cluster:
        return library.RedisCluster(startup_nodes=[library.cluster.ClusterNode(*node) for node in nodes], **more)
    if options.redis_type == RedisType.redis_sentinel:
        return library.Sentinel(nodes, **more).master_for(options.sentinel_master)
    host, port = nodes[0]
    return library.Redis(host=host, port=port, **more)


def _to_embedded(address: Address, retry: type[Retry] | type[AsyncRetry]) -> dict[str, Any]:
    return {
        "unix_socket_path": str(embedded_server(Path(address.target))),
        "client_name": client_name(),
        "retry": retry(NoBackoff(), 1),  # no network lies between: one reconnection tells whether it is there
    }

"""Feast's Redis store, extended: embedding views read one live generation, and are written only by ticks."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, cast

import redis
import redis.asyncio as redis_asyncio
from feast import Entity, FeatureView, RepoConfig
from feast.infra.online_stores.redis import (
    RedisOnlineStore,
    RedisOnlineStoreConfig,
    RedisType,
    _versioned_fv_name,
)
from feast.online_response import OnlineResponse
from feast.protos.feast.types.EntityKey_pb2 import EntityKey as EntityKeyProto
from feast.protos.feast.types.Value_pb2 import Value as ValueProto
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff
from redis.retry import Retry

from feast_embeddings.materialize.online.addresses import EMBEDDED, Address, address_of, naming
from feast_embeddings.materialize.online.commands import reads
from feast_embeddings.materialize.online.embedded import client_name, embedded_server
from feast_embeddings.materialize.online.removal import delete_entities, delete_view
from feast_embeddings.materialize.online.versions import forget_all_changes
from feast_embeddings.materialize.serving.answer import answering, current_answer, with_sessions
from feast_embeddings.materialize.serving.fill_copy import SnapshotCache
from feast_embeddings.materialize.serving.plan import ManifestCache, Read, ResponseRead, RowsRead, kind_of
from feast_embeddings.materialize.stream.push import append_pushed
from feast_embeddings.models.errors import OnlineStoreError
from feast_embeddings.transformations.views import tags

if TYPE_CHECKING:
    from feast_embeddings.materialize.upkeep import LivingRows

Row = tuple[datetime | None, dict[str, ValueProto] | None]
WriteRow = tuple[EntityKeyProto, dict[str, ValueProto], datetime, datetime | None]

_TYPE: Final = "feast_embeddings.materialize.online_store.EmbeddingOnlineStore"


class EmbeddingOnlineStoreConfig(RedisOnlineStoreConfig):
    """Options of ``online_store`` in feature_store.yaml: those of Feast's Redis store."""

    type: Literal["feast_embeddings.materialize.online_store.EmbeddingOnlineStore"] = _TYPE  # type: ignore[assignment]
    connection_string: str = EMBEDDED
    """``embedded`` (data in data/valkey of the feature repo), ``embedded:<folder>``, a ``redis://``, ``rediss://``
    or ``unix://`` URL (percent-encode the password), or Feast's ``host:port,db=0,…``."""


class EmbeddingOnlineStore(RedisOnlineStore):
    """Feast's Redis store for ordinary views; one consistent generation per answer for embedding views.

    Views are recognized by their tags (see ``keys.py``). Rows past a view's ttl and entities without a row are
    null, with status OUTSIDE_MAX_AGE and NOT_FOUND.
    """

    def __init__(self) -> None:
        self.manifests = ManifestCache()
        self.snapshots = SnapshotCache()
        self._config: RepoConfig | None = None
        self._address: Address | None = None
        self._process = os.getpid()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._rows: LivingRows | None = None
        self._followed: frozenset[str] = frozenset()

    async def initialize(self, config: RepoConfig) -> None:
        """When ``feast serve`` starts: loads the encoders that session views will answer with."""
        from feast_embeddings.materialize.serving.sessions import warm_up_quietly

        await asyncio.to_thread(warm_up_quietly, config)

    def follow(self, encoder: str) -> None:
        """Read this encoder's manifest along with histories from now on: a session view will ask for it."""
        self._followed |= {encoder}

    def get_online_features(
        self, config: RepoConfig, features: Any, entity_rows: Any, *request: Any, **options: Any
    ) -> OnlineResponse:
        """As Feast's; session views answer in the generation that the rest of the answer was read under."""
        _serve_sessions()
        with answering(self, config):
            return super().get_online_features(config, features, with_sessions(entity_rows), *request, **options)

    async def get_online_features_async(
        self, config: RepoConfig, features: Any, entity_rows: Any, *request: Any, **options: Any
    ) -> OnlineResponse:
        """As :meth:`get_online_features`."""
        _serve_sessions()
        with answering(self, config):
            rows = with_sessions(entity_rows)
            return await super().get_online_features_async(config, features, rows, *request, **options)

    @contextmanager
    def redis(self, config: RepoConfig) -> Iterator[Any]:
        """The redis-py client of ``config``, with its errors raised as OnlineStoreError.

        Raises:
            OnlineStoreError: The server cannot be reached, or refuses a command inside the block.
        """
        with self._reaching(config):
            yield self._get_client(config.online_store)

    @contextmanager
    def _reaching(self, config: RepoConfig) -> Iterator[None]:
        address = self._bind(config)
        try:
            with naming(address):
                yield
        except OnlineStoreError as error:
            if address.kind == EMBEDDED and isinstance(error.__context__, redis.ConnectionError):
                self._forget_clients()  # the next call attaches anew, starting the server if need be
            raise

    def _bind(self, config: RepoConfig) -> Address:
        """Remembers where ``config`` points, since Feast hands ``_get_client`` only a part of it."""
        if self._process != os.getpid():
            self._process = os.getpid()
            self._forget_clients()  # connections of the parent process are not this one's
        if self._address is None or self._config is not config:
            address = address_of(config.online_store.connection_string, config.repo_path)
            if address != self._address:
                self._forget_clients()
            self._config, self._address = config, address
        return self._address

    def _forget_clients(self) -> None:
        self._client = self._client_async = None

    def _get_client(self, online_store_config: RedisOnlineStoreConfig) -> Any:
        address = self._here(online_store_config)
        if address.kind == "stock":
            return super()._get_client(online_store_config)
        if self._client is None:
            self._client = _open(redis, Retry, address, online_store_config)
        return self._client

    async def _get_client_async(self, online_store_config: RedisOnlineStoreConfig) -> Any:
        address, loop = self._here(online_store_config), asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop, self._client_async = loop, None  # connections belong to the loop that opened them
        if address.kind == "stock":
            return await super()._get_client_async(online_store_config)
        if self._client_async is None:
            self._client_async = _open(redis_asyncio, AsyncRetry, address, online_store_config)
        return self._client_async

    def _here(self, online_store_config: RedisOnlineStoreConfig) -> Address:
        return self._address or address_of(online_store_config.connection_string, None)

    async def close(self) -> None:
        """Closes the asynchronous connections, which belong to the event loop that ends."""
        if self._client_async is not None:
            await self._client_async.aclose()
            self._client_async = None

    def online_read(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKeyProto],
        requested_features: list[str] | None = None,
    ) -> list[Row]:
        """Rows of one view, in the order of ``entity_keys``: (None, None) where there is none.

        Raises:
            OnlineStoreError: Redis cannot be reached.
            SpaceError: The view is pinned to a space that is not served.
        """
        with self._reaching(config):
            if kind_of(table) is None:
                return super().online_read(config, table, entity_keys, requested_features)
            read = RowsRead(self.manifests, config, table, entity_keys, requested_features)
            while not read.settled(self.run(config, read)):
                pass
            return read.rows()

    async def online_read_async(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKeyProto],
        requested_features: list[str] | None = None,
    ) -> list[Row]:
        """As :meth:`online_read`."""
        with self._reaching(config):
            if kind_of(table) is None:
                return await super().online_read_async(config, table, entity_keys, requested_features)
            read = RowsRead(self.manifests, config, table, entity_keys, requested_features)
            while not read.settled(await self._run_async(config, read)):
                pass
            return read.rows()

    def _read_features_per_fv(
        self, config: RepoConfig, grouped_refs: Sequence[Any], *request: Any, **options: Any
    ) -> None:
        with self._reaching(config):
            if all(kind_of(table) is None for table, _ in grouped_refs):
                super()._read_features_per_fv(config, grouped_refs, *request, **options)
                return
            read = ResponseRead(self, self._followed, config, grouped_refs, *request, **options)
            while not read.settled(self.run(config, read)):
                pass
            self._answer(read)

    async def _read_features_per_fv_async(
        self, config: RepoConfig, grouped_refs: Sequence[Any], *request: Any, **options: Any
    ) -> None:
        with self._reaching(config):
            if all(kind_of(table) is None for table, _ in grouped_refs):
                await super()._read_features_per_fv_async(config, grouped_refs, *request, **options)
                return
            read = ResponseRead(self, self._followed, config, grouped_refs, *request, **options)
            while not read.settled(await self._run_async(config, read)):
                pass
            self._answer(read)

    def _answer(self, read: ResponseRead) -> None:
        read.respond()
        answer = current_answer()
        if answer is not None:
            answer.manifests = read.manifests

    def run(self, config: RepoConfig, read: Read) -> list[Any]:
        """Sends a read's commands in one pipeline; its replies."""
        pipe = reads(self._get_client(config.online_store))
        read.queue(pipe)
        return cast(list[Any], pipe.execute())

    async def _run_async(self, config: RepoConfig, read: Read) -> list[Any]:
        client = await self._get_client_async(config.online_store)
        async with client.pipeline(transaction=False) as pipe:
            read.queue(pipe)
            return cast(list[Any], await pipe.execute())

    def online_write_batch(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: list[WriteRow],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Writes rows of an ordinary view as stock Feast does; behaviors of the erased are left out.

        Behaviors that were pushed (a materialization, unlike a push, has a ``progress``) are appended to their stream
        first, if one is declared: at least once, since a caller that sees an error pushes them again.

        Raises:
            OnlineStoreError: The view is written by ticks alone, or Redis cannot be reached.
        """
        _refuse_own(table)
        with self._reaching(config):
            rows = self._living(config, table, data)
            if progress is None:
                append_pushed(self._get_client(config.online_store), config.project, table, rows)
            super().online_write_batch(config, table, rows, progress)

    async def online_write_batch_async(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: list[WriteRow],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """As :meth:`online_write_batch`."""
        _refuse_own(table)
        with self._reaching(config):
            rows = self._living(config, table, data)
            if progress is None:
                client = self._get_client(config.online_store)
                await asyncio.to_thread(append_pushed, client, config.project, table, rows)
            await super().online_write_batch_async(config, table, rows, progress)

    def _living(self, config: RepoConfig, table: FeatureView, data: list[WriteRow]) -> list[WriteRow]:
        if (table.tags or {}).get(tags.KIND) != tags.BEHAVIORS_KIND:
            return data
        from feast_embeddings.materialize.upkeep import LivingRows

        if self._rows is None or self._rows.config is not config:
            self._rows = LivingRows(config)
        return self._rows.of(table, data)

    def delete_table(self, config: RepoConfig, table: FeatureView) -> None:
        """Removes a view's fields, of all its fills, from exactly this project's entities."""
        with self.redis(config) as client:
            delete_view(client, config.project, table, _versioned_fv_name(table, config))
            forget_all_changes(client, config.project, table.name)

    def delete_entity_values(self, config: RepoConfig, join_keys: list[str]) -> None:
        """Removes every entity with these join keys from exactly this project."""
        with self.redis(config) as client:
            delete_entities(client, config.project, join_keys)

    def update(
        self,
        config: RepoConfig,
        tables_to_delete: Sequence[FeatureView],
        tables_to_keep: Sequence[FeatureView],
        entities_to_delete: Sequence[Entity],
        entities_to_keep: Sequence[Entity],
        partial: bool,
    ) -> None:
        """Removes the data of deleted views; reaches for Redis only when there are any."""
        self._bind(config)
        super().update(config, tables_to_delete, tables_to_keep, entities_to_delete, entities_to_keep, partial)

    def teardown(self, config: RepoConfig, tables: Sequence[FeatureView], entities: Sequence[Entity]) -> None:
        """Removes every entity of the tables, and their encoders' manifests."""
        with self.redis(config) as client:
            super().teardown(config, tables, entities)
            self.manifests.delete(client, config.project, tables)
            for table in tables:
                forget_all_changes(client, config.project, table.name)


def _serve_sessions() -> None:
    """Make :mod:`session` the server of sessions; imported late, because it reads through this module."""
    from feast_embeddings.materialize.serving import sessions  # noqa: F401


def _open(library: Any, retry: Any, address: Address, config: RedisOnlineStoreConfig) -> Any:
    """A client of redis-py, or of its asyncio twin, for an address that is not in Feast's own form."""
    if address.kind == EMBEDDED:
        return library.Redis(**_to_embedded(address, retry))
    if config.redis_type == RedisType.redis_cluster:
        return library.RedisCluster.from_url(address.target)
    # from_url alone makes connections that give up at once, unlike those of Feast's own form
    return library.Redis.from_url(address.target, retry=retry(ExponentialWithJitterBackoff(cap=1, base=0.05), 3))


def _to_embedded(address: Address, retry: type[Retry] | type[AsyncRetry]) -> dict[str, Any]:
    return {
        "unix_socket_path": str(embedded_server(Path(address.target))),
        "client_name": client_name(),
        "retry": retry(NoBackoff(), 1),  # no network lies between: one reconnection tells whether it is there
    }


def _refuse_own(table: FeatureView) -> None:
    kind = kind_of(table)
    if kind is not None:
        raise OnlineStoreError(
            f"Feature view {table.name!r} is an {kind} view: only ticks write it, so that training can read back "
            "what was served. Append behaviors to its behavior table and run `feast materialize-incremental`, "
            "or `feast materialize` to fill it anew."
        )

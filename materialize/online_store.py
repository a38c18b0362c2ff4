"""Feast's Redis store, extended: embedding views read one live generation, and are written only by ticks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Final, Literal

from feast import Entity, FeatureStore, FeatureView, RepoConfig
from feast.infra.online_stores.helpers import compute_versioned_name
from feast.infra.online_stores.redis import RedisOnlineStore, RedisOnlineStoreConfig
from feast.infra.registry.base_registry import BaseRegistry
from feast.online_response import OnlineResponse
from feast.protos.feast.types.EntityKey_pb2 import EntityKey as EntityKeyProto
from feast.protos.feast.types.Value_pb2 import Value as ValueProto

from feast_embeddings.materialize.declare import check_inputs, kind_of, on_demand_of
from feast_embeddings.materialize.online import (
    OnlineOptions,
    OnlineServer,
    remove_entities,
    remove_records,
    remove_view,
)
from feast_embeddings.materialize.serving import (
    Request,
    ResponseRead,
    Row,
    RowsRead,
    answer_of,
    answering,
    warm_up_quietly,
    with_sessions,
)
from feast_embeddings.materialize.stream import append_pushed, check_pushed, newest_first
from feast_embeddings.materialize.upkeep import LivingRows
from feast_embeddings.models.errors import OnlineStoreError
from feast_embeddings.transformations.views import tags

WriteRow = tuple[EntityKeyProto, dict[str, ValueProto], datetime, datetime | None]

_TYPE: Final = "feast_embeddings.materialize.online_store.EmbeddingOnlineStore"


class EmbeddingOnlineStoreConfig(OnlineOptions):
    """Options of ``online_store`` in feature_store.yaml: those of Feast's Redis store."""

    type: Literal["feast_embeddings.materialize.online_store.EmbeddingOnlineStore"] = _TYPE  # type: ignore[assignment]


class EmbeddingOnlineStore(RedisOnlineStore):
    """Feast's Redis store for ordinary views; one consistent generation per answer for embedding views.

    Views are recognized by their tags. Rows past a view's ttl and entities without a row are null, with status
    OUTSIDE_MAX_AGE and NOT_FOUND.
    """

    def __init__(self) -> None:
        self._server: OnlineServer | None = None
        self._rows: LivingRows | None = None

    async def initialize(self, config: RepoConfig) -> None:
        """When ``feast serve`` starts: loads the encoders that session views will answer with."""
        await asyncio.to_thread(warm_up_quietly, config)

    async def close(self) -> None:
        """Closes the asynchronous connections, which belong to the event loop that ends."""
        if self._server is not None:
            await self._server.close_async()

    def _bound(self, config: RepoConfig) -> OnlineServer:
        """The server of ``config``, remembered, since Feast hands ``_get_client`` only a part of it."""
        self._server = OnlineServer.of(config)
        return self._server

    def _get_client(self, online_store_config: RedisOnlineStoreConfig) -> Any:
        return self._known(online_store_config).open()

    async def _get_client_async(self, online_store_config: RedisOnlineStoreConfig) -> Any:
        return self._known(online_store_config).open_async()

    def _known(self, online_store_config: RedisOnlineStoreConfig) -> OnlineServer:
        if self._server is None:
            raise OnlineStoreError(
                f"The online store of {type(online_store_config).__name__} was asked for its client before it was "
                "given a feature repo's configuration: read or write through a FeatureStore first."
            )
        return self._server

    def get_online_features(
        self, config: RepoConfig, features: Any, entity_rows: Any, *request: Any, **options: Any
    ) -> OnlineResponse:
        """As Feast's; session views answer in the generation that the rest of the answer was read under.

        Raises:
            DeclarationError: A name would stand for two things, in the answer or in an on-demand view's inputs.
        """
        _check_inputs(features, *request, **options)
        with answering(answer_of(config)):
            return super().get_online_features(config, features, with_sessions(entity_rows), *request, **options)

    async def get_online_features_async(
        self, config: RepoConfig, features: Any, entity_rows: Any, *request: Any, **options: Any
    ) -> OnlineResponse:
        """As :meth:`get_online_features`."""
        _check_inputs(features, *request, **options)
        with answering(answer_of(config)):
            rows = with_sessions(entity_rows)
            return await super().get_online_features_async(config, features, rows, *request, **options)

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
        with self._bound(config).reaching():
            if tags.kind_of(table) is None:
                return super().online_read(config, table, entity_keys, requested_features)
        read = RowsRead(self._bound(config), config, table, entity_keys, requested_features)
        read.run()
        return read.rows()

    async def online_read_async(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKeyProto],
        requested_features: list[str] | None = None,
    ) -> list[Row]:
        """As :meth:`online_read`."""
        with self._bound(config).reaching():
            if tags.kind_of(table) is None:
                return await super().online_read_async(config, table, entity_keys, requested_features)
        read = RowsRead(self._bound(config), config, table, entity_keys, requested_features)
        await read.run_async()
        return read.rows()

    def _read_features_per_fv(
        self, config: RepoConfig, grouped_refs: Sequence[Any], *request: Any, **options: Any
    ) -> None:
        server = self._bound(config)
        asked = Request(*request, **options)
        asked.check_names(grouped_refs)
        if all(tags.kind_of(table) is None for table, _ in grouped_refs) and asked.complete:
            with server.reaching():
                super()._read_features_per_fv(config, grouped_refs, *request, **options)
            return
        read = ResponseRead(server, config, grouped_refs, asked)
        read.run()
        read.respond()

    async def _read_features_per_fv_async(
        self, config: RepoConfig, grouped_refs: Sequence[Any], *request: Any, **options: Any
    ) -> None:
        server = self._bound(config)
        asked = Request(*request, **options)
        asked.check_names(grouped_refs)
        if all(tags.kind_of(table) is None for table, _ in grouped_refs) and asked.complete:
            with server.reaching():
                await super()._read_features_per_fv_async(config, grouped_refs, *request, **options)
            return
        read = ResponseRead(server, config, grouped_refs, asked)
        await read.run_async()
        read.respond()

    def online_write_batch(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: list[WriteRow],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Writes rows of an ordinary view as stock Feast does; of behaviors, the latest of each entity.

        What is no behavior, and what an erasure covers, is left out.

        Behaviors that were pushed (a materialization, unlike a push, has a ``progress``) are appended to their stream
        first, if one is declared: at least once, since a caller that sees an error pushes them again.

        Raises:
            OnlineStoreError: The view is written by ticks alone, Redis cannot be reached, or a behavior has no entity
                or no time: then nothing is written.
        """
        _refuse_own(table)
        server = self._bound(config)
        with server.reaching():
            rows = self._living(config, table, data)
            if progress is None:
                append_pushed(server.open(), config.project, table, rows)
                rows = newest_first(table, rows)
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
        server = self._bound(config)
        with server.reaching():
            rows = self._living(config, table, data)
            if progress is None:
                await asyncio.to_thread(append_pushed, server.open(), config.project, table, rows)
                rows = newest_first(table, rows)
            await super().online_write_batch_async(config, table, rows, progress)

    def _living(self, config: RepoConfig, table: FeatureView, data: list[WriteRow]) -> list[WriteRow]:
        if (table.tags or {}).get(tags.KIND) != tags.BEHAVIORS_KIND:
            return data
        check_pushed(table, data)
        if self._rows is None or self._rows.config is not config:
            self._rows = LivingRows(config)
        return self._rows.of(table, data)

    def delete_table(self, config: RepoConfig, table: FeatureView) -> None:
        """Removes a view's fields, of all its fills, from exactly this project's entities."""
        name = compute_versioned_name(table, config.registry.enable_online_feature_view_versioning)
        remove_view(self._bound(config), table, name)

    def delete_entity_values(self, config: RepoConfig, join_keys: list[str]) -> None:
        """Removes every entity with these join keys from exactly this project."""
        remove_entities(self._bound(config), join_keys)

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
        self._bound(config)
        super().update(config, tables_to_delete, tables_to_keep, entities_to_delete, entities_to_keep, partial)

    def teardown(self, config: RepoConfig, tables: Sequence[FeatureView], entities: Sequence[Entity]) -> None:
        """Removes every entity of the project's views, and their encoders' manifests; streams stay, as sources do."""
        # FeatureStore.teardown of Feast 0.67 leaves out stream views, which embedding views are.
        views = [*tables, *FeatureStore(config=config).list_stream_feature_views()]
        super().teardown(config, views, entities)
        for table in views:
            remove_records(self._bound(config), table)


def _check_inputs(features: Any, registry: BaseRegistry, project: str, *_: Any, **__: Any) -> None:
    check_inputs(on_demand_of(features, registry, project), registry, project)


def _refuse_own(table: FeatureView) -> None:
    kind = kind_of(table)
    if kind is not None:
        raise OnlineStoreError(
            f"Feature view {table.name!r} is an {kind} view: only ticks write it, so that training can read back "
            "what was served. Append behaviors to its behavior table and run `feast materialize-incremental`, "
            "or `feast materialize` to fill it anew."
        )

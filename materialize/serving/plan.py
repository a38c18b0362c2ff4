"""What one online read asks Redis for, and what its answer means; the same for sync and async callers.

A read plans with the manifests it knows, and asks for them again at the end of the same pipeline. If one has
changed since, it plans anew. So every row of an answer comes from the generation that was live while it was
read, and all views of one encoder from the same one. In the usual case that is a single round trip.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from feast import FeatureView, RepoConfig, utils
from feast.infra.online_stores.redis import _versioned_fv_name
from feast.protos.feast.serving.ServingService_pb2 import GetOnlineFeaturesResponse
from feast.protos.feast.types.EntityKey_pb2 import EntityKey as EntityKeyProto
from feast.protos.feast.types.Value_pb2 import Value as ValueProto

from feast_embeddings.materialize import clock
from feast_embeddings.materialize.online import keys, tick_stamps, wire
from feast_embeddings.materialize.online.commands import Strings, queue_hmgets
from feast_embeddings.materialize.online.framed import FramedRows
from feast_embeddings.materialize.online.manifest import Manifest
from feast_embeddings.materialize.serving.response import Entities, add_columns, entities_of, redis_keys
from feast_embeddings.models.errors import SpaceError
from feast_embeddings.models.types import Int64s
from feast_embeddings.transformations.views import tags

if TYPE_CHECKING:
    from feast_embeddings.materialize.online_store import EmbeddingOnlineStore

Row = tuple[datetime | None, dict[str, ValueProto] | None]
Kind = Literal["embedding", "history"]
MAX_PLANS: Final = 10  # copies of a whole fill, each of which a writer may outrun
_READ_PLANS: Final = 100  # a starved reader did meet ten cutovers in a row, and then found its fill removed
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def kind_of(table: Any) -> Kind | None:
    """``embedding`` or ``history`` for a view of this package, None for any other."""
    kind = (getattr(table, "tags", None) or {}).get(tags.KIND)
    return kind if kind in (tags.EMBEDDING_KIND, tags.HISTORY_KIND) else None


def pinned_space(table: FeatureView) -> str | None:
    """The space a projection named ``<view>@<space>`` is pinned to; None for a plain one."""
    alias = table.projection.name_alias or ""
    prefix = keys.qualified(table.name, "")
    return alias[len(prefix) :] if alias.startswith(prefix) and alias != prefix else None


def ttl_us(table: FeatureView) -> int:
    """The view's ttl in microseconds; 0: forever."""
    return (table.ttl or timedelta(0)) // timedelta(microseconds=1)


class ManifestCache:
    """The manifests this process has seen last, by Redis key. Threads may share it: a stale one costs a retry."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[bytes, Manifest]] = {}

    def get(self, project: str, encoder: str) -> Manifest | None:
        """The manifest as last seen."""
        known = self._known.get(keys.manifest_key(project, encoder))
        return known[1] if known else None

    def learn(self, project: str, encoder: str, text: bytes | None) -> Manifest | None:
        """Takes in what Redis holds now.

        Raises:
            OnlineStoreError: ``text`` is not a manifest.
        """
        key = keys.manifest_key(project, encoder)
        known = self._known.get(key)
        if text is None:
            self._known.pop(key, None)
            return None
        if known is None or known[0] != text:
            known = self._known[key] = (text, Manifest.from_json(encoder, text))
        return known[1]

    def delete(self, client: Any, project: str, tables: Iterable[Any]) -> None:
        """Removes the manifests of these views' encoders from Redis, and forgets them."""
        embeddings = [table for table in tables if kind_of(table) == tags.EMBEDDING_KIND]
        for encoder in {table.tags[tags.ENCODER] for table in embeddings}:
            client.delete(keys.manifest_key(project, encoder))
            self.learn(project, encoder, None)


@dataclass(slots=True)
class ViewRead:
    """The part of a read that concerns one view.

    Attributes:
        table: The view.
        features: Features to read, in this order.
        entity_keys: Redis keys [n].
        name: Name its fields are stored under; None while it has no fill.
        problem: Why a pinned space cannot be read, by the manifest of this plan.
        replies: One reply per key: the features' values, then the timestamp's.
    """

    table: FeatureView
    features: list[str]
    entity_keys: Strings
    name: str | None = None
    problem: SpaceError | None = None
    replies: Sequence[Sequence[bytes | None]] = field(default_factory=list)

    @property
    def encoder(self) -> str | None:
        """Encoder whose manifest names the fill; None for a view that has no fills."""
        return self.table.tags[tags.ENCODER] if kind_of(self.table) == tags.EMBEDDING_KIND else None

    def resolve(self, config: RepoConfig, manifests: Mapping[str, Manifest | None]) -> None:
        """Finds the name under which the view is stored."""
        self.problem = None
        if self.encoder is None:
            plain = kind_of(self.table) is None
            self.name = _versioned_fv_name(self.table, config) if plain else self.table.name
            return
        manifest = manifests[self.encoder] or Manifest(self.encoder, 0, {})
        try:
            fill = manifest.fill_of(self.table.name, pinned_space(self.table))
        except SpaceError as error:
            fill, self.problem = None, error
        self.name = keys.qualified(self.table.name, fill.fill) if fill else None

    def fields(self) -> list[bytes] | None:
        """Hash fields to ask for; None if there is nothing to ask."""
        if self.name is None:
            return None
        asked = [keys.feature_field(self.name, feature) for feature in self.features]
        return [*asked, keys.timestamp_field(self.name)]

    def times_us(self) -> Int64s:
        """Event times int64 [n] in microseconds; 0 where there is no row."""
        if isinstance(self.replies, FramedRows):
            return tick_stamps.event_times_of_rows(self.replies.column(-1))
        return tick_stamps.event_times([reply[-1] for reply in self.replies])

    def expired(self) -> list[int]:
        """Positions of the rows past the view's ttl, whose values are withheld."""
        ttl = ttl_us(self.table)
        if ttl == 0 or not self.replies:
            return []
        times = self.times_us()
        found: list[int] = np.flatnonzero((times > 0) & (clock.now_us() - times > ttl)).tolist()
        return found

    def rows(self) -> list[Row]:
        """Rows as Feast wants them: (None, None) where there is none, a time without values past the ttl."""
        if self.name is None:
            return [(None, None)] * len(self.entity_keys)
        expired = set(self.expired())
        rows: list[Row] = []
        for position, (us, reply) in enumerate(zip(self.times_us().tolist(), self.replies, strict=True)):
            if reply[-1] is None:
                rows.append((None, None))
            else:
                values = None if position in expired else _values(self.table.name, self.features, reply)
                rows.append((_EPOCH + timedelta(microseconds=us), values))
        return rows


def _values(view: str, features: Sequence[str], reply: Sequence[bytes | None]) -> dict[str, ValueProto]:
    stored = {feature: value or b"" for feature, value in zip(features, reply[:-1], strict=True)}
    if tags.EMBEDDING in stored:
        stored[tags.EMBEDDING] = wire.as_float_list(stored[tags.EMBEDDING], view)
    return {feature: ValueProto.FromString(value) for feature, value in stored.items()}


class Read:
    """A plan for several views: queue it, then ask whether the replies settle it, until they do."""

    def __init__(
        self, cache: ManifestCache, config: RepoConfig, views: list[ViewRead], followed: Iterable[str] = ()
    ) -> None:
        self.views = views
        self._cache, self._config = cache, config
        self._plans = 0
        encoders = dict.fromkeys([*(view.encoder for view in views), *followed])
        self.manifests = {e: cache.get(config.project, e) for e in encoders if e is not None}
        self._resolve()

    def _resolve(self) -> None:
        self._plans += 1
        for view in self.views:
            view.resolve(self._config, self.manifests)

    def queue(self, pipe: Any) -> None:
        """Queues the rows of every view, then the manifests: sync and async pipelines queue alike."""
        for view in self.views:
            fields = view.fields()
            if fields:
                queue_hmgets(pipe, view.entity_keys, fields)
        for encoder in self.manifests:
            pipe.get(keys.manifest_key(self._config.project, encoder))

    def settled(self, replies: Any) -> bool:
        """Takes the replies in; False if a manifest has changed, and the read must be queued once more.

        Raises:
            SpaceError: A view is pinned to a space that is not served.
            OnlineStoreError: A manifest is unreadable.
        """
        rows = len(replies) - len(self.manifests)
        current = {
            encoder: self._cache.learn(self._config.project, encoder, text)
            for encoder, text in zip(self.manifests, replies[rows:], strict=True)
        }
        if current != self.manifests and self._plans < _READ_PLANS:
            self.manifests = current
            self._resolve()
            return False
        start = 0
        for view in self.views:
            if view.problem is not None:
                raise view.problem
            stop = start + (len(view.entity_keys) if view.name is not None else 0)
            view.replies = replies[start:stop]
            start = stop
        return True


class RowsRead(Read):
    """One view, by stock entity keys: behind ``online_read``."""

    def __init__(
        self,
        cache: ManifestCache,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: Sequence[EntityKeyProto],
        features: Sequence[str] | None,
    ) -> None:
        wanted = list(features) if features else [feature.name for feature in table.features]
        super().__init__(cache, config, [ViewRead(table, wanted, redis_keys(config, entity_keys))])

    def rows(self) -> list[Row]:
        """One row per entity key."""
        return self.views[0].rows()


class ResponseRead(Read):
    """All views of a ``get_online_features`` call, ordinary ones included."""

    def __init__(
        self,
        store: EmbeddingOnlineStore,
        followed: Iterable[str],
        config: RepoConfig,
        grouped_refs: Sequence[tuple[FeatureView, list[str]]],
        join_key_values: Any,
        entity_name_to_join_key_map: Any,
        online_features_response: GetOnlineFeaturesResponse,
        full_feature_names: bool,
        include_feature_view_version_metadata: bool,
    ) -> None:
        self._store, self._response = store, online_features_response
        self._options = (full_feature_names, include_feature_view_version_metadata)
        self._entities: list[Entities] = []
        views = []
        for table, features in grouped_refs:
            entities = entities_of(config, table, join_key_values, entity_name_to_join_key_map)
            self._entities.append(entities)
            views.append(ViewRead(table, list(features), entities.redis_keys))
        histories = any(kind_of(table) == tags.HISTORY_KIND for table, _ in grouped_refs)
        super().__init__(store.manifests, config, views, followed if histories else ())

    def respond(self) -> None:
        """Fills the response, view after view."""
        for view, entities in zip(self.views, self._entities, strict=True):
            if kind_of(view.table) is not None:
                row_of, expired = entities.row_of, view.expired()
                add_columns(self._response, view.table, view.features, view.replies, expired, row_of, *self._options)
                continue
            asked = [*view.features, f"_ts:{view.name}"]  # stock Feast leaves it in, and drops it later
            rows = self._store._convert_redis_values_to_protobuf(view.replies, view.name or "", asked)
            places, length = entities.places(), len(entities.row_of)
            full_names, with_versions = self._options
            utils._populate_response_from_feature_data(
                asked, rows, places, self._response, full_names, view.table, length, with_versions
            )

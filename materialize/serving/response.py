"""Entities of a ``get_online_features`` request, and its response, with the bytes that Redis keeps passed through.

Stock Feast builds several messages per entity in Python: its key, its timestamp, each value. Here the keys of all
entities are laid out at once, and a feature's column is put together as bytes and parsed as one message. The answer
is the same, message for message. Private names of Feast stand here because it has no public ones for this.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import compress
from typing import Any, Final, cast

import numpy as np
from feast import FeatureView, RepoConfig, utils
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.infra.online_stores.helpers import compute_versioned_name
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus, GetOnlineFeaturesResponse
from feast.protos.feast.types.EntityKey_pb2 import EntityKey as EntityKeyProto
from feast.protos.feast.types.Value_pb2 import Value as ValueProto

from feast_embeddings.materialize.declare import kind_of
from feast_embeddings.materialize.online import (
    OnlineServer,
    Strings,
    as_float_list,
    as_float_lists,
    entity_key_rows,
    stock_timestamp,
    varint,
)
from feast_embeddings.materialize.serving.answer import current_answer, followed
from feast_embeddings.materialize.serving.plan import Read, ViewRead
from feast_embeddings.models.errors import DeclarationError
from feast_embeddings.models.types import Ids
from feast_embeddings.transformations.views import HISTORY_KIND, tags

Row = tuple[datetime | None, dict[str, ValueProto] | None]
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_KEY_VERSION: Final = 3  # of Feast's serialization, the one that keys.py writes
_FIELDS: Final = GetOnlineFeaturesResponse.FeatureVector.DESCRIPTOR.fields_by_name
_VALUES, _STATUSES, _TIMES = (
    bytes([_FIELDS[name].number << 3 | 2]) for name in ("values", "statuses", "event_timestamps")
)


@dataclass(frozen=True, slots=True)
class Request:
    """What Feast says of a ``get_online_features`` call, under its own names.

    Attributes:
        join_key_values: Values of each join key, as Feast's messages.
        entity_name_to_join_key_map: Join key of each entity name.
        online_features_response: The response to fill.
        full_feature_names: Whether names start with the view's.
        include_feature_view_version_metadata: Whether to state the views' versions.
    """

    join_key_values: dict[str, Any]
    entity_name_to_join_key_map: dict[str, str]
    online_features_response: GetOnlineFeaturesResponse
    full_feature_names: bool
    include_feature_view_version_metadata: bool

    @property
    def complete(self) -> bool:
        """Whether every row names every entity: stock Feast raises a TypeError for a null one."""
        return not any(_is_null(value) for values in self.join_key_values.values() for value in values)

    def check_names(self, grouped_refs: Sequence[tuple[FeatureView, list[str]]]) -> None:
        """A feature stands beside the ids that were asked for, never in their place.

        Raises:
            DeclarationError: A feature has the name of another view's join key, which Feast would overwrite.
        """
        if self.full_feature_names:
            return
        for table, features in grouped_refs:
            own = {column.name for column in table.entity_columns}
            for feature in features:
                if feature in self.join_key_values and feature not in own:
                    raise DeclarationError(
                        f"Column {feature!r} of the answer would stand for feature view {table.name!r} and for the ids "
                        "that were asked for: ask with full_feature_names=True, or leave one of them out."
                    )

    def add(self, view: ViewRead, features: list[str], rows: list[Row], entities: Entities | None) -> None:
        """Adds columns of a view as stock Feast does; without entities, empty ones."""
        places, length = (entities.places(), len(entities.row_of)) if entities is not None else ((), 0)
        names, versions = self.full_feature_names, self.include_feature_view_version_metadata
        response = self.online_features_response
        utils._populate_response_from_feature_data(
            features, rows, places, response, names, view.table, length, versions
        )


@dataclass(frozen=True, slots=True)
class Entities:
    """The entities of a request, each once.

    Attributes:
        redis_keys: Their Redis keys [n].
        row_of: For each row of the request, in order, which entity it is.
        nobody: Which of the entities stands for null ids, and has no row; -1: none.
    """

    redis_keys: Strings
    row_of: list[int]
    nobody: int = -1

    def places(self) -> tuple[list[int], ...]:
        """For each entity, the rows of the request where it stands, as stock Feast has them."""
        found: list[list[int]] = [[] for _ in range(len(self.redis_keys))]
        for place, row in enumerate(self.row_of):
            found[row].append(place)
        return tuple(found)


def entities_of(
    config: RepoConfig, table: FeatureView, join_key_values: dict[str, Any], join_keys: dict[str, str]
) -> Entities:
    """The entities that a request names for a view.

    Args:
        config: The feature repo's configuration.
        table: The view.
        join_key_values: Values of each join key, as Feast's messages.
        join_keys: Join key of each entity name.

    Raises:
        KeyError: A join key has no values.
    """
    columns = utils._get_table_entity_values(table, join_keys, join_key_values)
    if len(columns) == 1 and config.entity_key_serialization_version == _KEY_VERSION:
        ((join_key, values),) = columns.items()
        unique: dict[Any, int] = {}
        kinds = {value.WhichOneof("val") for value in values}
        if kinds == {"int64_val"}:
            row_of = [unique.setdefault(value.int64_val, len(unique)) for value in values]
            return _of_one_key(config, join_key, list(unique), row_of)
        if kinds == {"string_val"}:
            row_of = [unique.setdefault(value.string_val, len(unique)) for value in values]
            return _of_one_key(config, join_key, np.array(list(unique), object), row_of)
    named = [not any(map(_is_null, row)) for row in zip(*columns.values(), strict=True)]
    if all(named):
        return _any_entities(config, table, join_key_values, join_keys)
    kept = {key: list(compress(values, named)) for key, values in join_key_values.items()}
    return _with_nobody(config, named, entities_of(config, table, kept, join_keys) if any(named) else Entities([], []))


def _with_nobody(config: RepoConfig, named: list[bool], found: Entities) -> Entities:
    """The entities of all rows, given those of the named ones: the others share a key under which nothing stands."""
    nobody, rows = len(found.redis_keys), iter(found.row_of)
    keys = [*map(bytes, found.redis_keys), *_redis_keys(config, [EntityKeyProto()])]
    return Entities(keys, [next(rows) if each else nobody for each in named], nobody)


def _is_null(value: Any) -> bool:
    return value.WhichOneof("val") is None or value.HasField("null_val")


def _of_one_key(config: RepoConfig, join_key: str, ids: Ids | list[int], row_of: list[int]) -> Entities:
    return Entities(entity_key_rows(config.project, join_key, ids), row_of)


def _any_entities(
    config: RepoConfig, table: FeatureView, join_key_values: dict[str, Any], join_keys: dict[str, str]
) -> Entities:
    entities, places, length = utils._get_unique_entities(table, join_key_values, join_keys)
    row_of = [0] * length
    for row, destinations in enumerate(places):
        for place in destinations:
            row_of[place] = row
    return Entities(_redis_keys(config, utils._get_entity_key_protos(entities)), row_of)


def _redis_keys(config: RepoConfig, entity_keys: Sequence[Any]) -> list[bytes]:
    """Redis keys of stock entity keys."""
    project, version = config.project.encode(), config.entity_key_serialization_version
    return [serialize_entity_key(key, version) + project for key in entity_keys]


class RowsRead(Read):
    """One view, by stock entity keys: behind ``online_read``."""

    def __init__(
        self,
        server: OnlineServer,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: Sequence[EntityKeyProto],
        features: Sequence[str] | None,
    ) -> None:
        wanted = list(features) if features else [feature.name for feature in table.features]
        super().__init__(server, [_view_read(config, table, wanted, _redis_keys(config, entity_keys))])

    def rows(self) -> list[Row]:
        """One row per entity key: (None, None) where there is none, a time without values past the ttl."""
        (view,) = self.views
        if view.name is None:
            return [(None, None)] * len(view.entity_keys)
        expired = set(view.expired())
        rows: list[Row] = []
        for position, (when, reply) in enumerate(zip(_times(view), view.replies, strict=True)):
            if reply[-1] is None:
                rows.append((None, None))
            else:
                rows.append((when, None if position in expired else _values(view, reply)))
        return rows


class ResponseRead(Read):
    """All views of a ``get_online_features`` call, ordinary ones included."""

    def __init__(
        self,
        server: OnlineServer,
        config: RepoConfig,
        grouped_refs: Sequence[tuple[FeatureView, list[str]]],
        request: Request,
    ) -> None:
        self._request = request
        join_keys = request.entity_name_to_join_key_map
        self._entities = [entities_of(config, table, request.join_key_values, join_keys) for table, _ in grouped_refs]
        views = [
            _view_read(config, table, list(features), entities.redis_keys)
            for (table, features), entities in zip(grouped_refs, self._entities, strict=True)
        ]
        histories = any(kind_of(table) == HISTORY_KIND for table, _ in grouped_refs)
        super().__init__(server, views, followed(server) if histories else ())

    def respond(self) -> None:
        """Fills the response, view after view; the answer that it is of knows the manifests."""
        for view, entities in zip(self.views, self._entities, strict=True):
            if tags.kind_of(view.table) is not None:
                add_columns(self._request, view, view.expired(), entities.row_of)
                continue
            asked = [*view.features, f"_ts:{view.name}"]  # stock Feast leaves it in, and drops it later
            rows: list[Row] = [
                (when, _values(view, reply)) for when, reply in zip(_times(view), view.replies, strict=True)
            ]
            if entities.nobody >= 0:
                rows[entities.nobody] = (None, None)
            self._request.add(view, asked, rows, entities)
        answer = current_answer()
        if answer is not None:
            answer.manifests = self.manifests


def _view_read(config: RepoConfig, table: FeatureView, features: list[str], entity_keys: Strings) -> ViewRead:
    """A view's part of a read; one that has fills is stored under a name that its manifest tells."""
    name = table.name if kind_of(table) == HISTORY_KIND else None
    if kind_of(table) is None:
        name = compute_versioned_name(table, config.registry.enable_online_feature_view_versioning)
    return ViewRead(table, features, entity_keys, name)


def _times(view: ViewRead) -> list[datetime]:
    return [_EPOCH + timedelta(microseconds=us) for us in view.times_us().tolist()]


def _values(view: ViewRead, reply: Sequence[bytes | None]) -> dict[str, ValueProto]:
    stored = {feature: value or b"" for feature, value in zip(view.features, reply[:-1], strict=True)}
    if view.encoder is not None:
        stored = {feature: as_float_list(value, view.table.name) for feature, value in stored.items()}
    return {feature: ValueProto.FromString(value) for feature, value in stored.items()}


def add_columns(request: Request, view: ViewRead, expired: Sequence[int], row_of: Sequence[int]) -> None:
    """Adds a view's features to a response, as stock Feast does, and marks those past the view's ttl.

    Args:
        request: Whose response to add to.
        view: The view, with its replies; they are empty if it has no rows at all.
        expired: Entities whose rows are past the ttl: their values are withheld, their times are not.
        row_of: For each row of the request, which entity it is.

    Raises:
        google.protobuf.message.DecodeError: A value or a timestamp is no message of Feast's.
    """
    response, features, replies = request.online_features_response, view.features, view.replies
    # Feast adds the names and the metadata; without rows it adds no more than an empty column each.
    start = len(response.results)
    request.add(view, list(features), [], None)
    statuses = bytearray(FieldStatus.NOT_FOUND if reply[-1] is None else FieldStatus.PRESENT for reply in replies)
    for row in expired:
        statuses[row] = FieldStatus.OUTSIDE_MAX_AGE
    if not replies:
        replies, row_of = [[None] * (len(features) + 1)], [0] * len(row_of)
        statuses = bytearray([FieldStatus.NOT_FOUND])
    times = _spread(_TIMES, [reply[-1] and stock_timestamp(reply[-1]) for reply in replies], row_of)
    spread_statuses = bytes(map(statuses.__getitem__, row_of))
    shown = [status == FieldStatus.PRESENT for status in statuses]
    for number in range(len(features)):
        values: Sequence[bytes | None]
        values = [reply[number] if show else None for reply, show in zip(replies, shown, strict=True)]
        if view.encoder is not None:
            values = as_float_lists(values, view.table.name)
        column = _spread(_VALUES, values, row_of) + _STATUSES + varint(len(row_of)) + spread_statuses + times
        response.results[start + number].MergeFromString(column)
    found = spread_statuses.count(FieldStatus.PRESENT) * len(features)
    _count(view.table.name, found, len(features) * len(row_of) - found)


def _count(view: str, found: int, missing: int) -> None:
    if (track := _tracker()) is not None:
        track(view, found, missing)


@cache
def _tracker() -> Callable[[str, int, int], None] | None:
    """Feast's counter of statuses; like Feast, none where Prometheus' client is missing."""
    try:
        from feast.metrics import track_feature_statuses
    except ImportError:
        return None
    return cast(Callable[[str, int, int], None], track_feature_statuses)


def _spread(tag: bytes, messages: Sequence[bytes | None], row_of: Sequence[int]) -> bytes:
    """A repeated field: the messages of the rows asked for, empty ones where there is none."""
    framed = [tag + varint(len(message)) + message if message else tag + b"\x00" for message in messages]
    return b"".join(map(framed.__getitem__, row_of))

"""Entities of a ``get_online_features`` request, and its response, with the bytes that Redis keeps passed through.

Stock Feast builds several messages per entity in Python: its key, its timestamp, each value. Here the keys of all
entities are laid out at once, and a feature's column is put together as bytes and parsed as one message. The answer
is the same, message for message.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, cast

import numpy as np
from feast import FeatureView, RepoConfig, utils
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus, GetOnlineFeaturesResponse

from feast_embeddings.materialize.online import keys, tick_stamps, wire
from feast_embeddings.materialize.online.commands import Strings
from feast_embeddings.models.types import Ids
from feast_embeddings.transformations.views import EMBEDDING

_KEY_VERSION: Final = 3  # of Feast's serialization, the one that keys.py writes
_FIELDS: Final = GetOnlineFeaturesResponse.FeatureVector.DESCRIPTOR.fields_by_name
_VALUES, _STATUSES, _TIMES = (
    bytes([_FIELDS[name].number << 3 | 2]) for name in ("values", "statuses", "event_timestamps")
)


@dataclass(frozen=True, slots=True)
class Entities:
    """The entities of a request, each once.

    Attributes:
        redis_keys: Their Redis keys [n].
        row_of: For each row of the request, in order, which entity it is.
    """

    redis_keys: Strings
    row_of: list[int]

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
    return _any_entities(config, table, join_key_values, join_keys)


def _of_one_key(config: RepoConfig, join_key: str, ids: Ids | list[int], row_of: list[int]) -> Entities:
    return Entities(keys.entity_key_rows(config.project, join_key, ids), row_of)


def _any_entities(
    config: RepoConfig, table: FeatureView, join_key_values: dict[str, Any], join_keys: dict[str, str]
) -> Entities:
    entities, places, length = utils._get_unique_entities(table, join_key_values, join_keys)
    row_of = [0] * length
    for row, destinations in enumerate(places):
        for place in destinations:
            row_of[place] = row
    return Entities(redis_keys(config, utils._get_entity_key_protos(entities)), row_of)


def redis_keys(config: RepoConfig, entity_keys: Sequence[Any]) -> list[bytes]:
    """Redis keys of stock entity keys."""
    project, version = config.project.encode(), config.entity_key_serialization_version
    return [serialize_entity_key(key, version) + project for key in entity_keys]


def add_columns(
    response: GetOnlineFeaturesResponse,
    table: FeatureView,
    features: Sequence[str],
    replies: Sequence[Sequence[bytes | None]],
    expired: Sequence[int],
    row_of: Sequence[int],
    full_names: bool,
    with_versions: bool,
) -> None:
    """Adds a view's features to a response, as stock Feast does, and marks those past the view's ttl.

    Args:
        response: What to add to.
        table: The view.
        features: Its features, in the order of the replies.
        replies: For each entity its serialized values, then its serialized timestamp; None where there is none.
            Empty if the view has no rows at all.
        expired: Entities whose rows are past the ttl: their values are withheld, their times are not.
        row_of: For each row of the request, which entity it is.
        full_names: Whether names start with the view's.
        with_versions: Whether to state the view's version.

    Raises:
        google.protobuf.message.DecodeError: A value or a timestamp is no message of Feast's.
    """
    # Feast adds the names and the metadata; without rows it adds no more than an empty column each.
    start = len(response.results)
    utils._populate_response_from_feature_data(list(features), [], (), response, full_names, table, 0, with_versions)
    statuses = bytearray(FieldStatus.NOT_FOUND if reply[-1] is None else FieldStatus.PRESENT for reply in replies)
    for row in expired:
        statuses[row] = FieldStatus.OUTSIDE_MAX_AGE
    if not replies:
        replies, row_of = [[None] * (len(features) + 1)], [0] * len(row_of)
        statuses = bytearray([FieldStatus.NOT_FOUND])
    times = _spread(_TIMES, [reply[-1] and tick_stamps.plain(reply[-1]) for reply in replies], row_of)
    spread_statuses = bytes(map(statuses.__getitem__, row_of))
    shown = [status == FieldStatus.PRESENT for status in statuses]
    for number in range(len(features)):
        values: Sequence[bytes | None]
        values = [reply[number] if show else None for reply, show in zip(replies, shown, strict=True)]
        if features[number] == EMBEDDING:
            values = wire.as_float_lists(values, table.name)
        column = _spread(_VALUES, values, row_of) + _STATUSES + wire.varint(len(row_of)) + spread_statuses + times
        response.results[start + number].MergeFromString(column)
    found = spread_statuses.count(FieldStatus.PRESENT) * len(features)
    _count(table.name, found, len(features) * len(row_of) - found)


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
    framed = [tag + wire.varint(len(message)) + message if message else tag + b"\x00" for message in messages]
    return b"".join(map(framed.__getitem__, row_of))

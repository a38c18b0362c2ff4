"""Every name this package uses in Redis.

Keys and hash fields follow stock Feast's layout (entity key serialization version 3, murmur3 field names),
so a stock client finds and decodes what is written here.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import mmh3
import numpy as np
from feast.infra.key_encoding_utils import serialize_entity_key_prefix
from feast.protos.feast.types.Value_pb2 import ValueType

from feast_embeddings.materialize.online.commands import FEW, Strings, between, listed
from feast_embeddings.models.types import Ids
from feast_embeddings.transformations.behaviors import IdType

_GLOB = re.compile(rb"([*?\[\]\\^])")


def stored_name(view: str, fill: str) -> str:
    """Name under which a fill's fields are stored: ``<view>@<fill>``."""
    return f"{view}@{fill}"


@dataclass(frozen=True, slots=True)
class FillPlace:
    """Where the vectors of one fill stand.

    Attributes:
        view: The embedding view.
        join_key: Join key of its entity.
        fill: Name of the fill.
        feature: Name of the feature that holds the vector.
    """

    view: str
    join_key: str
    fill: str
    feature: str

    @property
    def name(self) -> str:
        """Name under which its fields are stored."""
        return stored_name(self.view, self.fill)

    def fields(self) -> list[bytes]:
        """Its hash fields: the vector's, then the timestamp's."""
        return [feature_field(self.name, self.feature), timestamp_field(self.name)]


@dataclass(frozen=True, slots=True)
class HistoryPlace:
    """Where histories stand: once per entity, whatever fills there are.

    Attributes:
        view: The history view.
        join_key: Join key of its entity.
        item_dtype: ``int64`` or ``string``.
    """

    view: str
    join_key: str
    item_dtype: IdType


@lru_cache(maxsize=4096)
def feature_field(name: str, feature: str) -> bytes:
    """Hash field of a feature: 4 bytes; ``name`` is a view, or a fill's :func:`stored_name`."""
    return struct.pack("<I", mmh3.hash(f"{name}:{feature}", signed=False))


def timestamp_field(name: str) -> bytes:
    """Hash field of the event timestamp of ``name``; where ticks write, a stamp with their number."""
    return f"_ts:{name}".encode()


def manifest_key(project: str, encoder: str) -> str:
    """Key of the string that holds an encoder's live manifest."""
    return f"feast-embeddings:{project}:manifest:{encoder}"


def changes_key(project: str, name: str) -> bytes:
    """Key of the hash in which the changes of the fill stored under ``name`` (``<view>@<fill>``) are recorded."""
    return f"feast-embeddings:{project}:changes:{name}".encode()


def marks_key(project: str, view: str) -> str:
    """Key of the hash that says which ticks of a view Redis holds."""
    return f"feast-embeddings:{project}:marks:{view}"


def stream_key(project: str, behaviors: str, partition: int) -> str:
    """Key of a stream's partition; the braces keep all of them on one node of a cluster, as one read of them needs."""
    return f"feast-embeddings:{{{project}:{behaviors}}}:behaviors:{partition}"


def partitions_key(project: str, behaviors: str) -> str:
    """Key of the number of a stream's partitions."""
    return f"feast-embeddings:{{{project}:{behaviors}}}:partitions"


def readers_key(project: str, behaviors: str, group: str) -> str:
    """Key of the hash that names each partition's only reader of a group."""
    return f"feast-embeddings:{{{project}:{behaviors}}}:readers:{group}"


def changes_pattern(project: str, view: str) -> bytes:
    """Glob for ``SCAN``: :func:`changes_key` of every fill of a view, and nothing else."""
    return _GLOB.sub(rb"\\\1", changes_key(project, stored_name(view, ""))) + b"*"


def entity_ids(ids: Ids | Sequence[int] | Sequence[str]) -> Ids:
    """``ids`` as the package keeps them: int64 [n], or Python strings in an object array [n].

    Raises:
        TypeError: The ids are neither integers nor strings.
    """
    array = np.asarray(ids)
    if array.size == 0:
        return array.astype(np.int64) if array.dtype != object else array
    if np.issubdtype(array.dtype, np.integer):
        return array.astype(np.int64, copy=False)
    if array.dtype.kind in "UO" and all(isinstance(value, str) for value in array.tolist()):
        return np.asarray(array.tolist(), dtype=object)
    raise TypeError(f"Entity ids are int64 or strings, not {array.dtype}; cast them before the call.")


def entity_keys(project: str, join_key: str, ids: Ids) -> list[bytes]:
    """Redis keys of entities with one join key, bit for bit those of stock Feast.

    Args:
        project: Feast project.
        join_key: The entity's join key.
        ids: int64 [n], or an object array [n] of strings.

    Returns:
        n keys: ``serialize_entity_key(…, 3) + project``.
    """
    return listed(entity_key_rows(project, join_key, ids))


def entity_key_rows(project: str, join_key: str, ids: Ids | list[int]) -> Strings:
    """As :func:`entity_keys`; of many int64 ids as the rows of a matrix."""
    prefix, suffix = _prefix(join_key), project.encode()
    if isinstance(ids, np.ndarray) and ids.dtype == object:
        kind = prefix + struct.pack("<I", ValueType.STRING)
        raw = [value.encode() for value in ids]
        return [b"".join((kind, struct.pack("<I", len(value)), value, suffix)) for value in raw]
    start = prefix + struct.pack("<II", ValueType.INT64, 8)
    if len(ids) < FEW:
        return [start + struct.pack("<q", value) + suffix for value in ids]
    return between(start, np.ascontiguousarray(ids, "<i8").view(np.uint8).reshape(len(ids), 8), suffix)


@lru_cache
def _prefix(join_key: str) -> bytes:
    return bytes(serialize_entity_key_prefix([join_key]))


def ids_of_keys(entity_keys: Sequence[bytes], join_key: str) -> Ids:
    """The inverse of :func:`entity_keys`: int64 [n], or an object array [n] of strings; all of one type."""
    start = len(serialize_entity_key_prefix([join_key])) + 8  # the type and the length come first
    if not entity_keys or entity_keys[0][start - 8 : start - 4] == struct.pack("<I", ValueType.INT64):
        raw = b"".join(key[start : start + 8] for key in entity_keys)
        return np.frombuffer(raw, "<i8").astype(np.int64)
    ends = (start + struct.unpack_from("<I", key, start - 4)[0] for key in entity_keys)
    return np.array([key[start:end].decode() for key, end in zip(entity_keys, ends, strict=True)], dtype=object)


def scan_pattern(project: str, join_keys: Sequence[str]) -> bytes:
    """Glob for ``SCAN`` that matches every entity key of a project, and a few more: see :func:`is_entity_key`."""
    prefix = serialize_entity_key_prefix(list(join_keys))
    return _GLOB.sub(rb"\\\1", prefix) + b"*" + _GLOB.sub(rb"\\\1", project.encode())


def is_entity_key(key: bytes, project: str, join_keys: Sequence[str]) -> bool:
    """Whether ``key`` is an entity key of exactly this project and these join keys.

    A suffix match is not enough: keys of project ``xa`` end with ``a`` too. The lengths inside the key tell
    where its values end; what follows must be the project, whole.
    """
    prefix = serialize_entity_key_prefix(list(join_keys))
    if not key.startswith(prefix):
        return False
    position = len(prefix)
    for _ in join_keys:
        if len(key) < position + 8:
            return False
        (length,) = struct.unpack_from("<I", key, position + 4)
        position += 8 + length
    return key[position:] == project.encode()

"""How a reader that holds a copy of a fill learns, for the price of one small read, that rows have changed.

Who writes rows of a fill, or removes some, records the change afterwards: a new version number, and the ids where
they are few. A writer that stops in between is repeated by the job that takes its tick up, and so is the record: a
change may be told twice, never not at all.
"""

from __future__ import annotations

import json
import secrets
from typing import Any, Final

import numpy as np

from feast_embeddings.materialize.online import keys
from feast_embeddings.materialize.online.commands import reads
from feast_embeddings.materialize.online.scripts import call_script
from feast_embeddings.models.encoder.batch import Ids

VERSION: Final = b"version"
VERSIONS_KEPT: Final = 64
MOST_IDS: Final = 4096
"""Larger changes are recorded without their ids, and a reader loads the fill anew; at most 2 MB per fill of int64."""


def record_change(client: Any, project: str, name: str, ids: Ids) -> None:
    """Tells readers that rows ``ids`` of the fill stored under ``name`` (``<view>@<fill>``) may have changed.

    Raises:
        redis.RedisError: The server cannot be reached.
    """
    # A random start, so that a hash made anew after a loss does not repeat a version that a reader knows.
    start = secrets.randbits(48)
    call_script(client, "record_change.lua", [keys.changes_key(project, name)], [start, VERSIONS_KEPT, _packed(ids)])


def forget_changes(client: Any, project: str, name: str) -> None:
    """Removes the record of a fill that is no more."""
    client.delete(keys.changes_key(project, name))


def forget_all_changes(client: Any, project: str, view: str) -> None:
    """Removes the records of all fills of a view that is no more."""
    for key in client.scan_iter(keys.changes_pattern(project, view), count=1000):
        client.delete(key)


def changed_since(client: Any, project: str, name: str, known: bytes | None, current: bytes | None) -> Ids | None:
    """Ids of the rows that changed between two versions, each once; None where that is not known.

    Raises:
        redis.RedisError: The server cannot be reached.
    """
    if known is None or current is None or not 0 < int(current) - int(known) <= VERSIONS_KEPT:
        return None
    versions = [b"%d" % version for version in range(int(known) + 1, int(current) + 1)]
    pipe = reads(client)
    pipe.hmget(keys.changes_key(project, name), versions)
    (parts,) = pipe.execute()
    if not all(parts):
        return None
    unpacked = [_unpacked(part) for part in parts]
    ids: Ids = np.unique(np.concatenate(unpacked))
    return ids


def _packed(ids: Ids) -> bytes:
    if len(ids) > MOST_IDS:
        return b""
    if ids.dtype == object:
        return b"s" + json.dumps(ids.tolist()).encode()
    return b"i" + ids.astype("<i8").tobytes()


def _unpacked(part: bytes) -> Ids:
    if part[:1] == b"s":
        return np.array(json.loads(part[1:]), dtype=object)
    return np.frombuffer(part[1:], "<i8").astype(np.int64)

"""How a reader that holds a copy of a fill learns, for the price of one small read, that rows have changed.

Who writes rows of a fill, or removes some, records the change afterwards: a new version number, and the ids where
they are few. A writer that stops in between is repeated by the job that takes its tick up, and so is the record: a
change may be told twice, never not at all.
"""

from __future__ import annotations

import json
import secrets
from typing import Final

import numpy as np

from feast_embeddings.materialize.online import keys
from feast_embeddings.materialize.online.commands import call_script, reads
from feast_embeddings.materialize.online.manifest import Manifest
from feast_embeddings.materialize.online.server import OnlineServer
from feast_embeddings.models.types import Ids

_VERSION: Final = b"version"
VERSIONS_KEPT: Final = 64
MOST_IDS: Final = 4096
"""Larger changes are recorded without their ids, and a reader loads the fill anew; at most 2 MB per fill of int64."""


def record_change(server: OnlineServer, name: str, ids: Ids) -> None:
    """Tells readers that rows ``ids`` of the fill stored under ``name`` may have changed.

    Raises:
        OnlineStoreError: Redis cannot be reached.
    """
    # A random start, so that a hash made anew after a loss does not repeat a version that a reader knows.
    start, key = secrets.randbits(48), keys.changes_key(server.project, name)
    with server.client() as client:
        call_script(client, "record_change.lua", [key], [start, VERSIONS_KEPT, _packed(ids)])


def record_erasure(server: OnlineServer, name: str) -> None:
    """Tells readers that rows of a fill are gone; the records of earlier changes, which name ids, are dropped."""
    forget_changes(server, name)
    record_change(server, name, np.empty(0, np.int64))


def forget_changes(server: OnlineServer, name: str) -> None:
    """Removes the record of a fill that is no more."""
    with server.client() as client:
        client.delete(keys.changes_key(server.project, name))


def forget_all_changes(server: OnlineServer, view: str) -> None:
    """Removes the records of all fills of a view that is no more, and what says which of its ticks are here."""
    with server.client() as client:
        client.delete(keys.marks_key(server.project, view))
        for key in client.scan_iter(keys.changes_pattern(server.project, view), count=1000):
            client.delete(key)


def current_version(server: OnlineServer, encoder: str, name: str | None) -> tuple[Manifest | None, bytes | None]:
    """An encoder's manifest as it is now, and the version of a fill's changes: one round trip.

    Raises:
        OnlineStoreError: Redis cannot be reached, or the manifest is unreadable.
    """
    with server.client() as client:
        pipe = reads(client)
        pipe.get(keys.manifest_key(server.project, encoder))
        if name is not None:
            pipe.hmget(keys.changes_key(server.project, name), [_VERSION])
        text, *versions = pipe.execute()
    return server.manifests.learn(encoder, text), versions[0][0] if versions else None


def changed_since(server: OnlineServer, name: str, known: bytes | None, current: bytes | None) -> Ids | None:
    """Ids of the rows that changed between two versions, each once; None where that is not known.

    Raises:
        OnlineStoreError: Redis cannot be reached.
    """
    if known is None or current is None or not 0 < int(current) - int(known) <= VERSIONS_KEPT:
        return None
    versions = [b"%d" % version for version in range(int(known) + 1, int(current) + 1)]
    with server.client() as client:
        parts = client.hmget(keys.changes_key(server.project, name), versions)
    if not all(parts):
        return None
    ids: Ids = np.unique(np.concatenate([_unpacked(part) for part in parts]))
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

"""A copy of a fill in this process, checked against Redis at every use, in one round trip.

A use asks for the encoder's manifest and for the version of the fill's changes. If both are what the copy was made
from, the copy is the fill as every finished write left it. If not, the rows that changed are read again, or the
whole fill where that is not known or another fill is live.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
from feast import FeatureView

from feast_embeddings.materialize.declare.kinds import pinned_space
from feast_embeddings.materialize.online import (
    VERSION,
    FillRef,
    Manifest,
    OnlineServer,
    changed_since,
    entity_batches,
    keys,
    reads,
    tick_stamps,
    wire,
)
from feast_embeddings.materialize.serving.plan import MAX_PLANS
from feast_embeddings.models.encoder.batch import Float32s, Ids, Int64s
from feast_embeddings.transformations.views import tags

_READ_ROWS: Final = 1000


@dataclass(frozen=True, slots=True, eq=False)
class FillSnapshot:
    """The rows of one fill, in the order of their ids; never changed once made.

    Attributes:
        ids: Entity ids [n], ascending.
        vectors: float32 [n, dim].
        norms: float64 [n], Euclidean lengths of the vectors.
        event_time: int64 [n], microseconds.
        version: Version of the fill's changes that was current before the rows were read.
    """

    ids: Ids
    vectors: Float32s
    norms: npt.NDArray[np.float64]
    event_time: Int64s
    version: bytes | None

    @classmethod
    def of(cls, ids: Ids, vectors: Float32s, event_time: Int64s, version: bytes | None) -> FillSnapshot:
        """The snapshot of rows in any order; of an id that is there twice, one row is kept."""
        ordered, rows = np.unique(ids, return_index=True)
        vectors = vectors[rows]
        norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
        return cls(cast(Ids, ordered), vectors, norms, event_time[rows], version)

    def with_rows(self, changed: Ids, read: FillSnapshot) -> FillSnapshot:
        """This one, with rows ``changed`` as ``read`` has them; those that it has not are gone."""
        if not len(self.ids):
            return read
        at = np.searchsorted(self.ids, changed)
        there = self.ids[np.minimum(at, len(self.ids) - 1)] == changed
        kept = np.ones(len(self.ids), np.bool_)
        kept[at[there & (at < len(self.ids))]] = False
        if not len(read.ids):
            return FillSnapshot(
                self.ids[kept], self.vectors[kept], self.norms[kept], self.event_time[kept], read.version
            )
        return FillSnapshot.of(
            np.concatenate([self.ids[kept], read.ids]),
            np.concatenate([self.vectors[kept], read.vectors]),
            np.concatenate([self.event_time[kept], read.event_time]),
            read.version,
        )


@dataclass(frozen=True, slots=True)
class Served:
    """What a view serves now: its rows, their space, and the encoder's generation; no rows before a cutover."""

    rows: FillSnapshot
    space: str
    generation: int


class SnapshotCache:
    """The snapshots this process holds, of live and pinned fills. Threads may share it; one of them refreshes."""

    def __init__(self) -> None:
        self._held: dict[str, FillSnapshot] = {}
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    def served(self, server: OnlineServer, view: FeatureView, feature: str) -> Served:
        """The rows of the view's live fill, or of its pinned one.

        Raises:
            SpaceError: The view is pinned to a space that is not served.
            OnlineStoreError: Redis cannot be reached, or holds something else there.
        """
        encoder, space = view.tags[tags.ENCODER], pinned_space(view)
        manifest = server.manifests.get(encoder)
        for plan in range(MAX_PLANS):
            ref = _fill_of(manifest, view.name, space)
            current, version = _check(server, encoder, keys.qualified(view.name, ref.fill) if ref else None)
            if current != manifest and plan < MAX_PLANS - 1:
                manifest = current
                continue
            if current is None or (ref := current.fill_of(view.name, space)) is None:
                break
            name = keys.qualified(view.name, ref.fill)
            held = self._held.get(name)
            if held is not None and held.version == version:
                return Served(held, ref.space, current.generation)
            held = self._refreshed(server, _Reader(server.project, view, name, feature), version, held)
            self._drop_others(view.name, current)
            if plan == MAX_PLANS - 1:  # a writer is never done: these rows are newer than the call
                return Served(held, ref.space, current.generation)
        none = np.empty((0, int(view.tags.get(tags.DIM, 0))), np.float32)
        empty = FillSnapshot.of(np.empty(0, np.int64), none, np.empty(0, np.int64), None)
        return Served(empty, "", manifest.generation if manifest else 0)

    def _refreshed(
        self, server: OnlineServer, reader: _Reader, version: bytes | None, held: FillSnapshot | None
    ) -> FillSnapshot:
        name = reader.name
        with self._locks[name], server.client() as client:
            other = self._held.get(name)
            if other is not None and other is not held:  # another thread has been here; the caller checks again
                return other
            ids = changed_since(client, server.project, name, held.version, version) if held else None
            fresh = (
                reader.everything(client, version)
                if held is None or ids is None
                else reader.changed(client, held, ids, version)
            )
            self._held[name] = fresh
            return fresh

    def _drop_others(self, view: str, manifest: Manifest) -> None:
        """Forget the view's fills that are neither live nor retained."""
        refs = [manifest.fills.get(view), *manifest.retained.get(view, ())]
        used = {keys.qualified(view, ref.fill) for ref in refs if ref}
        prefix = keys.qualified(view, "")
        for name in [name for name in list(self._held) if name.startswith(prefix) and name not in used]:
            self._held.pop(name, None)


_caches: WeakKeyDictionary[OnlineServer, SnapshotCache] = WeakKeyDictionary()


def snapshots_of(server: OnlineServer) -> SnapshotCache:
    """The snapshots that this process holds of a server's fills."""
    return _caches.setdefault(server, SnapshotCache())


def _fill_of(manifest: Manifest | None, view: str, space: str | None) -> FillRef | None:
    """The fill to ask about; a manifest of earlier does not decide whether a pinned space is served."""
    if manifest is None:
        return None
    kept = [manifest.fills.get(view), *manifest.retained.get(view, ())]
    return next((ref for ref in kept if ref and space in (None, ref.space)), None)


def _check(server: OnlineServer, encoder: str, name: str | None) -> tuple[Manifest | None, bytes | None]:
    """The manifest as it is now, and the version of a fill's changes: one round trip."""
    with server.client() as client:
        pipe = reads(client)
        pipe.get(keys.manifest_key(server.project, encoder))
        if name is not None:
            pipe.hmget(keys.changes_key(server.project, name), [VERSION])
        text, *versions = pipe.execute()
    return server.manifests.learn(encoder, text), versions[0][0] if versions else None


class _Reader:
    """Reads rows of one fill."""

    def __init__(self, project: str, view: FeatureView, name: str, feature: str) -> None:
        self.name = name
        self._project, self._view = project, view
        self._join_key = view.join_keys[0]
        self._fields = [keys.feature_field(name, feature), keys.timestamp_field(name)]
        self._dim: int | None = None

    def everything(self, client: Any, version: bytes | None) -> FillSnapshot:
        """Every row of the fill, found by a scan over the project's entities."""
        return self._rows(client, entity_batches(client, self._project, [self._join_key]), version)

    def changed(self, client: Any, held: FillSnapshot, ids: Ids, version: bytes | None) -> FillSnapshot:
        """``held``, with rows ``ids`` read again."""
        found = keys.entity_keys(self._project, self._join_key, ids)
        batches = (found[start : start + _READ_ROWS] for start in range(0, len(found), _READ_ROWS))
        return held.with_rows(ids, self._rows(client, batches, version))

    def _rows(self, client: Any, batches: Iterator[list[bytes]], version: bytes | None) -> FillSnapshot:
        parts = [part for batch in batches if (part := self._read(client, batch)) is not None]
        if not parts:
            none = np.empty((0, int(self._view.tags.get(tags.DIM, 0))), np.float32)
            return FillSnapshot.of(np.empty(0, np.int64), none, np.empty(0, np.int64), version)
        ids, vectors, times = zip(*parts, strict=True)
        return FillSnapshot.of(np.concatenate(ids), np.concatenate(vectors), np.concatenate(times), version)

    def _read(self, client: Any, batch: Sequence[bytes]) -> tuple[Ids, Float32s, Int64s] | None:
        pipe = reads(client)
        for key in batch:
            pipe.hmget(key, self._fields)
        rows = [(key, *reply) for key, reply in zip(batch, pipe.execute(), strict=True) if reply[0]]
        if not rows:
            return None
        present, values, stored = zip(*rows, strict=True)
        self._dim = self._dim or wire.vector_length(values[0], self._view.name)
        vectors, _ = wire.decode_vectors(values, self._dim, self._view.name)
        return keys.ids_of(present, self._join_key), vectors, tick_stamps.event_times(stored)

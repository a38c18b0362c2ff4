"""A copy of a fill in this process, checked against Redis at every use, in one round trip.

A use asks for the encoder's manifest and for the version of the fill's changes. If both are what the copy was made
from, the copy is the fill as every finished write left it. If not, the rows that changed are read again, or the
whole fill where that is not known or another fill is live.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from dataclasses import dataclass
from typing import cast
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
from feast import FeatureView

from feast_embeddings.materialize.declare import pinned_space
from feast_embeddings.materialize.online import (
    FillPlace,
    FillRef,
    Manifest,
    OnlineServer,
    changed_since,
    current_version,
    read_fill,
    scan_fill,
    stored_name,
)
from feast_embeddings.materialize.serving.plan import MAX_PLANS
from feast_embeddings.models.types import Float32s, Ids, Int64s
from feast_embeddings.transformations.views import tags


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
        """This one, of some rows, with rows ``changed`` as ``read`` has them; those that it has not are gone."""
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

    def served(self, server: OnlineServer, view: FeatureView) -> Served:
        """The rows of the view's live fill, or of its pinned one.

        Raises:
            SpaceError: The view is pinned to a space that is not served.
            OnlineStoreError: Redis cannot be reached, or holds something else there.
        """
        encoder, space = view.tags[tags.ENCODER], pinned_space(view)
        manifest = server.manifests.get(encoder)
        for plan in range(MAX_PLANS):
            ref = _fill_of(manifest, view.name, space)
            current, version = current_version(server, encoder, stored_name(view.name, ref.fill) if ref else None)
            if current != manifest and plan < MAX_PLANS - 1:
                manifest = current
                continue
            if current is None or (ref := current.fill_of(view.name, space)) is None:
                break
            place = FillPlace(view.name, view.join_keys[0], ref.fill, tags.EMBEDDING)
            held = self._held.get(place.name)
            if held is not None and held.version == version:
                return Served(held, ref.space, current.generation)
            held = self._refreshed(server, place, version, held)
            self._drop_others(view.name, current)
            if plan == MAX_PLANS - 1:  # a writer is never done: these rows are newer than the call
                return Served(held, ref.space, current.generation)
        return Served(_no_rows(None), "", manifest.generation if manifest else 0)

    def _refreshed(
        self, server: OnlineServer, place: FillPlace, version: bytes | None, held: FillSnapshot | None
    ) -> FillSnapshot:
        with self._locks[place.name]:
            other = self._held.get(place.name)
            if other is not None and other is not held:  # another thread has been here; the caller checks again
                return other
            known = held if held is not None and len(held.ids) else None  # of no rows, the dimension is not known
            ids = changed_since(server, place.name, known.version, version) if known is not None else None
            if known is None or ids is None:
                fresh = _everything(server, place, version)
            else:
                fresh = _with_changed(server, place, known, ids, version)
            self._held[place.name] = fresh
            return fresh

    def _drop_others(self, view: str, manifest: Manifest) -> None:
        """Forget the view's fills that are neither live nor retained."""
        refs = [manifest.fills.get(view), *manifest.retained.get(view, ())]
        used = {stored_name(view, ref.fill) for ref in refs if ref}
        prefix = stored_name(view, "")
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


def _everything(server: OnlineServer, place: FillPlace, version: bytes | None) -> FillSnapshot:
    parts = [(ids, rows.vectors, rows.event_time_us) for ids, rows in scan_fill(server, place)]
    if not parts:
        return _no_rows(version)
    ids, vectors, times = zip(*parts, strict=True)
    return FillSnapshot.of(np.concatenate(ids), np.concatenate(vectors), np.concatenate(times), version)


def _with_changed(
    server: OnlineServer, place: FillPlace, held: FillSnapshot, ids: Ids, version: bytes | None
) -> FillSnapshot:
    """``held``, with rows ``ids`` read again."""
    rows = read_fill(server, place, held.vectors.shape[1], ids)
    read = FillSnapshot.of(ids[rows.found], rows.vectors[rows.found], rows.event_time_us[rows.found], version)
    return held.with_rows(ids, read)


def _no_rows(version: bytes | None) -> FillSnapshot:
    return FillSnapshot.of(np.empty(0, np.int64), np.empty((0, 0), np.float32), np.empty(0, np.int64), version)

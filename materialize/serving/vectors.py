"""Vectors for code that computes with them: one NumPy matrix, and the space it belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from feast import FeatureStore, FeatureView

from feast_embeddings.materialize import clock
from feast_embeddings.materialize.declare import kind_of, pinned_space, ttl_us, vector_field
from feast_embeddings.materialize.online import OnlineServer, decode_vectors, entity_ids, entity_key_rows, vector_length
from feast_embeddings.materialize.serving.plan import Read, ViewRead
from feast_embeddings.models.errors import DeclarationError
from feast_embeddings.models.types import Float32s, Ids, Int64s
from feast_embeddings.transformations.views import tags

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Vectors:
    """Vectors of n entities, all of one space and generation.

    Attributes:
        values: float32 [n, dim], in the order of the ids; zero where not found.
        found: bool [n]; False for an entity without a vector, or with one past the view's ttl.
        event_time: int64 [n], microseconds since the epoch, UTC; 0 where not found.
        space: Space of the vectors; empty before the encoder's first cutover.
        generation: The encoder's live generation; 0 before the first cutover.
    """

    values: Float32s
    found: npt.NDArray[np.bool_]
    event_time: Int64s
    space: str
    generation: int

    def torch(self) -> Tensor:
        """The values as a tensor on the CPU, float32 [n, dim], which shares their memory."""
        import torch

        return torch.from_numpy(self.values)


def read_vectors(store: FeatureStore, feature: str, ids: Ids | Sequence[int] | Sequence[str]) -> Vectors:
    """Reads the vectors of entities in one round trip, without a Python object per number.

    Args:
        store: The feature store.
        feature: ``<view>:<feature>``, or ``<view>@<space>:<feature>`` for a pinned space.
        ids: n entity ids, int64 or strings, as the view's entity has them.

    Raises:
        DeclarationError: ``feature`` is not a feature of an embedding view.
        SpaceError: The pinned space is not served.
        OnlineStoreError: Redis cannot be reached, or the online store is another one.
    """
    view = find(store, feature)
    server = OnlineServer.of(store.config)
    read_keys = entity_key_rows(server.project, view.entity_columns[0].name, entity_ids(ids))
    read = Read(server, [ViewRead(view, [vector_field(view).name], read_keys)])
    read.run()
    return _vectors(read, read.views[0])


def _vectors(read: Read, part: ViewRead) -> Vectors:
    (manifest,) = read.manifests.values()
    n, generation = len(part.entity_keys), manifest.generation if manifest else 0
    ref = manifest.fill_of(part.table.name, pinned_space(part.table)) if manifest else None
    if ref is None:
        empty = np.zeros((n, _declared_dim(part.table)), np.float32)
        return Vectors(empty, np.zeros(n, np.bool_), np.zeros(n, np.int64), "", generation)
    matrix, found = _matrix(part)
    times, ttl = part.times_us(), ttl_us(part.table)
    if ttl > 0:
        expired = found & (clock.now_us() - times > ttl)
        matrix[expired], times[expired], found = 0, 0, found & ~expired
    return Vectors(matrix, found, times, ref.space, generation)


def _matrix(part: ViewRead) -> tuple[Float32s, npt.NDArray[np.bool_]]:
    """float32 [n, dim], and which rows were found: bool [n]."""
    values = [reply[0] for reply in part.replies]
    first = next(filter(None, values), None)
    dim = vector_length(first, part.table.name) if first else _declared_dim(part.table)
    return decode_vectors(values, dim, part.table.name)


def _declared_dim(view: FeatureView) -> int:
    return int(view.tags.get(tags.DIM, 0))


def find(store: FeatureStore, feature: str) -> FeatureView:
    """The embedding view, pinned where ``feature`` is; raises as :func:`read_vectors`."""
    pinned_name, _, name = feature.rpartition(":")
    view_name, _, space = pinned_name.partition("@")
    view = store.registry.get_any_feature_view(view_name, store.project, allow_cache=True)
    if not isinstance(view, FeatureView) or kind_of(view) != tags.EMBEDDING_KIND:
        raise DeclarationError(
            f"{feature!r} is not a feature of an embedding view: write '<view>:<feature>' of a view "
            "that embedding_view() declared."
        )
    if name != (declared := vector_field(view).name):
        raise DeclarationError(
            f"{feature!r} is not a feature of an embedding view: view {view_name!r} has '{pinned_name}:{declared}'."
        )
    pinned: FeatureView = view.with_name(pinned_name) if space else view
    return pinned

"""Nearest neighbors within one space: exact, over a copy of the live fill that every call checks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal, cast, get_args

import numpy as np
import numpy.typing as npt
from feast import FeatureStore

from feast_embeddings.materialize import clock
from feast_embeddings.materialize.declare import ttl_us
from feast_embeddings.materialize.online import OnlineServer
from feast_embeddings.materialize.serving.fill_copy import FillSnapshot, snapshots_of
from feast_embeddings.materialize.serving.vectors import Vectors, find
from feast_embeddings.models.errors import DeclarationError, SpaceError
from feast_embeddings.models.types import Float32s, Ids, Int64s

Metric = Literal["inner", "cosine"]
Float64s = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

CHUNK_SCORES: Final = 1 << 22  # scores at a time: with their sorted copy, 32 MB
CHUNK_PAIRS: Final = 1 << 16  # pairs computed anew at a time: three matrices of float64 [pairs, dim]


@dataclass(frozen=True, slots=True)
class Neighbors:
    """The nearest rows of a view for n queries, best first.

    Attributes:
        ids: Entity ids [n, m], int64 or strings in an object array, with m the smaller of k and the rows there are.
        scores: float32 [n, m], inner products or cosines; of equal scores the smaller id comes first. NaN in the
            rows of queries that were not found (``Vectors.found``), whose ids mean nothing.
        space: Space of queries and rows; empty before the encoder's first cutover.
        generation: The encoder's live generation; 0 before the first cutover.
    """

    ids: Ids
    scores: Float32s
    space: str
    generation: int


def nearest(
    store: FeatureStore,
    feature: str,
    vectors: Vectors | Float32s,
    k: int,
    metric: Metric = "inner",
    *,
    space: str | None = None,
) -> Neighbors:
    """The k rows of a view nearest to each of n vectors, exactly: no index, nothing approximated.

    The view's live fill (or pinned one) is held in this process. Each call asks Redis, in one round trip, whether
    it is still live and unchanged; after a cutover or a rollback the other fill is loaded, after a tick the rows
    that changed. So an answer is of one space and generation, and has every row of every tick published before the
    call. Scores are computed in float64 and rounded to float32: a row's neighbors do not depend on the other
    queries. Rows past the view's ttl are left out.

    Args:
        store: The feature store.
        feature: ``<view>:<feature>``, or ``<view>@<space>:<feature>`` for a pinned space.
        vectors: What ``read_vectors`` returned, or float32 [n, dim] together with ``space``.
        k: Neighbors per query, at least 1.
        metric: ``inner``, or ``cosine``, which is 0 for a zero vector.
        space: Of a bare matrix; with ``Vectors`` it can be left out.

    Raises:
        SpaceError: The vectors are of another space than the view's rows, or of another length; or the pinned
            space is not served.
        DeclarationError: ``feature`` is not a feature of an embedding view, a matrix comes without its space or is
            not finite float32 [n, dim], ``k`` is below 1 or ``metric`` unknown.
        OnlineStoreError: Redis cannot be reached, or the online store is another one.
    """
    if k < 1 or metric not in get_args(Metric):
        raise DeclarationError(f"nearest(k={k}, metric={metric!r}): k is at least 1, metric 'inner' or 'cosine'.")
    queries, found, asked = _queries(vectors, space)
    view = find(store, feature)
    server = OnlineServer.of(store.config)
    served = snapshots_of(server).served(server, view)
    if served.space:
        _same_space(feature, asked, served.space, queries, served.rows)
    alive = _alive(served.rows, ttl_us(view))
    m = min(k, int(alive.sum()))
    rows = np.flatnonzero(found)
    columns = np.zeros((len(queries), m), np.int64)
    scores = np.full((len(queries), m), np.nan, np.float32)
    if m:
        for part, best, values in _search(queries[rows], served.rows, alive, m, metric):
            columns[rows[part]], scores[rows[part]] = best, values
    ids = served.rows.ids[columns] if m else np.empty(columns.shape, served.rows.ids.dtype)
    return Neighbors(cast(Ids, ids), scores, served.space, served.generation)


def _queries(vectors: Vectors | Float32s, space: str | None) -> tuple[Float32s, Bools, str]:
    if isinstance(vectors, Vectors):
        if space not in (None, vectors.space):
            raise SpaceError(
                f"The vectors are of space {vectors.space!r}, not {space!r}: leave out space=, they know theirs."
            )
        return vectors.values, vectors.found, vectors.space
    if not space:
        raise DeclarationError(
            "nearest() got a matrix without its space: pass what read_vectors() returned, or "
            "space=… with the space of the encoder that made the matrix."
        )
    matrix: Any = np.asarray(vectors)
    if matrix.ndim != 2 or matrix.dtype != np.float32 or not np.isfinite(matrix).all():
        raise DeclarationError(
            f"nearest() takes a matrix of finite float32 [n, dim], not {matrix.dtype} {list(matrix.shape)}: "
            "cast it, and leave out rows that have no vector."
        )
    return matrix, np.ones(len(matrix), np.bool_), space


def _same_space(feature: str, asked: str, served: str, queries: Float32s, rows: FillSnapshot) -> None:
    if asked != served:
        raise SpaceError(
            f"The vectors are of space {asked or 'none'!r}, the rows of {feature!r} of space {served!r}: they cannot "
            f"be compared. Read or encode the vectors anew, or pin the view: '<view>@{asked}:<feature>'."
        )
    if len(rows.ids) and queries.shape[1] != rows.vectors.shape[1]:
        raise SpaceError(
            f"The vectors have {queries.shape[1]} dimensions, the rows of {feature!r} in space {served!r} have "
            f"{rows.vectors.shape[1]}: they were not made by that space's encoder. Encode them with it."
        )


def _alive(rows: FillSnapshot, ttl: int) -> Bools:
    if ttl <= 0:
        return np.ones(len(rows.ids), np.bool_)
    alive: Bools = clock.now_us() - rows.event_time <= ttl
    return alive


def _search(
    queries: Float32s, rows: FillSnapshot, alive: Bools, m: int, metric: Metric
) -> Iterator[tuple[slice, Int64s, Float32s]]:
    """Columns int64 [q, m] and scores float32 [q, m] of the best rows, for slices of q queries.

    Every row that a float32 product puts near enough to the best m is scored again in float64, so that neither
    rounding nor the shape of the product decides. Bound of the rounding: Higham, Accuracy and Stability of
    Numerical Algorithms, 2nd ed., 2002, section 3.1.
    """
    lengths = np.sqrt(np.einsum("ij,ij->i", queries, queries, dtype=np.float64))
    units = (queries / np.where(lengths > 0, lengths, 1)[:, None]).astype(np.float32)
    inverse = np.divide(1, rows.norms, out=np.zeros_like(rows.norms), where=rows.norms > 0)
    longest = 1.0 if metric == "cosine" else float(rows.norms[alive].max())
    slack = np.float32((rows.vectors.shape[1] + 8) * float(np.finfo(np.float32).eps) * longest * 1.01)
    size = max(1, CHUNK_SCORES // len(rows.ids))
    for start in range(0, len(queries), size):
        part = slice(start, min(start + size, len(queries)))
        scores = units[part] @ rows.vectors.T
        if metric == "cosine":
            scores *= inverse.astype(np.float32)
        scores[:, ~alive] = -np.inf
        least = np.partition(scores, len(rows.ids) - m, axis=1)[:, len(rows.ids) - m]
        owner, columns = np.nonzero(scores >= (least - slack)[:, None])
        exact = _exact(queries[part], owner, rows.vectors, columns)
        if metric == "cosine":
            scale = np.divide(1, lengths[part], out=np.zeros(part.stop - start), where=lengths[part] > 0)
            exact *= scale[owner] * inverse[columns]
        yield part, *_best(owner, columns, exact.astype(np.float32), part.stop - start, m)


def _exact(queries: Float32s, owner: Int64s, vectors: Float32s, columns: Int64s) -> Float64s:
    """Inner products float64 [pairs], each by itself."""
    out = np.empty(len(owner), np.float64)
    for start in range(0, len(owner), CHUNK_PAIRS):
        pairs = slice(start, start + CHUNK_PAIRS)
        wide = queries[owner[pairs]].astype(np.float64)
        out[pairs] = (wide * vectors[columns[pairs]]).sum(axis=1)
    return out


def _best(owner: Int64s, columns: Int64s, scores: Float32s, n: int, m: int) -> tuple[Int64s, Float32s]:
    """The m best candidates of each query; rows stand in the order of their ids, so a column breaks a tie."""
    order = np.lexsort((columns, -scores, owner))
    starts = np.searchsorted(owner[order], np.arange(n))
    chosen = order[starts[:, None] + np.arange(m)]
    return columns[chosen], scores[chosen]

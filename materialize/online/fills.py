"""What ticks do in Redis: guarded writes, the state they start from, the cutover, and the removal of a fill.

Every write carries its tick's number, and Redis itself keeps a row whose stored number is equal or larger. So
writing a tick again, in part or in whole, in any order, ends in the same rows: at least once becomes exactly once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
import redis
from feast import RepoConfig

from feast_embeddings.materialize.declare import Storage, holds
from feast_embeddings.materialize.online import keys, tick_stamps, wire
from feast_embeddings.materialize.online.commands import queue_hmgets, reads
from feast_embeddings.materialize.online.fresh_fill import begin, end
from feast_embeddings.materialize.online.guarded_write import Chunk, GuardedWrites, OnChunk
from feast_embeddings.materialize.online.manifest import Manifest
from feast_embeddings.materialize.online.removal import delete_fill
from feast_embeddings.materialize.online.scripts import call
from feast_embeddings.materialize.online.versions import forget_changes, record_change
from feast_embeddings.models.encoder.batch import Float32s, HistoryBatch, Ids, Int64s
from feast_embeddings.models.errors import OnlineStoreError
from feast_embeddings.transformations.views import tags

if TYPE_CHECKING:
    from feast_embeddings.materialize.online_store import EmbeddingOnlineStore

CHUNK_ROWS: Final = 128  # rows per script call: what it writes stays in the cache, and others wait half a millisecond
_READ_ROWS: Final = 5000


@dataclass(frozen=True, slots=True)
class FillRows:
    """Rows of a fill, in the order of the ids asked for.

    Attributes:
        vectors: float32 [n, dim]; zero where not found.
        found: bool [n].
        event_time_us: int64 [n], microseconds; 0 where not found.
        tick: int64 [n], number of the tick that wrote the row; -1 where not found.
        tick_end_us: int64 [n], end of that tick in microseconds; 0 where not found.
    """

    vectors: Float32s
    found: npt.NDArray[np.bool_]
    event_time_us: Int64s
    tick: Int64s
    tick_end_us: Int64s


def write_fill(
    store: EmbeddingOnlineStore,
    config: RepoConfig,
    view_name: str,
    join_key: str,
    fill: str,
    feature: str,
    tick: int,
    tick_end_us: int,
    event_time_us: int,
    ids: Ids,
    vectors: Float32s,
    chunk_rows: int = CHUNK_ROWS,
    on_chunk: OnChunk | None = None,
    storage: Storage = "float32",
) -> int:
    """Writes a tick's vectors (float32 [n, dim]) of entities ``ids`` [n] into a fill.

    Args:
        store: The online store.
        config: Its feature repo's configuration.
        view_name: The embedding view.
        join_key: Join key of its entity.
        fill: Name of the fill.
        feature: Name of the feature that holds the vector.
        tick: The tick's number, below 2 ** 53.
        tick_end_us: End of the tick, in microseconds.
        event_time_us: The rows' event timestamp, in microseconds.
        ids: Entities, int64 or strings, each once.
        vectors: One row per entity.
        chunk_rows: Rows per call; each call is atomic, the whole is not.
        on_chunk: Called after each call is sent, with the rows sent so far; what it raises stops the write.
        storage: How to keep the vectors, as they were rounded before; those that are not so are kept as float32.

    Returns:
        The number of rows written; those that a tick of the same or a larger number wrote before are left as they are.

    Raises:
        OnlineStoreError: Redis cannot be reached, or refused; or ids and vectors are not of one length.
    """
    _same_length(view_name, ids, len(vectors))
    name = keys.qualified(view_name, fill)
    writer = GuardedWrites(store, config, name, [feature], tick, tick_end_us, event_time_us)
    chunks = (
        Chunk(keys.entity_key_rows(config.project, join_key, ids[rows]), [_values(vectors[rows], storage)])
        for rows in _slices(len(ids), chunk_rows)
    )
    with store.redis(config) as client:
        alone = isinstance(client, redis.Redis) and len(ids)
        fresh = begin(store, client, config.project, name, tick, ids) if alone else None
    written = writer.write(chunks, on_chunk, fresh)
    if fresh is not None:
        end(store, fresh, ids)
    with store.redis(config) as client:  # also where nothing was written: the job that wrote it may have stopped here
        record_change(client, config.project, name, ids)
    return written


def write_history(
    store: EmbeddingOnlineStore,
    config: RepoConfig,
    view_name: str,
    join_key: str,
    tick: int,
    tick_end_us: int,
    event_time_us: int,
    ids: Ids,
    batch: HistoryBatch,
    item_dtype: str,
    chunk_rows: int = CHUNK_ROWS,
    on_chunk: OnChunk | None = None,
) -> int:
    """Writes the histories (``batch``, n of them) of entities ``ids`` [n], as :func:`write_fill`.

    ``item_dtype`` is ``int64`` or ``string``.
    """
    _same_length(view_name, ids, len(batch))
    writer = GuardedWrites(store, config, view_name, tags.HISTORY_FEATURES, tick, tick_end_us, event_time_us)
    chunks = (
        Chunk(
            keys.entity_key_rows(config.project, join_key, ids[rows]),
            _encode_histories(batch.take(np.arange(len(ids), dtype=np.int64)[rows]), item_dtype),
        )
        for rows in _slices(len(ids), chunk_rows)
    )
    return writer.write(chunks, on_chunk)


def read_fill(
    store: EmbeddingOnlineStore,
    config: RepoConfig,
    view_name: str,
    join_key: str,
    fill: str,
    feature: str,
    dim: int,
    ids: Ids,
) -> FillRows:
    """The rows of entities ``ids`` in one fill, live or not; no ttl is applied.

    Raises:
        OnlineStoreError: Redis cannot be reached.
        SpaceError: A stored vector is not of ``dim`` dimensions.
    """
    name = keys.qualified(view_name, fill)
    fields = [keys.feature_field(name, feature), keys.timestamp_field(name)]
    values, stored = _read_columns(store, config, join_key, ids, fields)
    vectors, found = wire.decode_vectors(values, dim, view_name)
    return FillRows(vectors, found, *tick_stamps.decode(stored))


def read_history(
    store: EmbeddingOnlineStore,
    config: RepoConfig,
    view_name: str,
    join_key: str,
    ids: Ids,
    as_of_us: int,
    item_dtype: str,
) -> HistoryBatch:
    """The stored histories of entities ``ids``, empty where there is none.

    ``item_dtype`` is ``int64`` or ``string``. ``as_of_us`` is what the batch states; behaviors at or after it,
    if any are stored, are left out.

    Raises:
        OnlineStoreError: Redis cannot be reached, or holds something else there.
    """
    fields = [keys.feature_field(view_name, feature) for feature in tags.HISTORY_FEATURES]
    items, types, times, values = _read_columns(store, config, join_key, ids, fields)
    decode_items = wire.decode_strings if item_dtype == "string" else _decode_int64s
    flat_items, offsets = decode_items(items, view_name)
    flat_types, type_offsets = wire.decode_integers(types, "int32_list_val", view_name)
    flat_times, time_offsets = _decode_int64s(times, view_name)
    flat_values, value_offsets = wire.decode_floats(values, view_name)
    if any(not np.array_equal(offsets, other) for other in (type_offsets, time_offsets, value_offsets)):
        raise OnlineStoreError(
            f"The histories of view {view_name!r} in Redis disagree in length: something else wrote to them. "
            "Run `feast materialize` to write them anew."
        )
    as_of = np.full(len(ids), as_of_us, np.int64)
    batch = HistoryBatch(offsets, flat_items, flat_types.astype(np.int32), flat_times, flat_values, as_of)
    return _before(batch, as_of_us)


def read_manifest(store: EmbeddingOnlineStore, config: RepoConfig, encoder: str) -> Manifest | None:
    """The encoder's live manifest as Redis holds it now; None before the first cutover.

    Raises:
        OnlineStoreError: Redis cannot be reached, or the manifest is unreadable.
    """
    with store.redis(config) as client:
        text = client.get(keys.manifest_key(config.project, encoder))
    return store.manifests.learn(config.project, encoder, text)


def publish_manifest(store: EmbeddingOnlineStore, config: RepoConfig, manifest: Manifest) -> None:
    """The cutover: one atomic SET. Publishing the stored manifest again is harmless.

    Raises:
        OnlineStoreError: A manifest with the same or a larger generation is live (a rollback, too, takes a new
            generation number), or Redis cannot be reached.
    """
    key, text = keys.manifest_key(config.project, manifest.encoder), manifest.to_json()
    with store.redis(config) as client:
        answer = call(client, "publish_manifest.lua", [key], [text, manifest.generation]).decode()
    if answer != "stored":
        raise OnlineStoreError(
            f"Generation {manifest.generation} of encoder {manifest.encoder!r} is not newer than the live one "
            f"({answer.removeprefix('refused ')}): another job has cut over meanwhile. Read the manifest again, "
            "and publish with a larger generation."
        )
    store.manifests.learn(config.project, manifest.encoder, text.encode())


def remove_fill(
    store: EmbeddingOnlineStore,
    config: RepoConfig,
    view_name: str,
    join_key: str,
    fill: str,
    features: Sequence[str],
) -> None:
    """Removes a retired fill's fields from every entity of the project, in small steps; can be repeated.

    Raises:
        OnlineStoreError: Redis cannot be reached.
    """
    name = keys.qualified(view_name, fill)
    with store.redis(config) as client:
        delete_fill(client, config.project, join_key, name, features)
        forget_changes(client, config.project, name)
        client.delete(keys.writer_key(config.project, name))


def _values(vectors: Float32s, storage: Storage) -> npt.NDArray[np.uint8]:
    """Reads return the very vectors: those that a log holds from before its view's storage changed keep their bits."""
    return wire.vector_rows(vectors, storage if holds(vectors, storage) else "float32")


def _read_columns(
    store: EmbeddingOnlineStore, config: RepoConfig, join_key: str, ids: Ids, fields: Sequence[bytes]
) -> list[list[bytes | None]]:
    rows: list[Sequence[bytes | None]] = []
    with store.redis(config) as client:
        for part in _slices(len(ids), _READ_ROWS):
            pipe = reads(client)
            queue_hmgets(pipe, keys.entity_key_rows(config.project, join_key, ids[part]), fields)
            rows += pipe.execute()
    return [[row[column] for row in rows] for column in range(len(fields))]


def _encode_histories(batch: HistoryBatch, item_dtype: str) -> list[list[bytes]]:
    offsets = batch.offsets
    items = (
        wire.encode_strings(batch.items.astype(object), offsets)
        if item_dtype == "string"
        else wire.encode_integers(batch.items.astype(np.int64), offsets)
    )
    return [
        items,
        wire.encode_integers(batch.behavior_types, offsets),
        wire.encode_integers(batch.times, offsets),
        wire.encode_floats(batch.values, offsets),
    ]


def _decode_int64s(values: Sequence[bytes | None], view: str) -> tuple[Int64s, Int64s]:
    return wire.decode_integers(values, "int64_list_val", view)


def _before(batch: HistoryBatch, as_of_us: int) -> HistoryBatch:
    kept = batch.times < as_of_us
    if bool(kept.all()):
        return batch
    offsets = np.concatenate([[0], np.cumsum(kept)])[batch.offsets].astype(np.int64)
    return HistoryBatch(
        offsets, batch.items[kept], batch.behavior_types[kept], batch.times[kept], batch.values[kept], batch.as_of
    )


def _same_length(view_name: str, ids: Ids, rows: int) -> None:
    if len(ids) != rows:
        raise OnlineStoreError(
            f"A write to view {view_name!r} has {len(ids)} ids and {rows} rows: give one row per id."
        )


def _slices(rows: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, rows, size))

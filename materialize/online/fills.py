"""What ticks do in Redis: guarded writes, the state they start from, and the cutover.

Every write carries its tick's number, and Redis itself keeps a row whose stored number is equal or larger. So
writing a tick again, in part or in whole, in any order, ends in the same rows: at least once becomes exactly once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from feast_embeddings.materialize.declare import Storage, holds
from feast_embeddings.materialize.online import keys, wire
from feast_embeddings.materialize.online.commands import call_script, queue_hmgets, reads
from feast_embeddings.materialize.online.guarded_write import OnChunk, TickStamp, decode_stamps, write_guarded
from feast_embeddings.materialize.online.keys import FillPlace, HistoryPlace
from feast_embeddings.materialize.online.manifest import Manifest
from feast_embeddings.materialize.online.removal import entity_batches
from feast_embeddings.materialize.online.server import OnlineServer
from feast_embeddings.materialize.online.versions import record_change
from feast_embeddings.models.encoder import HistoryBatch
from feast_embeddings.models.errors import OnlineStoreError
from feast_embeddings.models.types import Float32s, Ids, Int64s
from feast_embeddings.transformations.views import tags

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
    server: OnlineServer,
    place: FillPlace,
    stamp: TickStamp,
    ids: Ids,
    vectors: Float32s,
    *,
    storage: Storage = "float32",
    on_chunk: OnChunk | None = None,
) -> int:
    """Writes a tick's vectors (float32 [n, dim]) of entities ``ids`` [n] into a fill.

    Args:
        server: The Redis server.
        place: The fill.
        stamp: The tick, its end, and the rows' event timestamp.
        ids: Entities, int64 or strings, each once.
        vectors: One row per entity.
        storage: How to keep the vectors, as they were rounded before; those that are not so are kept as float32.
        on_chunk: Called after every ``server.chunk_rows`` rows, with the rows sent so far; what it raises stops the
            write.

    Returns:
        The number of rows written; those that a tick of the same or a larger number wrote before are left as they are.

    Raises:
        OnlineStoreError: Redis cannot be reached, or refused; or ids and vectors are not of one length.
    """
    _same_length(place.view, ids, len(vectors))
    chunks = (
        (keys.entity_key_rows(server.project, place.join_key, ids[rows]), [_values(vectors[rows], storage)])
        for rows in _slices(len(ids), server.chunk_rows)
    )
    written = write_guarded(server, place.name, [place.feature], stamp, chunks, on_chunk)
    record_change(server, place.name, ids)  # also where nothing was written: the job that did so may have stopped here
    return written


def write_history(
    server: OnlineServer,
    place: HistoryPlace,
    stamp: TickStamp,
    ids: Ids,
    batch: HistoryBatch,
    *,
    on_chunk: OnChunk | None = None,
) -> int:
    """Writes the histories (``batch``, n of them) of entities ``ids`` [n], as :func:`write_fill`."""
    _same_length(place.view, ids, len(batch))
    rows_of = np.arange(len(ids), dtype=np.int64)
    chunks = (
        (
            keys.entity_key_rows(server.project, place.join_key, ids[rows]),
            _encode_histories(batch.take(rows_of[rows]), place.item_dtype),
        )
        for rows in _slices(len(ids), server.chunk_rows)
    )
    return write_guarded(server, place.view, tags.HISTORY_FEATURES, stamp, chunks, on_chunk)


def read_fill(server: OnlineServer, place: FillPlace, dim: int, ids: Ids) -> FillRows:
    """The rows of entities ``ids`` in one fill, live or not; no ttl is applied.

    Raises:
        OnlineStoreError: Redis cannot be reached.
        SpaceError: A stored vector is not of ``dim`` dimensions.
    """
    values, stored = _read_columns(server, place.join_key, ids, place.fields())
    vectors, found = wire.decode_vectors(values, dim, place.view)
    return FillRows(vectors, found, *decode_stamps(stored))


def scan_fill(server: OnlineServer, place: FillPlace) -> Iterator[tuple[Ids, FillRows]]:
    """Every row of a fill, some at a time: ids [n], and their rows. One that is moved meanwhile may come twice.

    Raises:
        OnlineStoreError: Redis cannot be reached, or holds something else there.
        SpaceError: The vectors are not of one length.
    """
    dim = 0
    with server.client() as client:
        for batch in entity_batches(client, server.project, [place.join_key]):
            pipe = reads(client)
            queue_hmgets(pipe, batch, place.fields())
            rows = [(key, *reply) for key, reply in zip(batch, pipe.execute(), strict=True) if reply[0]]
            if rows:
                present, values, stored = zip(*rows, strict=True)
                dim = dim or wire.vector_length(values[0], place.view)
                vectors, found = wire.decode_vectors(values, dim, place.view)
                yield keys.ids_of_keys(present, place.join_key), FillRows(vectors, found, *decode_stamps(stored))


def read_history(server: OnlineServer, place: HistoryPlace, ids: Ids, as_of_us: int) -> HistoryBatch:
    """The stored histories of entities ``ids``, empty where there is none.

    ``as_of_us`` is what the batch states; behaviors at or after it, if any are stored, are left out.

    Raises:
        OnlineStoreError: Redis cannot be reached, or holds something else there.
    """
    view, fields = place.view, [keys.feature_field(place.view, feature) for feature in tags.HISTORY_FEATURES]
    items, types, times, values = _read_columns(server, place.join_key, ids, fields)
    decode_items = wire.decode_strings if place.item_dtype == "string" else _decode_int64s
    flat_items, offsets = decode_items(items, view)
    flat_types, type_offsets = wire.decode_integers(types, "int32_list_val", view)
    flat_times, time_offsets = _decode_int64s(times, view)
    flat_values, value_offsets = wire.decode_floats(values, view)
    if any(not np.array_equal(offsets, other) for other in (type_offsets, time_offsets, value_offsets)):
        raise OnlineStoreError(
            f"The histories of view {view!r} in Redis disagree in length: something else wrote to them. "
            "Run `feast materialize` to write them anew."
        )
    as_of = np.full(len(ids), as_of_us, np.int64)
    batch = HistoryBatch(offsets, flat_items, flat_types.astype(np.int32), flat_times, flat_values, as_of)
    return _before(batch, as_of_us)


def read_manifest(server: OnlineServer, encoder: str) -> Manifest | None:
    """The encoder's live manifest as Redis holds it now; None before the first cutover.

    Raises:
        OnlineStoreError: Redis cannot be reached, or the manifest is unreadable.
    """
    with server.client() as client:
        text = client.get(keys.manifest_key(server.project, encoder))
    return server.manifests.learn(encoder, text)


def publish_manifest(server: OnlineServer, manifest: Manifest) -> None:
    """The cutover: one atomic SET. Publishing the stored manifest again is harmless.

    Raises:
        OnlineStoreError: A manifest with the same or a larger generation is live (a rollback, too, takes a new
            generation number), or Redis cannot be reached.
    """
    key, text = keys.manifest_key(server.project, manifest.encoder), manifest.to_json()
    with server.client() as client:
        answer = call_script(client, "publish_manifest.lua", [key], [text, manifest.generation]).decode()
    if answer != "stored":
        raise OnlineStoreError(
            f"Generation {manifest.generation} of encoder {manifest.encoder!r} is not newer than the live one "
            f"({answer.removeprefix('refused ')}): another job has cut over meanwhile. Read the manifest again, "
            "and publish with a larger generation."
        )
    server.manifests.learn(manifest.encoder, text.encode())


def _values(vectors: Float32s, storage: Storage) -> npt.NDArray[np.uint8]:
    """Reads return the very vectors: those that a log holds from before its view's storage changed keep their bits."""
    return wire.vector_rows(vectors, storage if holds(vectors, storage) else "float32")


def _read_columns(server: OnlineServer, join_key: str, ids: Ids, fields: Sequence[bytes]) -> list[list[bytes | None]]:
    rows: list[Sequence[bytes | None]] = []
    with server.client() as client:
        for part in _slices(len(ids), _READ_ROWS):
            pipe = reads(client)
            queue_hmgets(pipe, keys.entity_key_rows(server.project, join_key, ids[part]), fields)
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

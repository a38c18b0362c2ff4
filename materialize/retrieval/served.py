"""Vectors as reads returned them: for every entity and time, the row of the embedding log that was served then.

A query (entity, t) is answered in two steps. The cutovers say which fill of the space reads went to at t; an ASOF
join on keys alone then finds that fill's last row at or before t. Only then are vectors read, and only from the
files that hold an answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from feast_embeddings.materialize.declare import EmbeddingSpec
from feast_embeddings.materialize.files import EmbeddingLog
from feast_embeddings.materialize.ledger import Ledger
from feast_embeddings.models.errors import LedgerError, SpaceError
from feast_embeddings.models.types import Float32s, Int64s
from feast_embeddings.transformations.views import EMBEDDING

VECTOR = pa.list_(pa.float32())
ALWAYS = np.iinfo(np.int64).min
_NOWHERE = -1
_CHUNK_ROWS = 1 << 18  # rows per chunk of the answer: int32 list offsets reach 8192 dimensions
_BATCH_ROWS = 1 << 15  # rows per batch of a scan, of which some dozen are in memory at once
_ASOF = """
    SELECT queries.number AS number, log.position AS position
    FROM queries ASOF JOIN log
      ON queries.id = log.id AND queries.fill = log.fill AND queries.at >= log.since
"""


def served_space(ledger: Ledger, spec: EmbeddingSpec, pin: str | None) -> str | None:
    """The one space a retrieval reads: the pinned one, or the one live now; None before the first cutover.

    Raises:
        SpaceError: No fill of the view in the pinned space is live or retained.
    """
    fills = ledger.fills(view=spec.view, states=("live", "retained"))
    if pin is None:
        live = ledger.live_generation(spec.encoder)
        name = live.fills.get(spec.view) if live else None
        return next((fill.space for fill in fills if fill.fill == name), None)
    served = sorted({fill.space for fill in fills})
    if pin not in served:
        raise SpaceError(
            f"Feature view {spec.view!r} of encoder {spec.encoder!r} has no fill in space {pin!r}: it is unknown or "
            f"retired. Served spaces: {', '.join(served) or 'none'}. Pin one of these, or read the view without a pin."
        )
    return pin


def served_vectors(
    ledger: Ledger, log: EmbeddingLog, spec: EmbeddingSpec, space: str | None, ids: pa.Array, times_us: Int64s
) -> pa.ChunkedArray:
    """What a read of ``space`` returned for each entity and time, bit for bit.

    Args:
        ledger: Names the fill that each cutover made live.
        log: The view's embedding log.
        spec: The view's declaration.
        space: The space read; None: nothing has been served yet.
        ids: Entities [n], int64 or string as the view has them; null ids have no vector.
        times_us: int64 [n], microseconds since the epoch, UTC.

    Returns:
        list<float32> [n]: null for an unknown entity, before the space was served (unless a replay has rows
        there), and past the view's ttl.

    Raises:
        LedgerError: A file of the log is damaged, or was changed during the read.
    """
    files = log.files()
    if space is None or not files or not len(ids):
        return pa.chunked_array([pa.nulls(len(ids), VECTOR)])
    with _readable(log):
        rows = _LogRows(log, ds.dataset([str(file) for file in files], log.schema, format="parquet"), space)
        if not rows.keys.num_rows:
            return pa.chunked_array([pa.nulls(len(ids), VECTOR)])
        fills = [fill for fill in ledger.fills(view=spec.view) if fill.space == space]
        codes = {fill.fill: code for code, fill in enumerate(fills)}
        steps = [step for step in ledger.serving(spec.view, spec.encoder) if step.space == space]
        cutovers = {step.fill: step.from_us for step in reversed(steps)}
        code, since = rows.keyed({fill.fill: cutovers.get(fill.fill, ALWAYS) for fill in fills})
        froms = np.array([step.from_us for step in steps], np.int64)
        # before its first cutover a space was not served: only the rows of a replay answer there
        served = np.array([*(codes[step.fill] for step in steps), len(codes)], np.int32)
        asked = served[np.searchsorted(froms, times_us, side="right") - 1]
        position = _last_rows(ids, asked, times_us, rows.keys[log.join_key], code, since)
        if spec.ttl_us > 0:
            age = times_us - rows.written_us[position]
            position[age > spec.ttl_us] = _NOWHERE
        return _lists(rows, position)


class _LogRows:
    """The rows of one space in an embedding log: keys in memory, vectors on disk until asked for."""

    def __init__(self, log: EmbeddingLog, dataset: ds.Dataset, space: str) -> None:
        self._filter = ds.field("space") == space
        self._fragments = list(dataset.get_fragments())
        names = [log.join_key, "event_timestamp", "written_at", "tick", "fill", "replayed", "__fragment_index"]
        self._folder = log.folder
        self._schema = log.schema
        self.keys = dataset.to_table(columns=names, filter=self._filter)

    def keyed(self, cutovers: Mapping[str, int]) -> tuple[npt.NDArray[np.int32], Int64s]:
        """Fill code int32 [N] and the time int64 [N] (µs) from which reads of that fill returned each row.

        What a fill held at its first cutover (``cutovers``: fill → µs) is there from then on, whatever time its rows
        carry: of those of one entity, the one of the highest tick. Replayed rows have the code that follows the last
        fill's; rows of fills the ledger does not know have -1.
        """
        found = pc.index_in(self.keys["fill"], value_set=pa.array(list(cutovers), pa.string())).fill_null(-1)
        code, replayed = np.array(found.to_numpy(), np.int32), np.asarray(self.keys["replayed"].to_numpy(), np.bool_)
        since, first = _us(self.keys["event_timestamp"]), np.array([*cutovers.values(), ALWAYS], np.int64)
        held = (since <= first[code]) & (code >= 0) & ~replayed
        code[replayed] = len(cutovers)
        return code, np.where(held, ALWAYS + self.keys["tick"].to_numpy(), since)

    @cached_property
    def written_us(self) -> Int64s:
        """Start of each row's online write, int64 [N], microseconds."""
        return _us(self.keys["written_at"])

    def vectors(self, rows: Int64s) -> Float32s:
        """float32 [n, dim] of ``rows`` (int64 [n], ascending, at least one)."""
        counts = np.bincount(self.keys["__fragment_index"].to_numpy(), minlength=len(self._fragments))
        ends = np.cumsum(counts)
        needed, which = np.unique(np.searchsorted(ends, rows, side="right"), return_inverse=True)
        # where the rows stand in a scan of the needed files alone
        skipped = (ends - counts)[needed] - (np.cumsum(counts[needed]) - counts[needed])
        places = rows - skipped[which]
        parts, seen = [], 0
        for batch in self._scan(needed.tolist(), counts):
            low, high = np.searchsorted(places, [seen, seen + batch.num_rows])
            if high > low:
                flat = batch.column(0).flatten().to_numpy(zero_copy_only=False)
                parts.append(flat.reshape(batch.num_rows, -1)[places[low:high] - seen])
            seen += batch.num_rows
        if seen != counts[needed].sum():
            raise LedgerError(f"The embedding log {self._folder} was changed while it was read: ask again.")
        return np.concatenate(parts)

    def _scan(self, needed: list[int], counts: Int64s) -> Iterator[pa.RecordBatch]:
        """The vectors of some files. Filtering copies every vector, so files of this space alone go without."""
        fragments = [self._fragments[index] for index in needed]
        whole = all(self._fragments[index].count_rows() == counts[index] for index in needed)
        dataset = ds.FileSystemDataset(fragments, self._schema, fragments[0].format, fragments[0].filesystem)
        wanted = None if whole else self._filter
        yield from dataset.to_batches(columns=[EMBEDDING], filter=wanted, batch_size=_BATCH_ROWS)


def _last_rows(
    ids: pa.Array,
    asked: npt.NDArray[np.int32],
    times_us: Int64s,
    log_ids: pa.ChunkedArray,
    code: npt.NDArray[np.int32],
    since: Int64s,
) -> Int64s:
    """Position int64 [n] of the last row of the asked fill at or before each time; -1 where there is none."""
    queries = pa.table({"number": np.arange(len(ids)), "id": ids, "fill": asked, "at": times_us})
    rows = pa.table({"position": np.arange(len(since)), "id": log_ids, "fill": code, "since": since})
    with duckdb.connect() as connection:
        connection.register("queries", queries)
        connection.register("log", rows)
        found = connection.execute(_ASOF).fetchnumpy()
    position = np.full(len(ids), _NOWHERE, np.int64)
    position[found["number"]] = found["position"]
    return position


def _lists(rows: _LogRows, position: Int64s) -> pa.ChunkedArray:
    known = position != _NOWHERE
    if not known.any():
        return pa.chunked_array([pa.nulls(len(position), VECTOR)])
    unique, inverse = np.unique(position[known], return_inverse=True)
    vectors = rows.vectors(unique)
    place = np.cumsum(known) - 1
    chunks = []
    for start in range(0, len(position), _CHUNK_ROWS):
        here = known[start : start + _CHUNK_ROWS]
        values = vectors[inverse[place[start : start + _CHUNK_ROWS][here]]]
        offsets = np.concatenate([[0], np.cumsum(here)]) * vectors.shape[1]
        chunks.append(
            pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values.reshape(-1)), mask=pa.array(~here))
        )
    return pa.chunked_array(chunks, VECTOR)


def _us(column: pa.ChunkedArray) -> Int64s:
    return np.asarray(column.cast(pa.int64()).to_numpy(), np.int64)


@contextmanager
def _readable(log: EmbeddingLog) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowInvalid) as error:
        first = str(error).split("\n", maxsplit=1)[0]
        raise LedgerError(
            f"The embedding log {log.folder} cannot be read ({first}). If a job was at work on it, ask again; "
            "otherwise restore its files."
        ) from error

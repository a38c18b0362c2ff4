"""Staged files: what a tick has computed, on disk, before anything is written to Redis.

A staged file is created exclusively, whole, under a name fixed by view, fill and tick: whoever finds it applies it and
computes nothing, so a retried blend is never applied twice. Large ones are written and read in parts.
"""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
import pyarrow as pa

from feast_embeddings.materialize.declare import Storage, as_stored
from feast_embeddings.models import HistoryBatch
from feast_embeddings.models.errors import LedgerError
from feast_embeddings.models.types import Float32s, Ids, Int64s

PART_ROWS: Final = 1 << 16
"""Rows that are read of a staged file at once."""
CAUGHT_UP: Final = ".caught-up"
_TICKS: Final = b"feast_embeddings.ticks"
_WAITING: Final = 2  # parts on their way to the disk


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """What some ticks made of a fill that was still being made.

    Attributes:
        ids: Entities [n], each once.
        vectors: float32 [n, dim], as the last of the ticks that had the entity left them.
        tick: int64 [n], the number of that tick.
        ticks: Numbers of all the ticks.
    """

    ids: Ids
    vectors: Float32s
    tick: Int64s
    ticks: tuple[int, ...]


class StagedHistories:
    """The histories of a refresh, on disk, looked up by entity."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table
        self._index = pd.Index(ids_of(table["id"]))

    def of(self, ids: Ids) -> HistoryBatch:
        """The histories of entities [n], in that order; empty where the refresh knew nothing of one."""
        rows = self._index.get_indexer(pd.Index(ids))
        known = np.flatnonzero(rows >= 0)
        _, batch = _histories_of(self._table.take(pa.array(rows[known])))
        lengths, as_of = np.zeros(len(ids), np.int64), np.zeros(len(ids), np.int64)
        lengths[known], as_of[known] = batch.lengths, batch.as_of
        return replace(batch, offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), as_of=as_of)


class StagedFiles:
    """The staged files of one embedding view, in a folder of their own."""

    def __init__(self, folder: Path, join_key: str, *, string_ids: bool, storage: Storage = "float32") -> None:
        self.folder = folder
        self.join_key = join_key
        self._id_type = pa.string() if string_ids else pa.int64()
        self._storage = storage

    def stage(self, fill: str, tick: int, ids: Ids, vectors: Float32s) -> None:
        """Stage the vectors of a fill and tick: ids [n], float32 [n, dim]. A file that is there already wins."""
        create(self._staged_path(fill, tick), self._vector_table(ids, vectors))

    def staged(self, fill: str, tick: int) -> tuple[Ids, Float32s] | None:
        """The staged ids and vectors, or None where nothing was staged."""
        table = read_ipc(self._staged_path(fill, tick))
        return None if table is None else (ids_of(table["id"]), matrix_of(table["embedding"]))

    def staged_parts(self, fill: str, tick: int) -> Iterator[tuple[Ids, Float32s]]:
        """As :meth:`staged`, in parts of about ``PART_ROWS`` rows; the next one is read meanwhile."""
        for table in ahead(_parts(self._staged_path(fill, tick))):
            yield ids_of(table["id"]), matrix_of(table["embedding"])

    @contextlib.contextmanager
    def staging(self, fill: str, tick: int) -> Iterator[Callable[[Ids, Float32s], None]]:
        """Stage in parts: call what it gives with ids [n] and float32 [n, dim]; the file is there when all are."""
        with _creating(self._staged_path(fill, tick)) as append:
            yield lambda ids, vectors: append(self._vector_table(ids, vectors))

    def has_staged(self, tick: int, fills: Sequence[str], *, history: bool) -> bool:
        """Whether all of a tick's files are staged, its histories too if it has some; reads none of them."""
        names = [*fills, "history"] if history else fills
        return all(self._staged_path(name, tick).exists() for name in names)

    # ── histories ────────────────────────────────────────────────────────────────────────────────────────

    def stage_history(self, tick: int, ids: Ids, batch: HistoryBatch) -> None:
        """Stage the histories [n] that a tick leaves behind."""
        create(self._staged_path("history", tick), self._history_table(ids, batch))

    @contextlib.contextmanager
    def staging_history(self, tick: int) -> Iterator[Callable[[Ids, HistoryBatch], None]]:
        """As :meth:`staging`, for histories."""
        with _creating(self._staged_path("history", tick)) as append:
            yield lambda ids, batch: append(self._history_table(ids, batch))

    def staged_history(self, tick: int) -> tuple[Ids, HistoryBatch] | None:
        """The staged ids and histories, or None where nothing was staged."""
        table = read_ipc(self._staged_path("history", tick))
        return None if table is None else _histories_of(table)

    def staged_history_parts(self, tick: int) -> Iterator[tuple[Ids, HistoryBatch]]:
        """As :meth:`staged_history`, in parts."""
        path = self._staged_path("history", tick)
        yield from map(_histories_of, ahead(_parts(path)) if path.exists() else ())

    def staged_histories(self, refresh: int) -> StagedHistories:
        """The staged histories of a refresh, looked up by entity; raises LedgerError where they are gone."""
        path = self._staged_path("history", refresh)
        table = read_ipc(path)
        if table is None:
            raise LedgerError(f"Refresh {refresh} has no staged histories at {path}: run `feast materialize` again.")
        return StagedHistories(table)

    # ── of a fill that is still being made ───────────────────────────────────────────────────────────────

    def stage_caught_up(self, fill: str, rows: CaughtUp) -> CaughtUp:
        """Stage what ticks make of a fill that is still being made, under the last one's number; as :meth:`stage`.

        Returns:
            What is staged there: these rows, or those of whoever came first.

        Raises:
            LedgerError: The file that stands there is not whole.
        """
        table = self._vector_table(rows.ids, rows.vectors).append_column("tick", pa.array(rows.tick, pa.int64()))
        known = {_TICKS: json.dumps(list(rows.ticks)).encode()}
        path = self._caught_up_path(fill, max(rows.ticks))
        create(path, table.replace_schema_metadata(known))
        staged = _read_caught_up(path)
        if staged is None:
            raise LedgerError(f"{path} is not whole: remove it, and run the refresh again.")
        return staged

    def caught_up(self, fill: str) -> Iterator[CaughtUp]:
        """What was staged for a fill while it was made, in the order of the ticks."""
        end = f"-{fill}{CAUGHT_UP}.arrow"
        for path in sorted(path for path in self.folder.glob("staged/*.arrow") if path.name[10:] == end):
            staged = _read_caught_up(path)
            if staged is not None:
                yield staged

    def drop_caught_up(self, fill: str) -> None:
        """Remove what was staged for a fill while it was made; the log holds its rows."""
        for rows in list(self.caught_up(fill)):
            self._caught_up_path(fill, max(rows.ticks)).unlink(missing_ok=True)

    def _caught_up_path(self, fill: str, tick: int) -> Path:
        return self._staged_path(f"{fill}{CAUGHT_UP}", tick)

    def drop_staged(self, tick: int, fills: Sequence[str]) -> None:
        """Remove a tick's staged files; the log holds their rows."""
        for name in ("history", *fills):
            self._staged_path(name, tick).unlink(missing_ok=True)

    # ── private ──────────────────────────────────────────────────────────────────────────────────────────

    def _vector_table(self, ids: Ids, vectors: Float32s) -> pa.Table:
        return pa.table({"id": pa.array(ids, self._id_type), "embedding": lists(as_stored(vectors, self._storage))})

    def _history_table(self, ids: Ids, batch: HistoryBatch) -> pa.Table:
        ragged = {
            "items": pa.array(batch.items, pa.string() if batch.items.dtype == object else pa.int64()),
            "types": pa.array(batch.behavior_types),
            "times": pa.array(batch.times),
            "values": pa.array(batch.values),
        }
        offsets = pa.array(batch.offsets, pa.int64())
        columns = {name: pa.LargeListArray.from_arrays(offsets, values) for name, values in ragged.items()}
        return pa.table({"id": pa.array(ids, self._id_type), **columns, "as_of": pa.array(batch.as_of)})

    def _staged_path(self, name: str, tick: int) -> Path:
        return self.folder / "staged" / f"{tick:010d}-{name}.arrow"


def ids_of(column: pa.ChunkedArray | pa.Array) -> Ids:
    """An id column as int64, or as an object array of strings."""
    if pa.types.is_integer(column.type):
        return np.asarray(column.to_numpy(), np.int64)
    return np.asarray(column.to_pylist(), object)


def matrix_of(column: pa.ChunkedArray | pa.Array) -> Float32s:
    """A list column without nulls, all lists equally long, as float32 [n, dim]."""
    rows = len(column)
    flat = column.combine_chunks().flatten() if isinstance(column, pa.ChunkedArray) else column.flatten()
    values = np.asarray(flat.to_numpy(zero_copy_only=False), np.float32)
    return values.reshape(rows, -1) if rows else values.reshape(0, 0)


def lists(vectors: Float32s) -> pa.ListArray:
    """float32 [n, dim] as a list column [n]."""
    rows, dim = vectors.shape
    offsets: Int64s = np.arange(rows + 1, dtype=np.int64) * dim
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(vectors.reshape(-1), pa.float32()))


def create(path: Path, table: pa.Table) -> None:
    """Write a whole file under a name that must be new; one that exists is left as it is."""
    with temporary(path) as unfinished:
        write_ipc(table, unfinished)
        finish(unfinished, path)


@contextlib.contextmanager
def _creating(path: Path) -> Iterator[Callable[[pa.Table], None]]:
    """Write tables of one schema into a new file, in a thread of their own; it gets its name when all are there."""
    with temporary(path) as unfinished:
        with _BackgroundWriter(unfinished) as writer:
            yield writer.append
        finish(unfinished, path)


def finish(unfinished: Path, path: Path) -> None:
    """Make a whole file durable, and give it its name, which must be new; one that exists is left as it is."""
    sync(unfinished)
    with contextlib.suppress(FileExistsError):
        os.link(unfinished, path)


class _BackgroundWriter:
    """Writes tables to an Arrow file while the next ones are made; a few wait at most."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pool = ThreadPoolExecutor(1)
        self._waiting: deque[Future[None]] = deque()
        self._stack = contextlib.ExitStack()
        self._writer: pa.RecordBatchFileWriter | None = None

    def append(self, table: pa.Table) -> None:
        while len(self._waiting) >= _WAITING:
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(self._write, table))

    def _write(self, table: pa.Table) -> None:
        if self._writer is None:
            sink = self._stack.enter_context(pa.OSFile(str(self._path), "wb"))
            self._writer = self._stack.enter_context(pa.ipc.new_file(sink, table.schema))
        self._writer.write_table(table)

    def __enter__(self) -> _BackgroundWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._pool.shutdown(cancel_futures=kind is not None)
        self._stack.close()
        if kind is None:
            for done in self._waiting:
                done.result()


def ahead(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same tables, each read in a thread while its predecessor is used."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, tables, None)
        while (table := coming.result()) is not None:
            coming = pool.submit(next, tables, None)
            yield table


def replace_file(path: Path, write: Callable[[Path], None]) -> None:
    """Write a whole file in the place of another, or as a new one."""
    with temporary(path) as unfinished:
        write(unfinished)
        sync(unfinished)
        unfinished.replace(path)


@contextlib.contextmanager
def temporary(path: Path) -> Iterator[Path]:
    """A hidden name beside ``path``; what is left there at the end is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        yield unfinished
    finally:
        unfinished.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def write_ipc(table: pa.Table, path: Path) -> None:
    """Write an Arrow file."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def _read_caught_up(path: Path) -> CaughtUp | None:
    table = read_ipc(path)
    if table is None:
        return None
    ticks = json.loads(table.schema.metadata[_TICKS])
    numbers = np.asarray(table["tick"].to_numpy(), np.int64)
    return CaughtUp(ids_of(table["id"]), matrix_of(table["embedding"]), numbers, tuple(ticks))


def read_ipc(path: Path) -> pa.Table | None:
    """An Arrow file, mapped into memory; None where there is none."""
    if not path.exists():
        return None
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()


def _parts(path: Path) -> Iterator[pa.Table]:
    """Tables of about ``PART_ROWS`` rows, at least one; read, not mapped: mapped pages count as used memory."""
    with pa.OSFile(str(path)) as source:
        file = pa.ipc.open_file(source)
        batches: list[pa.RecordBatch] = []
        for number in range(file.num_record_batches):
            batches.append(file.get_batch(number))
            if sum(map(len, batches)) >= PART_ROWS:
                yield pa.Table.from_batches(batches)
                batches = []
        if batches or not file.num_record_batches:
            yield pa.Table.from_batches(batches, file.schema)


def _histories_of(table: pa.Table) -> tuple[Ids, HistoryBatch]:
    columns = {name: table[name].combine_chunks() for name in ("items", "types", "times", "values")}
    lengths = np.asarray(columns["times"].value_lengths())
    return ids_of(table["id"]), HistoryBatch(
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        items=ids_of(columns["items"].flatten()),
        behavior_types=columns["types"].flatten().to_numpy().astype(np.int32),
        times=columns["times"].flatten().to_numpy().astype(np.int64),
        values=columns["values"].flatten().to_numpy(zero_copy_only=False).astype(np.float32),
        as_of=table["as_of"].to_numpy().astype(np.int64),
    )

"""Staged tick files, and the embedding log: every vector that online reads could return, and since when.

A staged file is created exclusively, under a name fixed by view, fill and tick: whoever finds it applies it and
computes nothing, so a retried blend is never applied twice. The log is append-only parquet; publishing the same
tick again replaces its own file.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feast_embeddings.models import HistoryBatch
from feast_embeddings.models.batch import Float32s, Ids, Int64s
from feast_embeddings.models.errors import LedgerError
from feast_embeddings.transformations.tags import EMBEDDING

_TIME = pa.timestamp("us", tz="UTC")


@dataclass(frozen=True)
class LogStamp:
    """What every log row of one fill and tick carries beside its vector; times in microseconds, UTC.

    Attributes:
        fill, space: The fill, and its space.
        tick, tick_end_us: The tick, and the event time up to which its vectors know behaviors.
        written_us: Start of the Redis write, the online timestamp; a ttl counts from it.
        event_us: From when reads returned the rows.
        replayed: Computed by a replay, never served.
    """

    fill: str
    space: str
    tick: int
    tick_end_us: int
    written_us: int
    event_us: int
    replayed: bool = False


class EmbeddingLog:
    """The staged files and the log of one embedding view, under one folder."""

    def __init__(self, folder: Path, join_key: str, *, string_ids: bool) -> None:
        self.folder = folder
        self.join_key = join_key
        self._id_type = pa.string() if string_ids else pa.int64()

    @property
    def schema(self) -> pa.Schema:
        """Columns of the log."""
        return pa.schema(
            [
                (self.join_key, self._id_type),
                (EMBEDDING, pa.list_(pa.float32())),
                ("event_timestamp", _TIME),
                ("written_at", _TIME),
                ("tick", pa.int64()),
                ("tick_end", _TIME),
                ("space", pa.string()),
                ("fill", pa.string()),
                ("replayed", pa.bool_()),
            ]
        )

    def create(self) -> None:
        """Make the folders, and an empty file that gives a fresh log its columns for any reader."""
        empty = self.folder / "live" / "0000000000-empty.parquet"
        if not empty.exists():
            _replace(empty, lambda path: pq.write_table(self.schema.empty_table(), path))

    # ── staged files ─────────────────────────────────────────────────────────────────────────────────────

    def stage(self, fill: str, tick: int, ids: Ids, vectors: Float32s) -> None:
        """Stage the vectors of a fill and tick: ids [n], float32 [n, dim]. A file that is there already wins."""
        columns = {"id": pa.array(ids, self._id_type), "embedding": _lists(vectors)}
        _create(self._staged_path(fill, tick), pa.table(columns))

    def staged(self, fill: str, tick: int) -> tuple[Ids, Float32s] | None:
        """The staged ids and vectors, or None where nothing was staged."""
        table = _read_ipc(self._staged_path(fill, tick))
        return None if table is None else (ids_of(table["id"]), matrix_of(table["embedding"]))

    def has_staged(self, tick: int, fills: Sequence[str], *, history: bool) -> bool:
        """Whether all of a tick's files are staged, its histories too if it has some; reads none of them."""
        names = [*fills, "history"] if history else fills
        return all(self._staged_path(name, tick).exists() for name in names)

    def stage_history(self, tick: int, ids: Ids, batch: HistoryBatch) -> None:
        """Stage the histories [n] that a tick leaves behind."""
        ragged = {
            "items": pa.array(batch.items),
            "types": pa.array(batch.behavior_types),
            "times": pa.array(batch.times),
            "values": pa.array(batch.values),
        }
        offsets = pa.array(batch.offsets, pa.int64())
        columns = {name: pa.LargeListArray.from_arrays(offsets, values) for name, values in ragged.items()}
        table = pa.table({"id": pa.array(ids, self._id_type), **columns, "as_of": pa.array(batch.as_of)})
        _create(self._staged_path("history", tick), table)

    def staged_history(self, tick: int) -> tuple[Ids, HistoryBatch] | None:
        """The staged ids and histories, or None where nothing was staged."""
        table = _read_ipc(self._staged_path("history", tick))
        if table is None:
            return None
        lists = {name: table[name].combine_chunks() for name in ("items", "types", "times", "values")}
        lengths = np.asarray(lists["times"].value_lengths())
        return ids_of(table["id"]), HistoryBatch(
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            items=ids_of(lists["items"].flatten()),
            behavior_types=lists["types"].flatten().to_numpy().astype(np.int32),
            times=lists["times"].flatten().to_numpy().astype(np.int64),
            values=lists["values"].flatten().to_numpy(zero_copy_only=False).astype(np.float32),
            as_of=table["as_of"].to_numpy().astype(np.int64),
        )

    def drop_staged(self, tick: int, fills: Sequence[str]) -> None:
        """Remove a tick's staged files; the log holds their rows."""
        for name in ("history", *fills):
            self._staged_path(name, tick).unlink(missing_ok=True)

    # ── the log ──────────────────────────────────────────────────────────────────────────────────────────

    def publish(self, stamp: LogStamp, *, live: bool) -> int:
        """Append the staged rows of a fill and tick to the log; returns how many.

        Args:
            stamp: What the rows carry.
            live: Live reads return them; otherwise only reads pinned to a retained generation.

        Raises:
            LedgerError: The staged file is gone.
        """
        path = self.folder / ("live" if live else "retained") / f"{stamp.tick:010d}-{stamp.fill}.parquet"
        staged = self.staged(stamp.fill, stamp.tick)
        if staged is None:
            if path.exists():
                return int(pq.read_metadata(path).num_rows)
            raise LedgerError(
                f"Tick {stamp.tick} of fill {stamp.fill} has no staged file under {self.folder / 'staged'}: "
                "restore the folder, or run `feast materialize` for a full refresh."
            )
        table = self._stamped(staged[0], staged[1], stamp)
        _replace(path, lambda temporary: _write_log(table, temporary))
        return int(table.num_rows)

    def files(self) -> list[Path]:
        """Every file of the log, live and retained, oldest tick first."""
        found = [*self.folder.glob("live/*.parquet"), *self.folder.glob("retained/*.parquet")]
        return sorted(found, key=lambda path: path.name)

    # ── erasure ──────────────────────────────────────────────────────────────────────────────────────────

    def erase(self, entity_id: int | str, on_file: Callable[[], None]) -> tuple[int, int]:
        """Remove every row of an entity, file by file, each replaced whole; the caller keeps all writers out.

        Args:
            entity_id: The entity.
            on_file: Called before each file; what it raises stops the removal, which can be run again.

        Returns:
            How many rows were removed from the log, replayed ones included, and how many from staged files.
        """
        for leftover in (path for path in self.folder.rglob(".*") if path.is_file()):
            leftover.unlink()  # of a writer that was killed; it may hold the entity
        logged = staged = 0
        for path in sorted(self.folder.rglob("*.parquet")):
            on_file()
            logged += self._erase_logged(path, pa.scalar(entity_id, self._id_type))
        for path in sorted(self.folder.rglob("*.arrow")):
            on_file()
            staged += self._erase_staged(path, pa.scalar(entity_id, self._id_type))
        return logged, staged

    def _erase_logged(self, path: Path, entity_id: pa.Scalar) -> int:
        keys = pq.read_table(path, columns=[self.join_key], partitioning=None)
        kept = pc.not_equal(keys[self.join_key], entity_id)
        gone = len(kept) - (pc.sum(kept).as_py() or 0)
        if gone:
            table = pq.read_table(path, partitioning=None).filter(kept)
            _replace(path, lambda temporary: _write_log(table, temporary))
        return int(gone)

    def _erase_staged(self, path: Path, entity_id: pa.Scalar) -> int:
        table = _read_ipc(path)
        if table is None:
            return 0
        left = table.filter(pc.not_equal(table["id"], entity_id))
        if left.num_rows < table.num_rows:
            _replace(path, lambda temporary: _write_ipc(left, temporary))
        return int(table.num_rows - left.num_rows)

    def _stamped(self, ids: Ids, vectors: Float32s, stamp: LogStamp) -> pa.Table:
        rows = len(ids)
        constants = (
            stamp.event_us,
            stamp.written_us,
            stamp.tick,
            stamp.tick_end_us,
            stamp.space,
            stamp.fill,
            stamp.replayed,
        )
        fields = list(self.schema)[2:]
        repeated = [
            pa.repeat(pa.scalar(value, field.type), rows) for field, value in zip(fields, constants, strict=True)
        ]
        return pa.Table.from_arrays([pa.array(ids, self._id_type), _lists(vectors), *repeated], schema=self.schema)

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


def _lists(vectors: Float32s) -> pa.ListArray:
    rows, dim = vectors.shape
    offsets: Int64s = np.arange(rows + 1, dtype=np.int64) * dim
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(vectors.reshape(-1), pa.float32()))


def _create(path: Path, table: pa.Table) -> None:
    """Write a whole file under a name that must be new; one that exists is left as it is."""
    with _temporary(path) as temporary:
        _write_ipc(table, temporary)
        _sync(temporary)
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)


def _write_log(table: pa.Table, path: Path) -> None:
    # A dictionary of floats saves nothing, and costs most of the time.
    repeating = [name for name in table.column_names if name != EMBEDDING]
    pq.write_table(table, path, compression="zstd", use_dictionary=repeating)


def _replace(path: Path, write: Callable[[Path], None]) -> None:
    with _temporary(path) as temporary:
        write(temporary)
        _sync(temporary)
        temporary.replace(path)


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _write_ipc(table: pa.Table, path: Path) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def _read_ipc(path: Path) -> pa.Table | None:
    if not path.exists():
        return None
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()

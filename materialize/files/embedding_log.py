"""The embedding log: every vector that online reads could return, and since when.

It is append-only parquet, made from the staged files of ticks; publishing the same tick again replaces its own file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feast_embeddings.materialize.files.staged import (
    CaughtUp,
    StagedFiles,
    ids_of,
    lists,
    matrix_of,
    read_ipc,
    replace_file,
    write_ipc,
)
from feast_embeddings.models.errors import LedgerError
from feast_embeddings.models.types import Float32s, Ids
from feast_embeddings.transformations.behaviors import concat_ids
from feast_embeddings.transformations.views import EMBEDDING

__all__ = ["EmbeddingLog", "LogStamp", "ids_of", "matrix_of"]

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


class EmbeddingLog(StagedFiles):
    """The log of one embedding view, and its staged files, under one folder."""

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
            replace_file(empty, lambda path: pq.write_table(self.schema.empty_table(), path))

    # ── the log ──────────────────────────────────────────────────────────────────────────────────────────

    def publish(self, stamp: LogStamp, *, live: bool) -> int:
        """Append the staged rows of a fill and tick to the log; returns how many.

        Args:
            stamp: What the rows carry.
            live: Live reads return them; otherwise only reads pinned to a retained generation.

        Raises:
            LedgerError: The staged file is gone.
        """
        return self._publish(self._logged_path(stamp, live=live), stamp.fill, stamp)

    def publish_fill(
        self,
        base: LogStamp,
        caught_up: Sequence[CaughtUp],
        stamp_of: Callable[[int], LogStamp],
        on_part: Callable[[], None],
    ) -> None:
        """Append the rows of a fill that becomes live: its first ones, or what ticks made of them since.

        Args:
            base: Stamp of the rows that the fill was made with.
            caught_up: What ticks made of them, in the order of the ticks; an entity's last row counts.
            stamp_of: Stamps of those ticks, by number.
            on_part: Called before each part of the rows; what it raises stops the writing.

        Raises:
            LedgerError: A staged file is gone.
        """
        later: Ids | None = None
        for rows in reversed(caught_up):
            on_part()
            self.publish_caught_up(rows, stamp_of, later)
            later = rows.ids if later is None else concat_ids([later, rows.ids])
        self._publish(self._logged_path(base, live=True), base.fill, base, later, on_part)

    def publish_caught_up(
        self, rows: CaughtUp, stamp_of: Callable[[int], LogStamp], without: Ids | None = None
    ) -> None:
        """Append what ticks made of a fill that becomes live, but for some entities, as one file."""
        kept = np.ones(len(rows.ids), np.bool_) if without is None else ~np.isin(rows.ids, without)
        last = stamp_of(max(rows.ticks))

        def parts() -> Iterator[pa.Table]:
            for tick in np.unique(rows.tick[kept]).tolist():
                own = kept & (rows.tick == tick)
                yield self._stamped(rows.ids[own], rows.vectors[own], stamp_of(tick))

        path = self._logged_path(last, live=True)
        replace_file(path, lambda unfinished: write_log(parts(), self.schema, unfinished))

    def _publish(
        self,
        path: Path,
        name: str,
        stamp: LogStamp,
        without: Ids | None = None,
        on_part: Callable[[], None] = lambda: None,
    ) -> int:
        """Write one file of the log from what is staged under ``name``, without some entities; in parts."""
        if not self._staged_path(name, stamp.tick).exists():
            if path.exists():
                return int(pq.read_metadata(path).num_rows)
            raise LedgerError(
                f"Tick {stamp.tick} of fill {stamp.fill} has no staged file under {self.folder / 'staged'}: "
                "restore the folder, or run `feast materialize` for a full refresh."
            )
        rows = 0

        def parts() -> Iterator[pa.Table]:
            nonlocal rows
            for ids, vectors in self.staged_parts(name, stamp.tick):
                on_part()
                kept = slice(None) if without is None else ~np.isin(ids, without)
                table = self._stamped(ids[kept], vectors[kept], stamp)
                rows += table.num_rows
                yield table

        replace_file(path, lambda unfinished: write_log(parts(), self.schema, unfinished))
        return rows

    def files(self, *folders: str) -> list[Path]:
        """Files of the log, live and retained or those of the folders named, oldest tick first."""
        found = [path for folder in folders or ("live", "retained") for path in self.folder.glob(f"{folder}/*.parquet")]
        return sorted(found, key=lambda path: path.name)

    def served(self, entity_id: int | str, space: str) -> pa.Table:
        """An entity's rows of a space, replays aside, one per tick, oldest first."""
        wanted = (pc.field(self.join_key) == entity_id) & (pc.field("space") == space) & ~pc.field("replayed")
        parts = [pq.read_table(path, schema=self.schema, partitioning=None, filters=wanted) for path in self.files()]
        rows = pa.concat_tables([self.schema.empty_table(), *parts])
        rows = rows.sort_by([("tick", "ascending"), ("event_timestamp", "ascending")])
        ticks = rows["tick"].to_numpy()
        last = np.append(ticks[1:] != ticks[:-1], np.ones(min(len(ticks), 1), np.bool_))
        return rows.filter(pa.array(last))

    def read(self, path: Path) -> pa.Table:
        """The rows of a file of the log."""
        return pq.read_table(path, schema=self.schema, partitioning=None)

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
            replace_file(path, lambda unfinished: write_log([table], table.schema, unfinished))
        return int(gone)

    def _erase_staged(self, path: Path, entity_id: pa.Scalar) -> int:
        table = read_ipc(path)
        if table is None:
            return 0
        left = table.filter(pc.not_equal(table["id"], entity_id))
        if left.num_rows < table.num_rows:
            replace_file(path, lambda unfinished: write_ipc(left, unfinished))
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
        return pa.Table.from_arrays([pa.array(ids, self._id_type), lists(vectors), *repeated], schema=self.schema)

    def _logged_path(self, stamp: LogStamp, *, live: bool) -> Path:
        return self.folder / ("live" if live else "retained") / f"{stamp.tick:010d}-{stamp.fill}.parquet"


def ticks_in(path: Path) -> tuple[int, int]:
    """First and last tick of a file of the log, by its name."""
    numbers, merged, _ = path.stem.partition(".")
    first, _, last = numbers.partition("-")
    return int(first), int(last) if merged else int(first)


def write_log(tables: Iterable[pa.Table], schema: pa.Schema, path: Path) -> None:
    """Write rows of an embedding log as one file, a row group per table."""
    # A dictionary of floats saves nothing, and costs most of the time.
    repeating = [name for name in schema.names if name != EMBEDDING]
    with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=repeating) as writer:
        for table in tables:
            writer.write_table(table)

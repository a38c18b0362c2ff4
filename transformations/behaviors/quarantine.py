"""Where refused rows are kept: one parquet file per view and tick, each row with its reason."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feast_embeddings.models.encoder import write_atomically
from feast_embeddings.transformations.behaviors.validate import QUARANTINE_SCHEMA

_SCHEMA = pa.schema([pa.field("view", pa.string()), pa.field("tick", pa.int64()), *QUARANTINE_SCHEMA])


class Quarantine:
    """The refused rows of all views under one folder.

    Files are replaced whole and atomically: a reader sees the old one or the new one, and a tick that is run
    again replaces its own rows (effectively once).

    Args:
        folder: Made when the first row comes.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def write(self, view: str, tick: int, rows: pa.Table) -> Path:
        """Keeps the rows that a tick refused, in place of those of an earlier run of the same tick.

        Args:
            view: Name of the feature view.
            tick: Number of the tick.
            rows: ``Prepared.quarantined``; if empty, the tick has no file.

        Returns:
            The tick's file.
        """
        path = self.folder / quote(view, safe="") / f"{tick:012d}.parquet"
        if not rows.num_rows:
            path.unlink(missing_ok=True)
        else:
            _replace(path, rows)
        return path

    def erase(self, view: str, entity_id: int | str) -> int:
        """Removes the rows of an entity from every tick of a view, each file replaced whole; returns how many.

        For an integer id, every spelling of the same number is removed: refused rows hold what the source held.
        No tick of the view may be running.
        """
        folder, gone = self.folder / quote(view, safe=""), 0
        for leftover in folder.glob(".*"):
            leftover.unlink()
        for file in sorted(folder.glob("*.parquet")):
            rows = pq.read_table(file, schema=QUARANTINE_SCHEMA, partitioning=None)
            left = rows.filter(pc.invert(_is_entity(rows["entity"], entity_id)))
            if left.num_rows < rows.num_rows:
                self.write(view, int(file.stem), left)
            gone += rows.num_rows - left.num_rows
        return int(gone)

    def read(self, view: str | None = None, tick: int | None = None) -> pa.Table:
        """The rows kept, of one view or tick or of all: ``QUARANTINE_SCHEMA`` after ``view`` and ``tick``."""
        folders = [self.folder / quote(view, safe="")] if view is not None else sorted(self.folder.glob("*"))
        files = [file for folder in folders for file in sorted(folder.glob("*.parquet"))]
        parts = [_with_origin(file) for file in files if tick is None or int(file.stem) == tick]
        return pa.concat_tables([_SCHEMA.empty_table(), *parts])

    def counts(self, view: str | None = None, tick: int | None = None) -> dict[str, int]:
        """Rows per reason, most frequent first."""
        reasons = self.read(view, tick)["reason"].to_pylist()
        return dict(Counter(reasons).most_common())


def _is_entity(texts: pa.ChunkedArray, entity_id: int | str) -> pa.ChunkedArray:
    """Where a text means the entity; False where there is none."""
    if isinstance(entity_id, str):
        return pc.fill_null(pc.equal(texts, entity_id), False)
    sign, digits = ("-" if entity_id < 0 else "[+]?"), str(abs(entity_id))
    return pc.fill_null(pc.match_substring_regex(texts, rf"^\s*{sign}0*{digits}(\.0*)?\s*$"), False)


def _replace(path: Path, rows: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = pa.BufferOutputStream()
    pq.write_table(rows.cast(QUARANTINE_SCHEMA), content)
    write_atomically(path, content.getvalue().to_pybytes())


def _with_origin(file: Path) -> pa.Table:
    rows = pq.read_table(file, schema=QUARANTINE_SCHEMA, partitioning=None)
    origin = {
        "view": pa.array([unquote(file.parent.name)] * rows.num_rows, pa.string()),
        "tick": pa.array([int(file.stem)] * rows.num_rows, pa.int64()),
    }
    return pa.table({**origin, **{name: rows[name] for name in rows.column_names}}, schema=_SCHEMA)

"""The newest row of every entity in an embedding log: what the fills hold online."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tenacity import retry, retry_if_exception_type, stop_after_attempt

from feast_embeddings.materialize.files.embedding_log import EmbeddingLog, ids_of, ticks_in
from feast_embeddings.materialize.files.staged import matrix_of
from feast_embeddings.models.types import Float32s, Ids

_GLOB = re.compile(r"([*?\[])")  # DuckDB takes every path for a pattern
_NEVER = 1 << 62
_NEWEST = """
    SELECT filename, file_row_number AS row
    FROM read_parquet(?, filename = true, file_row_number = true)
    WHERE list_contains(?, fill) AND NOT replayed AND tick >= ? AND tick < ?
    QUALIFY row_number() OVER (PARTITION BY fill, "{key}" ORDER BY tick DESC, filename) = 1
    ORDER BY filename, row
"""


@dataclass(frozen=True)
class FillRowsOfTick:
    """Rows that one tick wrote into one fill.

    Attributes:
        fill: Name of the fill.
        tick, tick_end_us: The tick, and its end in microseconds.
        written_us: Start of its online write, microseconds.
        ids: Entities [n].
        vectors: float32 [n, dim].
    """

    fill: str
    tick: int
    tick_end_us: int
    written_us: int
    ids: Ids
    vectors: Float32s


def newest_rows(
    log: EmbeddingLog, fills: Sequence[str], *folders: str, since: int = 0, before: int = _NEVER
) -> Iterator[FillRowsOfTick]:
    """The row with the highest tick of every entity, in each of these fills; one file in memory at a time.

    Of the whole log, or of the ``folders`` of it that are named. Ticks numbered lower than ``since``, or ``before``
    or higher, do not count.
    """
    files = [as_pattern(path) for path in log.files(*folders) if ticks_in(path)[1] >= since]
    if not files or not fills:
        return
    with duckdb.connect() as database:
        query = _NEWEST.format(key=log.join_key.replace('"', '""'))
        found = database.execute(query, [files, list(fills), since, before]).fetchnumpy()
    names, starts = np.unique(np.asarray(found["filename"], object).astype(str), return_index=True)
    for name, (start, end) in zip(names, pairwise([*starts, len(found["row"])]), strict=True):
        rows = pq.read_table(name, schema=log.schema, partitioning=None).take(pa.array(found["row"][start:end]))
        yield from _by_tick(log, rows)


@retry(retry=retry_if_exception_type((duckdb.IOException, FileNotFoundError)), stop=stop_after_attempt(5), reraise=True)
def newest_rows_at_once(log: EmbeddingLog, fill: str, folder: str, since: int = 0) -> list[FillRowsOfTick]:
    """As :func:`newest_rows`, of one fill and folder, in memory; a compaction may be at work on its files meanwhile."""
    return list(newest_rows(log, [fill], folder, since=since))


def as_pattern(path: Path) -> str:
    """A path as DuckDB takes it."""
    return _GLOB.sub(r"[\1]", str(path))


def _by_tick(log: EmbeddingLog, rows: pa.Table) -> Iterator[FillRowsOfTick]:
    fill, tick = rows["fill"].to_numpy(), rows["tick"].to_numpy()
    for name, number in dict.fromkeys(zip(fill.tolist(), tick.tolist(), strict=True)):
        part = rows.filter(pa.array((fill == name) & (tick == number)))
        end, written = (part[column][0].value for column in ("tick_end", "written_at"))
        yield FillRowsOfTick(name, number, end, written, ids_of(part[log.join_key]), matrix_of(part["embedding"]))

"""The files that a stream's ticks append to the behavior log: their names, their rows, and the erasure of some.

A tick appends one file, under a name fixed by its number; a compaction puts many into one, named by the first and the
last. Rows keep where they came from: source, partition, offset, and tick.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import compress
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feast_embeddings.materialize.files.staged import finish, replace_file, temporary
from feast_embeddings.transformations import BehaviorContract
from feast_embeddings.transformations.behaviors import raw_schema
from feast_embeddings.transformations.sources import listed_again

SOURCE, PARTITION, OFFSET, TICK = "_source", "_partition", "_offset", "_tick"
ORIGIN: Final = pa.schema([(SOURCE, pa.string()), (PARTITION, pa.int32()), (OFFSET, pa.int64()), (TICK, pa.int64())])

_ID_TYPES: Final = {"int64": pa.int64(), "string": pa.string()}
_ERASED: Final = b"feast_embeddings.erased"


def parts_folder(path: str) -> Path | None:
    """The folder that a behavior log's path names, itself or as ``folder/*.parquet``; None where it names a file."""
    place = Path(path)
    if place.name in ("*.parquet", "*"):
        place = place.parent
    return None if place.is_file() or place.suffix or "*" in str(place) else place


def part_name(view: str, tick: int) -> str:
    """Name of the file that a tick appends to the behavior log."""
    return f"stream-{quote(view, safe='')}-{tick:012d}.parquet"


def range_name(view: str, first: int, last: int) -> str:
    """Name of the file that several ticks' behaviors are compacted into."""
    return f"stream-{quote(view, safe='')}-{first:012d}-{last:012d}.parquet"


def part_pattern(view: str) -> re.Pattern[str]:
    """What the names match of files that ticks of a view appended, compacted ones too."""
    return re.compile(rf"stream-{re.escape(quote(view, safe=''))}-\d+(-\d+)?\.parquet")


def read_part(path: Path) -> pa.Table:
    """The rows of a file that a tick appended, with what the tick wrote of them."""
    return pq.read_table(path, partitioning=None)


def part_range(path: Path, view: str) -> tuple[int, int]:
    """First and last tick of a file that ticks of ``view`` appended, or that was compacted from such files."""
    numbers = path.stem[len(f"stream-{quote(view, safe='')}-") :]
    first, _, last = numbers.partition("-")
    return int(first), int(last or first)


def parts_of(folder: Path, view: str) -> list[Path]:
    """Files that ticks of a view appended to the behavior log, oldest first; compacted ones too."""
    return sorted(folder.glob(f"stream-{quote(view, safe='')}-[0-9]*.parquet"))


def uncovered(paths: Sequence[Path], view: str) -> list[Path]:
    """Those of a view's files that no compacted one covers: each row once, also while a compaction is at work."""
    return list(compress(paths, outermost([part_range(path, view) for path in paths])))


def outermost(ranges: Sequence[tuple[int, int]]) -> list[bool]:
    """Which ranges of ticks, ends included, lie in no wider one."""
    wide = [(first, last) for first, last in ranges if first < last]
    return [
        not any(low <= first and last <= high and (low, high) != (first, last) for low, high in wide)
        for first, last in ranges
    ]


@listed_again
def raw_rows(folder: Path, view: str, contract: BehaviorContract, kept: Callable[[pa.ChunkedArray], Any]) -> pa.Table:
    """Raw rows of the whole behavior log, but of appended ones only those whose tick is ``kept``: numbers → mask."""
    schema, listed = raw_schema(contract), parts_of(folder, view)
    parts = set(uncovered(listed, view))
    tables = []
    for path in sorted(set(folder.rglob("*.parquet")) - (set(listed) - parts)):
        table = read_part(path)
        table = table.filter(kept(table[TICK])) if path in parts else table
        tables.append(table.select(schema.names).replace_schema_metadata(None))
    return pa.concat_tables([schema.empty_table(), *tables], promote_options="permissive")


@listed_again
def recent_rows(
    folder: Path, view: str, partitions: Sequence[int], unfinished: Sequence[int], most: int
) -> list[pa.Table]:
    """The ``most`` rows that were last appended from some partitions, file by file, oldest first."""
    mine, left_out = pa.array(partitions, pa.int32()), pa.array(unfinished, pa.int64())
    found: list[pa.Table] = []
    rows = 0
    for path in reversed(uncovered(parts_of(folder, view), view)):
        if rows >= most:
            break
        table = read_part(path)
        wanted = pc.and_(pc.is_in(table[PARTITION], mine), pc.invert(pc.is_in(table[TICK], left_out)))
        mine_last = table.filter(wanted)
        found.append(mine_last.slice(max(len(mine_last) - (most - rows), 0)))
        rows += len(found[-1])
    return found[::-1]


@listed_again
def rows_of_ticks(folder: Path, view: str, numbers: list[int]) -> pa.Table | None:
    """The appended rows of some ticks; None where there is none."""
    wanted = pa.array(numbers, pa.int64())
    found = []
    for path in uncovered(parts_of(folder, view), view):
        first, last = part_range(path, view)
        if numbers and last >= min(numbers) and first <= max(numbers):
            table = read_part(path)
            found.append(table.filter(pc.is_in(table[TICK], wanted)).replace_schema_metadata(None))
    return pa.concat_tables(found).sort_by(TICK) if found else None


def create(path: Path, table: pa.Table) -> None:
    """Write a whole parquet file under a name that must be new; one that exists is left as it is."""
    with temporary(path) as unfinished:
        _write(table, unfinished)
        finish(unfinished, path)


def erase_rows(folder: Path, view: str, living: Callable[[pa.Table], pa.Table]) -> int:
    """Write the files anew that hold rows which ``living`` drops; how many rows went. Not beside a compaction.

    The files say how many rows of each tick went, so that a replay can tell an erasure from a loss.
    """
    listed, removed = parts_of(folder, view), 0
    counted = set(uncovered(listed, view))
    for path in listed:
        table = read_part(path)
        kept = living(table)
        if len(kept) < len(table):
            gone = Counter(table[TICK].to_pylist()) - Counter(kept[TICK].to_pylist())
            known = {**(table.schema.metadata or {}), _ERASED: _to_json(erased_in(table.schema) + gone)}
            replace_file(path, partial(_write, kept.replace_schema_metadata(known)))
            removed += gone.total() * (path in counted)
    return removed


def erased_in(schema: pa.Schema) -> Counter[int]:
    """Rows of each tick that were erased from a file."""
    text = (schema.metadata or {}).get(_ERASED, b"{}")
    return Counter({int(tick): count for tick, count in json.loads(text).items()})


@listed_again
def erased_rows(folder: Path, view: str) -> Counter[int]:
    """Rows of each tick that were erased from a view's files."""
    return sum((erased_in(pq.read_schema(path)) for path in uncovered(parts_of(folder, view), view)), Counter[int]())


def merged_schema(paths: Sequence[Path]) -> pa.Schema:
    """That of a file into which others are put: of the first, and with all their erasures."""
    schemas = [pq.read_schema(path) for path in paths]
    erased = sum(map(erased_in, schemas), Counter[int]())
    return schemas[0].with_metadata({_ERASED: _to_json(erased)} if erased else None)


def _to_json(counts: Counter[int]) -> bytes:
    return json.dumps(counts).encode()


def write_rows(tables: Iterator[pa.Table], schema: pa.Schema, path: Path) -> None:
    """Write appended rows as one file, a row group per table."""
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table)


def _write(table: pa.Table, path: Path) -> None:
    write_rows(iter([table]), table.schema, path)

"""Everything a refresh knows, by ranges of entities: more behaviors than memory holds are spread over files first."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feast_embeddings.materialize.files import BehaviorLog, ahead
from feast_embeddings.materialize.ledger import Tick
from feast_embeddings.transformations import Prepared

PART_BEHAVIORS: Final = 500_000
"""Behaviors in memory at a time, about; one entity's are never parted."""
_SAMPLE: Final = 50_000


def snapshot(
    source: BehaviorLog, refresh: Tick, folder: Path, on_part: Callable[[], None] = lambda: None
) -> Iterator[Prepared]:
    """Every clean behavior before a refresh's end, with what became of the others.

    Args:
        source: The behaviors. Rows with one dedup id are told apart from repetitions within a range of entities.
        refresh: Its end and ``created_until_us`` bound them.
        folder: Where the behaviors are spread if there are too many; nothing is left there.
        on_part: Called with every part that is read; what it raises stops the reading.

    Yields:
        Ranges of entities, ascending, at least one. All of them together are what ``source.until`` reads at once.

    Raises:
        BehaviorSourceError: The behavior table cannot be read.
    """
    now_us = max(refresh.end_us, refresh.created_until_us)
    starts = _starts(source, refresh, on_part)
    raw = _telling(source.parts_until(refresh.end_us, refresh.created_until_us), on_part)
    if not starts:
        yield source.judged(pa.concat_tables(raw), now_us)
        return
    with _spread(raw, source.contract.entity, starts, folder) as files:
        for table in ahead(map(_read, files)):
            yield source.judged(table, now_us)
            pa.default_memory_pool().release_unused()


def _telling(parts: Iterator[pa.Table], on_part: Callable[[], None]) -> Iterator[pa.Table]:
    for part in ahead(parts):
        on_part()
        yield part


def _starts(source: BehaviorLog, refresh: Tick, on_part: Callable[[], None]) -> list[Any]:
    """The first entity of every range but the first one: none where a single range holds all."""
    count, sample, rng = 0, [], np.random.default_rng(0)
    for column in source.entities_until(refresh.end_us):
        on_part()
        count += len(column)
        drawn = rng.integers(0, max(len(column), 1), min(len(column), 1000))
        sample.append(column.take(pa.array(drawn)))
    ranges = -(-count // PART_BEHAVIORS)
    if ranges <= 1:
        return []
    known = pa.chunked_array(sample).drop_null()
    known = known.take(pc.sort_indices(known))
    places = np.linspace(0, len(known), ranges, endpoint=False).astype(np.int64)[1:]
    return list(dict.fromkeys(known.take(pa.array(places)).to_pylist()))


@contextmanager
def _spread(raw: Iterator[pa.Table], column: str, starts: list[Any], folder: Path) -> Iterator[list[Path]]:
    """Rows by range of their entity, each range in a file; rows without one are in the first."""
    ours = folder / f".snapshot-{uuid.uuid4().hex}"
    ours.mkdir(parents=True)
    files = [ours / f"{number}.arrow" for number in range(len(starts) + 1)]
    try:
        with ExitStack() as stack:
            writers: list[pa.RecordBatchFileWriter] = []
            for table in raw:
                for file in files if not writers else ():
                    sink = stack.enter_context(pa.OSFile(str(file), "wb"))
                    writers.append(stack.enter_context(pa.ipc.new_file(sink, table.schema)))
                number = _range_of(table[column], starts)
                for at in np.unique(number):
                    writers[at].write_table(table.filter(pa.array(number == at)))
        yield files
    finally:
        shutil.rmtree(ours, ignore_errors=True)


def _range_of(entities: pa.ChunkedArray, starts: list[Any]) -> np.ndarray:
    """int64 [N]: how many of ``starts`` are at or before each entity."""
    found = np.zeros(len(entities), np.int64)
    for start in starts:
        found += pc.greater_equal(entities, pa.scalar(start, entities.type)).fill_null(False).to_numpy()
    return found


def _read(file: Path) -> pa.Table:
    with pa.OSFile(str(file)) as source:
        return pa.ipc.open_file(source).read_all()

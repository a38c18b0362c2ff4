"""Small files of published micro-batches put together: in the embedding log, and in the behavior log.

Rows and what reads return are unchanged. A merged file is named by the first and the last tick that it covers; it is
there, whole, before the files that it covers go, and those of the embedding log stay for a while, for whoever has
listed them already. Whoever is stopped in between leaves rows twice for a moment, which readers take for one, and the
next compaction tidies up. It holds a lease like a lane's, so a pause (an erasure, a refresh) keeps it out.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq
from feast import FeatureStore

from feast_embeddings.materialize.clock import now_us
from feast_embeddings.materialize.declare import EmbeddingSpec
from feast_embeddings.materialize.files.appended import (
    merged_schema,
    outermost,
    part_range,
    parts_folder,
    parts_of,
    range_name,
    write_rows,
)
from feast_embeddings.materialize.files.embedding_log import EmbeddingLog, ticks_in, write_log
from feast_embeddings.materialize.files.staged import replace_file
from feast_embeddings.materialize.files.workspace import Workspace, behavior_log_of
from feast_embeddings.materialize.ledger import Lease, Ledger, compaction_resource, is_paused
from feast_embeddings.models.errors import LeaseError

FEWEST: Final = 64
"""Files that are worth merging."""
MOST_ROWS: Final = 1_000_000
"""Rows past which a merged file is left as it is."""
GRACE_S: Final = 60.0
KEPT_US: Final = 2 * 86_400_000_000
"""How long the ledger keeps single micro-batches; their behaviors stay in the log, with their numbers."""
COUNTED_US: Final = 600_000_000
"""How long the ledger keeps the counts of each micro-batch; then they are kept together."""
_MOST_FILES: Final = 1000
_GROUP_ROWS: Final = 1 << 16
Write = Callable[[Iterator[pa.Table], pa.Schema, Path], None]


@dataclass
class Compacted:
    """What a compaction did: files merged, files made, files removed."""

    merged: int = 0
    made: int = 0
    removed: int = 0


@dataclass(frozen=True)
class _File:
    path: Path
    first: int
    last: int

    @property
    def single(self) -> bool:
        return self.first == self.last


class Compaction:
    """Compacts the files of one view's stream.

    Args:
        ledger: The ledger.
        project: Feast project.
        view: The embedding view.
        log: Its embedding log.
        behaviors: Folder of the behavior log.
        fewest: Files that are worth merging.
        grace_s: Seconds for which covered files of the embedding log stay.
    """

    def __init__(
        self,
        ledger: Ledger,
        project: str,
        view: str,
        log: EmbeddingLog,
        behaviors: Path,
        fewest: int = FEWEST,
        grace_s: float = GRACE_S,
    ) -> None:
        self.ledger, self.project, self.view = ledger, project, view
        self.log, self.behaviors = log, behaviors
        self.fewest, self.grace_s = fewest, grace_s

    @classmethod
    def of(cls, store: FeatureStore, workspace: Workspace, spec: EmbeddingSpec) -> Compaction:
        """What puts the small files of a view's stream together."""
        folder = parts_folder(behavior_log_of(store, workspace, spec).path) or workspace.root
        return cls(workspace.ledger, store.project, spec.view, workspace.log(spec), folder)

    def run(self) -> Compacted:
        """Merge what is worth it; nothing where another worker is at it, or the stream is paused."""
        found = Compacted()
        lease = Lease(self.ledger, compaction_resource(self.project, self.view), 60)
        try:
            lease.acquire()
        except LeaseError:
            return found
        try:
            published = self.ledger.published_numbers(self.view, self._oldest())
            for merge in (self._embeddings, self._behaviors):
                refreshing = merge == self._behaviors and self.ledger.open_tick(self.view, "full") is not None
                if not refreshing and not is_paused(self.ledger, self.project, self.view):
                    merge(published, found, lease.check)
            self.ledger.prune(
                self.view, now_us() - KEPT_US, now_us() - COUNTED_US
            )  # only now: what is merged must still be known
        finally:
            lease.release()
        return found

    def _oldest(self) -> int:
        """The smallest tick of a file that was not merged yet."""
        logged = [_logged(path)[0] for path in self.log.folder.glob("*/*.parquet")]
        parts = [_File(path, *part_range(path, self.view)) for path in parts_of(self.behaviors, self.view)]
        numbers = [file.first for file in (*logged, *parts) if file is not None and file.single]
        return min(numbers, default=0)

    def _embeddings(self, published: set[int], found: Compacted, check: Callable[[], None]) -> None:
        for folder in ("live", "retained"):
            by_fill: dict[str, list[_File]] = defaultdict(list)
            for path in sorted((self.log.folder / folder).glob("*.parquet")):
                file, fill = _logged(path)
                if file is not None and (not file.single or file.first in published):
                    by_fill[fill].append(file)
            for fill, files in by_fill.items():
                self._tidy(files, found, self.grace_s)
                for group in self._groups(_uncovered(files)):
                    check()
                    path = self.log.folder / folder / f"{group[0].first:010d}-{group[-1].last:010d}.{fill}.parquet"
                    _write(path, _gathered(group, self.log.schema), self.log.schema, write_log)
                    self._count(group, found)
                self._tidy([*files, *self._made(folder, fill)], found, self.grace_s)

    def _made(self, folder: str, fill: str) -> list[_File]:
        paths = sorted((self.log.folder / folder).glob(f"*-*.{fill}.parquet"))
        return [file for file, name in map(_logged, paths) if file is not None and name == fill]

    def _behaviors(self, published: set[int], found: Compacted, check: Callable[[], None]) -> None:
        files = [_File(path, *part_range(path, self.view)) for path in parts_of(self.behaviors, self.view)]
        self._tidy(files, found, 0)
        files = [file for file in _uncovered(files) if not file.single or file.first in published]
        for group in self._groups(files):
            check()
            schema = merged_schema([each.path for each in group])
            path = self.behaviors / range_name(self.view, group[0].first, group[-1].last)
            _write(path, _gathered(group, schema), schema, write_rows)
            self._count(group, found)
            self._tidy([*group, _File(path, group[0].first, group[-1].last)], found, 0)

    def _groups(self, files: Sequence[_File]) -> Iterator[list[_File]]:
        """Files to be merged into one: enough single ones, with merged ones before them that are small still."""
        group: list[_File] = []
        rows = 0
        for file in files:
            size = pq.read_metadata(file.path).num_rows
            if not file.single and size >= MOST_ROWS // 2:
                group, rows = [], 0
                continue
            group.append(file)
            rows += size
            if rows >= MOST_ROWS or len(group) >= _MOST_FILES:
                yield group
                group, rows = [], 0
        if sum(file.single for file in group) >= self.fewest:
            yield group

    def _tidy(self, files: Sequence[_File], found: Compacted, grace_s: float) -> None:
        """Remove files that a merged one covers, once that has been there for long enough."""
        now = time.time()
        for wide in (file for file in files if not file.single):
            # one that a wider one covers may go while this runs
            if not wide.path.exists() or now - wide.path.stat().st_mtime < grace_s:
                continue
            for file in files:
                inside = wide.first <= file.first and file.last <= wide.last
                if inside and file.path != wide.path and file.path.exists():
                    file.path.unlink()
                    found.removed += 1

    def _count(self, group: Sequence[_File], found: Compacted) -> None:
        found.merged += len(group)
        found.made += 1


def _logged(path: Path) -> tuple[_File | None, str]:
    """A file of the embedding log by the ticks it covers, and its fill."""
    fill = path.stem.partition(".")[2] or path.stem.partition("-")[2]
    return (None if fill == "empty" else _File(path, *ticks_in(path))), fill


def _uncovered(files: Sequence[_File]) -> list[_File]:
    """Files in the order of ticks, without those that a wider one covers."""
    kept = compress(files, outermost([(file.first, file.last) for file in files]))
    return sorted(kept, key=lambda file: file.first)


def _gathered(files: Sequence[_File], schema: pa.Schema) -> Iterator[pa.Table]:
    """The rows of many small files in tables of one row group each: never all of them in memory."""
    waiting: list[pa.Table] = []
    for file in files:
        with pq.ParquetFile(file.path) as rows:
            for batch in rows.iter_batches(_GROUP_ROWS):
                waiting.append(pa.Table.from_batches([batch]).replace_schema_metadata(None).cast(schema))
                if sum(map(len, waiting)) >= _GROUP_ROWS:
                    yield pa.concat_tables(waiting).combine_chunks()
                    waiting = []
    if waiting:
        yield pa.concat_tables(waiting).combine_chunks()


def _write(path: Path, tables: Iterator[pa.Table], schema: pa.Schema, write: Write) -> None:
    replace_file(path, lambda unfinished: write(tables, schema, unfinished))
    pa.default_memory_pool().release_unused()  # else each merge leaves its peak behind

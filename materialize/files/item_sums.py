"""Sums behind the vectors of unseen items, on disk: what the next tick of an item view adds to.

One file per fill and tick holds the whole sums of the items that the tick touched, as whole numbers of a fixed unit.
The newest file that names an item counts. A file is created exclusively, like a staged one: whoever finds it adds
nothing.
"""

from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from feast_embeddings.materialize.files.appended import create
from feast_embeddings.materialize.files.embedding_log import EmbeddingLog, ids_of
from feast_embeddings.materialize.files.newest_rows import as_pattern
from feast_embeddings.models.derived import UnseenItems
from feast_embeddings.models.types import Ids, Int64s

_NEWEST = """
    SELECT id, sums, support FROM (
        SELECT "{key}" AS id, sums, support, filename FROM read_parquet(?, filename = true)
    )
    WHERE id IN (SELECT id FROM wanted)
    QUALIFY row_number() OVER (PARTITION BY id ORDER BY filename DESC) = 1
    ORDER BY id
"""


class UnseenSums:
    """The sums of an item view's fills, beside its embedding log: an erasure goes through them too."""

    def __init__(self, log: EmbeddingLog) -> None:
        self.folder, self.join_key = log.folder / "unseen", log.join_key
        self._id_type = log.schema.field(log.join_key).type

    def add(self, fill: str, tick: int, found: UnseenItems) -> UnseenItems:
        """Add what a tick found to the sums of a fill, once; the sums of the items that it touched, afterwards."""
        path = self._path(fill, tick)
        if not path.exists():
            before = self._newest(fill, tick, found)
            create(path, self._table(found if before is None else found.merged(before)))
        return self._read(pq.read_table(path, partitioning=None), self.join_key, found.space)

    def drop(self, fill: str, tick: int) -> None:
        """Remove what a tick added that was voided."""
        self._path(fill, tick).unlink(missing_ok=True)

    def _newest(self, fill: str, tick: int, found: UnseenItems) -> UnseenItems | None:
        """The sums of the items in ``found`` as the ticks before had left them."""
        end = f"-{fill}.parquet"
        paths = [path for path in self.folder.glob("*.parquet") if path.name[10:] == end and int(path.name[:10]) < tick]
        if not paths or not len(found.ids):
            return None
        with duckdb.connect() as database:
            database.register("wanted", pa.table({"id": pa.array(found.ids, self._id_type)}))
            query = _NEWEST.format(key=self.join_key.replace('"', '""'))
            rows: pa.Table = database.sql(query, params=[[as_pattern(path) for path in paths]]).to_arrow_table()
        return self._read(rows, "id", found.space) if len(rows) else None

    def _table(self, sums: UnseenItems) -> pa.Table:
        offsets = np.arange(len(sums.ids) + 1, dtype=np.int64) * sums.sums.shape[1]
        columns = {
            self.join_key: pa.array(sums.ids, self._id_type),
            "sums": pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(sums.sums.reshape(-1))),
            "support": pa.array(sums.support),
        }
        return pa.table(columns)

    def _read(self, table: pa.Table, key: str, space: str) -> UnseenItems:
        ids: Ids = ids_of(table[key])
        flat: Int64s = table["sums"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        sums = flat.reshape(len(ids), -1) if len(ids) else flat.reshape(0, 0)
        return UnseenItems(space, ids, sums.astype(np.int64), np.asarray(table["support"].to_numpy(), np.int64))

    def _path(self, fill: str, tick: int) -> Path:
        return self.folder / f"{tick:010d}-{fill}.parquet"

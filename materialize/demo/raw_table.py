"""The raw behavior table that both of the demonstration's sources write."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from feast_embeddings.materialize.files import replace_file, write_log

RAW_SCHEMA = pa.schema(
    [
        pa.field("customer_id", pa.int64()),
        pa.field("product_id", pa.int64()),
        pa.field("event", pa.string()),
        pa.field("occurred_at", pa.timestamp("us", tz="UTC")),
        pa.field("amount", pa.float64()),
        pa.field("event_id", pa.string()),
    ]
)
"""One row per behavior: who, what, which type, when (UTC), what was paid (or null), and the row's own key."""

ROW_GROUP = 128 * 1024
"""Rows per parquet row group: small enough that a reader of one day skips most of a year."""


def write_raw_table(table: pa.Table, path: Path) -> None:
    """Write ``table`` to ``path``, zstd, all or nothing: a reader sees the whole file or none.

    Args:
        table: Sorted by time.
        path: The parquet file; its folder is made if missing, an older file is replaced.

    Raises:
        OSError: The folder cannot be written; no partial file stays behind.
    """
    groups = [table.slice(start, ROW_GROUP) for start in range(0, table.num_rows, ROW_GROUP)]
    replace_file(path, lambda unfinished: write_log(groups, table.schema, unfinished))

"""A team's behavior table as the messages that it could have come as."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import duckdb
import numpy as np

from feast_embeddings.models.errors import StreamError
from feast_embeddings.models.types import Int64s
from feast_embeddings.transformations.behaviors import BehaviorContract


def read_messages(path: Path, contract: BehaviorContract) -> tuple[Sequence[str], Int64s, Sequence[str]]:
    """JSON payloads [n], event times (int64 µs [n]) and entity ids as text [n], in the order of event time.

    Raises:
        StreamError: There is no such file.
    """
    if not path.is_file():
        raise StreamError(f"There is no file {path} to replay: name a parquet file of behaviors.")
    columns = ", ".join(f'"{column}"' for column in contract.columns.values())
    query = f"""
        SELECT to_json(t)::VARCHAR AS payload, epoch_us("{contract.event_time}") AS happened_us,
               "{contract.entity}"::VARCHAR AS entity_text
        FROM (SELECT {columns} FROM read_parquet(?)) t ORDER BY happened_us, entity_text, payload
    """  # noqa: S608 - column names of the declared contract, quoted
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        found = connection.sql(query, params=[str(path)]).to_arrow_table()
    return (
        found["payload"].to_pylist(),
        np.asarray(found["happened_us"].to_numpy(), np.int64),
        found["entity_text"].to_pylist(),
    )

"""How far each partition of a stream was recorded."""

from __future__ import annotations

import sqlalchemy as sa

from feast_embeddings.materialize.ledger.database import Database
from feast_embeddings.materialize.ledger.schema import positions


class Offsets(Database):
    """Reads positions of streams; they are written with the micro-batches that reach them."""

    def positions(self, view: str, source: str) -> dict[int, int]:
        """The last recorded offset of every partition of a source."""
        mine = (positions.c.view == view, positions.c.source == source)
        query = sa.select(positions.c.partition, positions.c.position).where(*mine)
        with self.reading() as connection:
            return {int(partition): int(position) for partition, position in connection.execute(query)}

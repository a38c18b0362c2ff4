"""How far each partition of a stream was recorded, and how far Redis was seen to have come."""

from __future__ import annotations

import sqlalchemy as sa

from feast_embeddings.materialize.ledger.database import Database
from feast_embeddings.materialize.ledger.schema import marks, positions


class Offsets(Database):
    """Reads positions of streams, and marks of Redis; they are written with the ticks that reach them."""

    def positions(self, view: str, source: str) -> dict[int, int]:
        """The last recorded offset of every partition of a source."""
        mine = (positions.c.view == view, positions.c.source == source)
        query = sa.select(positions.c.partition, positions.c.position).where(*mine)
        with self.reading() as connection:
            return {int(partition): int(position) for partition, position in connection.execute(query)}

    def marks(self, view: str) -> dict[str, int]:
        """Series of a view's ticks → the last one that Redis was seen to hold."""
        query = sa.select(marks.c.series, marks.c.tick).where(marks.c.view == view)
        with self.reading() as connection:
            return {series: int(tick) for series, tick in connection.execute(query)}

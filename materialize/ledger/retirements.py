"""How far the removal of retired fills has come."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from feast_embeddings.materialize.ledger.ledger import Ledger
from feast_embeddings.materialize.ledger.schema import retirements


@dataclass(frozen=True, slots=True)
class Removed:
    """What a removal has looked at.

    Attributes:
        server: The server that it is at, by its run id: a cursor means nothing to another process of Redis.
        cursor: Where it goes on there.
        seen: Keys looked at.
        keys: Keys of all servers, about.
    """

    server: str
    cursor: int
    seen: int
    keys: int


@dataclass(frozen=True)
class Retirements:
    """The removals that a ledger knows."""

    ledger: Ledger

    def removed(self, fill: str) -> Removed | None:
        """How far a fill's removal is; None before it begins."""
        with self.ledger.reading() as connection:
            row = connection.execute(sa.select(retirements).where(retirements.c.fill == fill)).mappings().first()
        return None if row is None else Removed(row["server"], int(row["cursor"]), row["seen"], row["keys"])

    def progress(self, fill: str) -> float:
        """How much of a retired fill is removed, from 0 to 1, about."""
        removed = self.removed(fill)
        return 0.0 if removed is None else min(removed.seen / max(removed.keys, 1), 1.0)

    def keep(self, fill: str, at: Removed) -> None:
        """Record how far a fill's removal is."""
        values = {"fill": fill, "server": at.server, "cursor": str(at.cursor), "seen": at.seen, "keys": at.keys}
        with self.ledger.transaction() as connection:
            connection.execute(sa.delete(retirements).where(retirements.c.fill == fill))
            connection.execute(sa.insert(retirements).values(**values))

    def finish(self, fill: str) -> None:
        """Record that a fill is gone."""
        with self.ledger.transaction() as connection:
            connection.execute(sa.delete(retirements).where(retirements.c.fill == fill))
        self.ledger.update_fill(fill, state="removed")

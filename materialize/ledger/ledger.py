"""The ledger: what was done, in SQL. Every state a job may be found in after a crash stands here.

Membership of a tick is recorded before anything is computed; a tick, a fill or a cutover counts only
once its row says so. SQLite by default; any database SQLAlchemy speaks to.
"""

from __future__ import annotations

from feast_embeddings.materialize.ledger.generations import Generations
from feast_embeddings.materialize.ledger.offsets import Offsets
from feast_embeddings.materialize.ledger.ticks import Ticks


class Ledger(Ticks, Generations, Offsets):
    """Reads and writes the ledger's tables; every method is one transaction."""

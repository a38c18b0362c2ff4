"""Tombstones: who was erased, and when. They stop replays, retries and late behaviors from bringing anyone back.

The ledger keeps a salted hash in place of the id. Whoever holds the ledger can still test one id against it, as the
ticks must be able to; it cannot be joined with anyone else's hashes.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa

from feast_embeddings.materialize.ledger.database import Database
from feast_embeddings.materialize.ledger.schema import erasures
from feast_embeddings.models.types import Int64s

NEVER = np.iinfo(np.int64).min
"""The time of erasure of an entity that was not erased."""


@dataclass(frozen=True)
class Tombstones:
    """The erased entities of one join key; read anew from the ledger at every question."""

    ledger: Database
    join_key: str

    def record(self, entity_id: int | str, erased_us: int) -> None:
        """Mark an entity as erased at a time (microseconds); of two erasures the later one counts."""
        ours = erasures.c.join_key == self.join_key
        with self.ledger.transaction() as connection:
            salt = connection.scalar(sa.select(erasures.c.salt).where(ours)) or secrets.token_hex(16)
            digest = hashlib.sha256(f"{salt}:{entity_id}".encode()).hexdigest()
            before = connection.scalar(sa.select(erasures.c.erased_us).where(ours, erasures.c.digest == digest))
            erased_us = max(erased_us, before or erased_us)
            connection.execute(sa.delete(erasures).where(ours, erasures.c.digest == digest))
            values = {"join_key": self.join_key, "digest": digest, "salt": salt}
            connection.execute(sa.insert(erasures).values(**values, erased_us=erased_us))

    def marks(self) -> pa.Table:
        """Salt, digest and time of every erasure."""
        query = sa.select(erasures.c.salt, erasures.c.digest, erasures.c.erased_us)
        with self.ledger.reading() as connection:
            rows = connection.execute(query.where(erasures.c.join_key == self.join_key)).all()
        names = {"salt": pa.string(), "digest": pa.string(), "erased_us": pa.int64()}
        return pa.table(
            {name: pa.array([row[at] for row in rows], kind) for at, (name, kind) in enumerate(names.items())}
        )

    def erased_us(self, ids: pa.Array | pa.ChunkedArray) -> Int64s:
        """When each of the ids (int64 or string [n]) was erased: int64 [n] microseconds, ``NEVER`` for most."""
        found = np.full(len(ids), NEVER, np.int64)
        marks = self.marks()
        if not marks.num_rows or not len(ids):
            return found
        encoded = ids.dictionary_encode()
        encoded = encoded.unify_dictionaries().combine_chunks() if isinstance(ids, pa.ChunkedArray) else encoded
        texts = encoded.dictionary.cast(pa.string())
        erased = np.full(len(texts) + 1, NEVER, np.int64)
        for salt in marks["salt"].unique().to_pylist():
            ours = marks.filter(pc.equal(marks["salt"], salt))
            at = pc.index_in(_digests(salt, texts), value_set=ours["digest"])
            matched = np.flatnonzero(at.is_valid())
            erased[matched] = ours["erased_us"].to_numpy()[at.drop_null().to_numpy()]
        return np.asarray(erased[encoded.indices.fill_null(len(texts)).to_numpy(zero_copy_only=False)], np.int64)


def _digests(salt: str, texts: pa.Array) -> pa.Array:
    with duckdb.connect() as database:
        database.register("ids", pa.table({"id": texts}))
        found = database.execute("SELECT sha256(? || ':' || id) AS digest FROM ids", [salt]).fetchnumpy()
    return pa.array(found["digest"], pa.string())

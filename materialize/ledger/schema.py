"""Tables of the ledger. One place for every column; times are microseconds since the epoch, UTC."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy import BigInteger, Boolean, Column, Integer, MetaData, String, Table, Text
from sqlalchemy.engine import Connection, Engine

SCHEMA_VERSION = 2
"""1: the first. 2: erasures, which a package that does not know them would undo."""

STREAM_TICKS = "feast_embeddings_stream_ticks"
"""Table of a stream's micro-batches, where the repo has a stream: their numbers are of the same series."""

metadata = MetaData()

versions = Table("feast_embeddings_schema", metadata, Column("version", Integer, primary_key=True))

spaces = Table(
    "feast_embeddings_spaces",
    metadata,
    Column("space", String(64), primary_key=True),
    Column("encoder", String(255), nullable=False),
    Column("dim", Integer, nullable=False),
    Column("numeric_path", String(64), nullable=False),
    Column("registered_us", BigInteger, nullable=False),
)

fills = Table(
    "feast_embeddings_fills",
    metadata,
    Column("fill", String(64), primary_key=True),
    Column("view", String(255), nullable=False, index=True),
    Column("encoder", String(255), nullable=False),
    Column("space", String(64), nullable=False),
    # building → ready → live → retained → retired; a rollback turns a retained fill live again
    Column("state", String(16), nullable=False),
    Column("tick", BigInteger, nullable=False),
    Column("rows", BigInteger, nullable=False, default=0),
    Column("made_us", BigInteger, nullable=False),
)

generations = Table(
    "feast_embeddings_generations",
    metadata,
    Column("encoder", String(255), primary_key=True),
    Column("generation", BigInteger, primary_key=True),
    Column("fills", Text, nullable=False),  # JSON: view → fill
    Column("rollback", Boolean, nullable=False),
    # The switch happened between these two; both null: it is still to be done.
    Column("window_start_us", BigInteger),
    Column("cutover_us", BigInteger),
)

ticks = Table(
    "feast_embeddings_ticks",
    metadata,
    Column("view", String(255), primary_key=True),
    Column("tick", BigInteger, primary_key=True),
    Column("kind", String(16), nullable=False),  # incremental | full
    # recorded → written (Redis holds it) → published; or abandoned, when its members changed before any effect
    Column("state", String(16), nullable=False),
    Column("start_us", BigInteger),
    Column("end_us", BigInteger, nullable=False),
    Column("created_from_us", BigInteger),
    Column("created_until_us", BigInteger, nullable=False),
    Column("fills", Text, nullable=False),  # JSON: the fills it writes
    Column("members", BigInteger),
    Column("digest", String(64)),
    Column("kept", BigInteger),  # behaviors that it keeps of each history
    Column("encoded", BigInteger, nullable=False, default=0),
    Column("rows", BigInteger, nullable=False, default=0),
    Column("recorded_us", BigInteger, nullable=False),
    Column("window_start_us", BigInteger),
    Column("published_us", BigInteger),
)

tick_counts = Table(
    "feast_embeddings_tick_counts",
    metadata,
    Column("view", String(255), primary_key=True),
    Column("tick", BigInteger, primary_key=True),
    Column("what", String(128), primary_key=True),  # read | applied | deduplicated | erased | quarantined: <reason>
    Column("behaviors", BigInteger, nullable=False),
)

leases = Table(
    "feast_embeddings_leases",
    metadata,
    Column("resource", String(255), primary_key=True),
    Column("owner", String(255), nullable=False),
    Column("expires_us", BigInteger, nullable=False),
)

retirements = Table(
    "feast_embeddings_retirements",
    metadata,
    Column("fill", String(64), primary_key=True),
    Column("server", String(64), nullable=False),  # the cursor means nothing to another process of Redis
    Column("cursor", String(32), nullable=False),
    Column("seen", BigInteger, nullable=False),
    Column("keys", BigInteger, nullable=False),  # of the whole server, about
)

erasures = Table(
    "feast_embeddings_erasures",
    metadata,
    Column("join_key", String(255), primary_key=True),
    Column("digest", String(64), primary_key=True),  # SHA-256 of "<salt>:<id>"
    Column("salt", String(32), nullable=False),
    Column("erased_us", BigInteger, nullable=False),
)


def open_engine(url: sa.engine.URL) -> Engine:
    """Connections to a ledger; nothing is connected yet."""
    engine = sa.create_engine(url)
    if url.get_backend_name() != "sqlite":
        return engine

    # SQLite's default begins a transaction at the first write, so that two jobs could both read a free lease.
    @sa.event.listens_for(engine, "connect")
    def _connect(connection: Any, _: Any) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA busy_timeout = 30000")
        connection.execute("PRAGMA journal_mode = WAL")

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        reads = connection.get_execution_options().get("reads")
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

    return engine

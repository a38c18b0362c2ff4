"""Tables of the ledger that streams need; times are microseconds since the epoch, UTC."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Index, Integer, String, Table, Text

from feast_embeddings.materialize.ledger.schema import metadata

stream_ticks = Table(
    "feast_embeddings_stream_ticks",
    metadata,
    Column("view", String(255), primary_key=True),
    Column("tick", BigInteger, primary_key=True),  # numbered together with the view's other ticks
    Column("lane", String(32), nullable=False),  # "0/2": lane 0 of 2
    Column("source", String(255), nullable=False),
    Column("ranges", Text, nullable=False),  # JSON: partition → first and last offset
    Column("state", String(16), nullable=False),  # recorded → published
    Column("end_us", BigInteger, nullable=False),  # when the micro-batch was formed
    Column("fills", Text, nullable=False),  # JSON: the fills it writes
    Column("kept", BigInteger, nullable=False),
    Column("counts", Text),  # JSON: what became of its behaviors
    Column("digest", String(64)),
    Column("rows", BigInteger, nullable=False, default=0),
    Column("recorded_us", BigInteger, nullable=False),
    Column("window_start_us", BigInteger),
    Column("published_us", BigInteger),
)
Index("feast_embeddings_open_stream_ticks", stream_ticks.c.view, stream_ticks.c.state)

stream_positions = Table(
    "feast_embeddings_stream_positions",
    metadata,
    Column("view", String(255), primary_key=True),
    Column("source", String(255), primary_key=True),
    Column("partition", Integer, primary_key=True),
    Column("position", BigInteger, nullable=False),  # the last offset that a tick has recorded
)

stream_totals = Table(
    "feast_embeddings_stream_totals",
    metadata,
    Column("view", String(255), primary_key=True),
    Column("what", String(128), primary_key=True),  # as in the counts of ticks
    Column("behaviors", BigInteger, nullable=False),
)

TABLES = (stream_ticks, stream_positions, stream_totals)

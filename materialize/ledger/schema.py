"""Tables of the ledger. One place for every column; times are microseconds since the epoch, UTC."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Index, Integer, MetaData, String, Table, Text

from feast_embeddings.materialize.ledger.records import LONGEST_FILL

SCHEMA_VERSION = 4
"""1: the first. 2: erasures, which a package that does not know them would undo. 3: one table of ticks, a stream's too.
4: marks, which an older package would not move on.

``migrations/`` leads from each to the next."""

FOLDED = 0
"""In ``tick_counts``, the number under which counts of forgotten micro-batches are kept together."""

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
    Column("fill", String(LONGEST_FILL), primary_key=True),
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
    # A micro-batch's membership, null for others: "0/2" is lane 0 of 2; ranges, JSON: partition → first, last offset
    Column("lane", String(32)),
    Column("source", String(255)),
    Column("ranges", Text),
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
Index("feast_embeddings_ticks_by_state", ticks.c.view, ticks.c.state)
Index("feast_embeddings_ticks_by_publication", ticks.c.view, ticks.c.published_us)

followed_ticks = Table(
    "feast_embeddings_followed_ticks",
    metadata,
    Column("view", String(255), primary_key=True),  # an item view
    Column("tick", BigInteger, primary_key=True),  # its tick
    Column("followed", BigInteger, primary_key=True),  # a tick of its user view
)

positions = Table(
    "feast_embeddings_stream_positions",
    metadata,
    Column("view", String(255), primary_key=True),
    Column("source", String(255), primary_key=True),
    Column("partition", Integer, primary_key=True),
    Column("position", BigInteger, nullable=False),  # the last offset that a tick has recorded
)

tick_counts = Table(
    "feast_embeddings_tick_counts",
    metadata,
    Column("view", String(255), primary_key=True),
    Column("tick", BigInteger, primary_key=True),
    # read | applied | deduplicated | erased | quarantined: <reason>; and late, which are among the applied
    Column("what", String(128), primary_key=True),
    Column("behaviors", BigInteger, nullable=False),
)

marks = Table(
    "feast_embeddings_marks",
    metadata,
    Column("view", String(255), primary_key=True),
    Column("series", String(32), primary_key=True),  # "ticks" | "refreshes" | a lane
    Column("tick", BigInteger, nullable=False),  # the last one that Redis was seen to hold
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

"""One table of ticks: micro-batches of streams join those of jobs, and their totals the counts of ticks."""

import json
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.engine import Connection

revision = "3"
down_revision = "2"

_TICKS, _COUNTS = "feast_embeddings_ticks", "feast_embeddings_tick_counts"
_STREAM_TICKS, _STREAM_TOTALS = "feast_embeddings_stream_ticks", "feast_embeddings_stream_totals"
_FOLDED = 0


def upgrade() -> None:
    """Add a micro-batch's columns to the ticks; move what a stream recorded there, where there is one."""
    connection = op.get_bind()
    for column in (sa.Column("lane", sa.String(32)), sa.Column("source", sa.String(255)), sa.Column("ranges", sa.Text)):
        op.add_column(_TICKS, column)
    op.create_index("feast_embeddings_ticks_by_state", _TICKS, ["view", "state"])
    op.create_index("feast_embeddings_ticks_by_publication", _TICKS, ["view", "published_us"])
    if sa.inspect(connection).has_table(_STREAM_TICKS):
        _move(connection)
        op.drop_table(_STREAM_TICKS)
        op.drop_table(_STREAM_TOTALS)


def _move(connection: Connection) -> None:
    old, ticks, counts, totals = (_table(connection, name) for name in (_STREAM_TICKS, _TICKS, _COUNTS, _STREAM_TOTALS))
    for row in connection.execute(sa.select(old)).mappings().all():
        connection.execute(sa.insert(ticks).values(**_moved(dict(row))))
    # a refresh beside a stream read again what the stream's ticks had counted
    refreshes = sa.select(ticks.c.view, ticks.c.tick).where(
        ticks.c.kind == "full", ticks.c.start_us.is_not(None), ticks.c.view.in_(sa.select(old.c.view))
    )
    for view, number in connection.execute(refreshes).all():
        connection.execute(sa.delete(counts).where(counts.c.view == view, counts.c.tick == number))
    for total in connection.execute(sa.select(totals)).mappings().all():
        connection.execute(sa.insert(counts).values(tick=_FOLDED, **total))


def _moved(row: dict[str, Any]) -> dict[str, Any]:
    counted = json.loads(row.pop("counts") or "{}")
    return {
        **row,
        "kind": "incremental",
        "created_until_us": row["end_us"],
        "members": counted.get("applied"),
        "encoded": row["rows"],
    }


def _table(connection: Connection, name: str) -> sa.Table:
    return sa.Table(name, sa.MetaData(), autoload_with=connection)

"""Marks: which tick of each series Redis was last seen to hold."""

import sqlalchemy as sa
from alembic import op

revision = "4"
down_revision = "3"


def upgrade() -> None:
    """Make the table of marks."""
    op.create_table(
        "feast_embeddings_marks",
        sa.Column("view", sa.String(255), primary_key=True),
        sa.Column("series", sa.String(32), primary_key=True),
        sa.Column("tick", sa.BigInteger, nullable=False),
        if_not_exists=True,
    )

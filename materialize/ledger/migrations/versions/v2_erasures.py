"""Erasures: who must not come back."""

import sqlalchemy as sa
from alembic import op

revision = "2"
down_revision = "1"


def upgrade() -> None:
    """Make the table of erasures."""
    op.create_table(
        "feast_embeddings_erasures",
        sa.Column("join_key", sa.String(255), primary_key=True),
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("salt", sa.String(32), nullable=False),
        sa.Column("erased_us", sa.BigInteger, nullable=False),
        if_not_exists=True,
    )

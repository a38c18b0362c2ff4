"""The first schema; a ledger of it was made by the package that knew no other."""

revision = "1"
down_revision = None


def upgrade() -> None:
    """Nothing: ledgers begin here, or with today's schema."""

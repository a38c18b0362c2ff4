"""Migrations of the ledger's schema, run by alembic: one revision per schema version."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy.engine import Connection

__all__ = ["VERSION_TABLE", "migrate"]

VERSION_TABLE = "feast_embeddings_migrations"


def migrate(connection: Connection, version: int) -> None:
    """Bring a ledger of an older schema version up to today's, inside the caller's transaction."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.attributes["connection"] = connection
    command.stamp(config, str(version))
    command.upgrade(config, "head")

"""The command line, ``feast-embeddings``."""

from feast_embeddings.materialize.cli.main import app, main
from feast_embeddings.materialize.cli.watch import scrape, watch

__all__ = ["app", "main", "scrape", "watch"]

"""The command line, ``feast-embeddings``."""

from feast_embeddings.materialize.cli.main import app, main

__all__ = ["app", "main"]

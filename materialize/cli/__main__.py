"""``python -m feast_embeddings.materialize.cli`` is the command ``feast-embeddings``."""

from feast_embeddings.materialize.cli.main import main

main()

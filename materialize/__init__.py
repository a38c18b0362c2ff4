"""Policies, ticks, ledger, logs, engine, and the online and offline stores."""

from feast_embeddings.materialize.declare.policy import Full, Hybrid, Incremental
from feast_embeddings.materialize.declare.views import (
    embed_behaviors,
    embedding_view,
    history_view,
    item_embedding_view,
    pinned,
)
from feast_embeddings.materialize.serving import Neighbors, Vectors, nearest, read_vectors, search

__all__ = [
    "Full",
    "Hybrid",
    "Incremental",
    "Neighbors",
    "Vectors",
    "embed_behaviors",
    "embedding_view",
    "history_view",
    "item_embedding_view",
    "nearest",
    "pinned",
    "read_vectors",
    "search",
]

import sys

from feast_embeddings.materialize.declare import views

sys.modules.setdefault("feast_embeddings.materialize.views", views)

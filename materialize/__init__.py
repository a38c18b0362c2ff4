"""Policies, ticks, ledger, logs, engine, and the online and offline stores."""

from feast_embeddings.materialize.neighbors import Neighbors, nearest
from feast_embeddings.materialize.online_reads import Vectors, read_vectors
from feast_embeddings.materialize.policy import Full, Hybrid, Incremental
from feast_embeddings.materialize.search import search
from feast_embeddings.materialize.views import (
    embed_behaviors,
    embedding_view,
    history_view,
    item_embedding_view,
    pinned,
)

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

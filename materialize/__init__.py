"""Policies, ticks, ledger, logs, engine, and the online and offline stores."""

from feast_embeddings.materialize.policy import Full, Hybrid, Incremental
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
    "embed_behaviors",
    "embedding_view",
    "history_view",
    "item_embedding_view",
    "pinned",
]

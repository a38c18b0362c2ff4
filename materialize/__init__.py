"""Policies, ticks, ledger, logs, engine, and the online and offline stores."""

import sys

from feast_embeddings.materialize.declare import (
    EncoderRef,
    Full,
    Hybrid,
    Incremental,
    Inputs,
    Serving,
    embed_behaviors,
    embedding_view,
    history_view,
    item_embedding_view,
    pinned,
)
from feast_embeddings.materialize.serving import Neighbors, Vectors, nearest, read_vectors, search

__all__ = [
    "EncoderRef",
    "Full",
    "Hybrid",
    "Incremental",
    "Inputs",
    "Neighbors",
    "Serving",
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

# What earlier builds applied names `embed_behaviors` by this module; gone with version 0.2.
sys.modules[f"{__name__}.views"] = sys.modules[__name__]

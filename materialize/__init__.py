"""Policies, ticks, ledger, logs, engine, and the online and offline stores."""

import sys
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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

_SERVING = ("Neighbors", "Vectors", "nearest", "read_vectors", "search")

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Import a name at its first use: Feast takes seconds, which ``feast-embeddings --help`` has not."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = import_module(f"{__name__}.{'serving' if name in _SERVING else 'declare'}")
        return globals().setdefault(name, getattr(module, name))


# What earlier builds applied names `embed_behaviors` by this module; gone with version 0.2.
sys.modules[f"{__name__}.views"] = sys.modules[__name__]

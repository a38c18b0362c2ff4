"""Which of this package's kinds a view is, and what its projection says: all that a store needs of a declaration."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Literal

from feast import FeatureView

from feast_embeddings.materialize.declare.views import PIN
from feast_embeddings.transformations.views import tags

Kind = Literal["embedding", "history"]


def kind_of(table: Any) -> Kind | None:
    """``embedding`` or ``history`` for a view of this package, None for any other."""
    kind = (getattr(table, "tags", None) or {}).get(tags.KIND)
    return kind if kind in (tags.EMBEDDING_KIND, tags.HISTORY_KIND) else None


def pinned_space(table: FeatureView) -> str | None:
    """The space a projection named ``<view>@<space>`` is pinned to; None for a plain one."""
    alias = table.projection.name_alias or ""
    prefix = f"{table.name}{PIN}"
    return alias[len(prefix) :] if alias.startswith(prefix) and alias != prefix else None


def ttl_us(table: FeatureView) -> int:
    """The view's ttl in microseconds; 0: forever."""
    return (table.ttl or timedelta(0)) // timedelta(microseconds=1)

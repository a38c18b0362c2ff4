"""Which of this package's kinds a view is, and what its projection says: all that a store needs of a declaration."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any, Literal

from feast import FeatureService, FeatureView, OnDemandFeatureView
from feast.infra.registry.base_registry import BaseRegistry

from feast_embeddings.materialize.declare.views import PIN
from feast_embeddings.models.errors import DeclarationError
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


def on_demand_of(
    features: FeatureService | list[str], registry: BaseRegistry, project: str
) -> list[OnDemandFeatureView]:
    """The on-demand views that a read asks for."""
    if isinstance(features, FeatureService):
        names = {projection.name for projection in features.feature_view_projections}
    else:
        names = {reference.partition(":")[0].partition("@")[0] for reference in features}
    return [view for view in registry.list_on_demand_feature_views(project, allow_cache=True) if view.name in names]


def check_inputs(on_demand: Iterable[OnDemandFeatureView], registry: BaseRegistry, project: str) -> None:
    """No two inputs of an on-demand view have one name, where one of them is a vector.

    Feast hands a transformation its inputs by the feature's name: of two, the last wins, without a word.

    Raises:
        DeclarationError: Two inputs have one name.
    """
    for view in on_demand:
        owners: dict[str, str] = {}
        for source in sorted(view.source_feature_view_projections.values(), key=lambda each: str(each.name)):
            for feature in source.features:
                other = owners.setdefault(feature.name, source.name)
                if other == source.name or not any(
                    kind_of(registry.get_any_feature_view(name, project, allow_cache=True))
                    for name in (other, source.name)
                ):
                    continue
                raise DeclarationError(
                    f"On-demand view {view.name!r} takes {feature.name!r} from {other!r} and from {source.name!r}, and "
                    "would be given one of the two for both: give them names of their own, such as "
                    "serve=Serving(feature='user_vector'), and run `feast apply`."
                )

"""The activity of an entity as an ordinary view."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from feast import Entity, FeatureView, Field
from feast.types import Float64, Int64

from feast_embeddings.models.errors import DeclarationError
from feast_embeddings.transformations.histories import RECENCY, ActivitySpec
from feast_embeddings.transformations.views import tags
from feast_embeddings.transformations.views.behaviors import ID_TYPES, contract_of


def activity_view(
    name: str, entity: Entity, behaviors: FeatureView, windows: Sequence[str] = ("1d", "7d", "28d")
) -> FeatureView:
    """Counts per behavior type and window, and recency, as an ordinary feature view.

    Features: int64 ``{type}_{window}``, and float64 ``recency_seconds``; see ``activity``. The view names the
    behaviors view's source for lineage: the features are computed from it, and do not stand in it.

    Args:
        name: Name of the view.
        entity: The entity of ``behaviors``.
        behaviors: What ``behaviors_view`` returned.
        windows: Lengths such as "7d".

    Raises:
        DeclarationError: ``behaviors`` is no behaviors view, is of another entity, or a window is not a
            length.
    """
    contract, spec = contract_of(behaviors), ActivitySpec(tuple(windows))
    if entity.join_key != contract.join_key:
        raise DeclarationError(
            f"View {name!r}: entity {entity.name!r} has join key {entity.join_key!r}, behaviors view "
            f"{behaviors.name!r} has {contract.join_key!r}. Use the entity of the behaviors view."
        )
    return FeatureView(
        name=name,
        entities=[entity],
        ttl=timedelta(0),
        schema=[
            Field(name=contract.join_key, dtype=ID_TYPES[contract.entity_dtype]),
            *(Field(name=feature, dtype=Int64) for feature in spec.names(contract)),
            Field(name=RECENCY, dtype=Float64),
        ],
        source=behaviors.batch_source,
        tags={tags.KIND: tags.ACTIVITY_KIND, tags.BEHAVIORS: behaviors.name, tags.ACTIVITY: spec.to_json()},
    )


def activity_spec_of(view: FeatureView) -> ActivitySpec:
    """The windows of an activity view.

    Raises:
        DeclarationError: The view is no activity view, or its tags were altered.
    """
    return ActivitySpec.from_json(tags.tag_of(view, tags.ACTIVITY_KIND, tags.ACTIVITY))


def behaviors_name_of(view: FeatureView) -> str:
    """Name of the behaviors view that an activity view counts.

    Raises:
        DeclarationError: The view is no activity view, or its tags were altered.
    """
    return tags.tag_of(view, tags.ACTIVITY_KIND, tags.BEHAVIORS)

"""Feast declarations: the behavior table as a source, its behaviors and their activity as ordinary views."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from feast import Entity, FeatureView, Field, FileSource, PushSource
from feast.data_format import ParquetFormat
from feast.types import Float64, Int64, String

from feast_embeddings.models.errors import DeclarationError
from feast_embeddings.transformations.behaviors.cleaning import CleaningRules
from feast_embeddings.transformations.behaviors.contract import BehaviorContract
from feast_embeddings.transformations.histories.activity import RECENCY, ActivitySpec
from feast_embeddings.transformations.views import tags

_TYPES = {"int64": Int64, "string": String}
_FEATURES = {"item": "item_id", "behavior_type": "behavior_type", "value": "value"}


def behavior_source(name: str, path: str | Path, contract: BehaviorContract) -> FileSource:
    """The team's behavior table as a Feast source, columns renamed as ``behaviors_view`` calls them.

    Args:
        name: Name of the source in the registry.
        path: Parquet file, folder or glob. Stock Feast reads it relative to the working directory.
        contract: Which column is what.
    """
    renamed = {contract.entity: contract.join_key} | {
        column: _FEATURES[role] for role, column in contract.columns.items() if role in _FEATURES
    }
    return FileSource(
        name=name,
        path=str(path),
        file_format=ParquetFormat(),
        timestamp_field=contract.event_time,
        created_timestamp_column=contract.created_time or "",
        field_mapping={old: new for old, new in renamed.items() if old != new},
    )


def behaviors_view(
    name: str,
    entity: Entity,
    source: FileSource,
    contract: BehaviorContract,
    rules: CleaningRules | None = None,
    push: str | None = None,
) -> FeatureView:
    """The raw behaviors of an entity as an ordinary feature view; contract and rules stand in its tags.

    Features: ``item_id``, ``behavior_type`` (if the source has a type column), ``value`` (if it has one):
        online
    and in stock historical reads those of the latest behavior.

    Args:
        name: Name of the view.
        entity: Whose behaviors these are; its join key is the contract's.
        source: What ``behavior_source`` returned.
        contract: Which column is what.
        rules: Which behaviors do not count; by default only cancellations act.
        push: Name of a push source to declare: ``store.push(<name>, frame)`` then appends behaviors to the view's
            stream, for ``feast-embeddings stream`` to apply, beside what Feast itself does with them. The frame has
            this view's columns: the join key, its features, and the source's event time (and created time).

    Raises:
        DeclarationError: The entity's join key is not the contract's.
    """
    if entity.join_key != contract.join_key:
        raise DeclarationError(
            f"View {name!r}: entity {entity.name!r} has join key {entity.join_key!r}, the contract "
            f"{contract.join_key!r}. Set join_key={entity.join_key!r} in the contract."
        )
    types = {"item": _TYPES[contract.item_dtype], "behavior_type": String, "value": Float64}
    features = [Field(name=_FEATURES[role], dtype=dtype) for role, dtype in types.items() if role in contract.columns]
    return FeatureView(
        name=name,
        entities=[entity],
        ttl=timedelta(0),
        schema=[Field(name=contract.join_key, dtype=_TYPES[contract.entity_dtype]), *features],
        source=source if push is None else PushSource(name=push, batch_source=source),
        tags={
            tags.KIND: tags.BEHAVIORS_KIND,
            tags.CONTRACT: contract.to_json(),
            tags.CLEANING: (rules or CleaningRules()).to_json(),
            **({} if push is None else {tags.PUSHED: push}),
        },
    )


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
            Field(name=contract.join_key, dtype=_TYPES[contract.entity_dtype]),
            *(Field(name=feature, dtype=Int64) for feature in spec.names(contract)),
            Field(name=RECENCY, dtype=Float64),
        ],
        source=behaviors.batch_source,
        tags={tags.KIND: tags.ACTIVITY_KIND, tags.BEHAVIORS: behaviors.name, tags.ACTIVITY: spec.to_json()},
    )


def kind_of(view: FeatureView) -> str | None:
    """What kind of view this package declared it as; None for a view that it did not declare."""
    kind: str | None = view.tags.get(tags.KIND)
    return kind


def contract_of(view: FeatureView) -> BehaviorContract:
    """The contract of a behaviors view.

    Raises:
        DeclarationError: The view is no behaviors view, or its tags were altered.
    """
    return BehaviorContract.from_json(_tag(view, tags.BEHAVIORS_KIND, tags.CONTRACT))


def rules_of(view: FeatureView) -> CleaningRules:
    """The cleaning rules of a behaviors view.

    Raises:
        DeclarationError: The view is no behaviors view, or its tags were altered.
    """
    return CleaningRules.from_json(_tag(view, tags.BEHAVIORS_KIND, tags.CLEANING))


def activity_spec_of(view: FeatureView) -> ActivitySpec:
    """The windows of an activity view.

    Raises:
        DeclarationError: The view is no activity view, or its tags were altered.
    """
    return ActivitySpec.from_json(_tag(view, tags.ACTIVITY_KIND, tags.ACTIVITY))


def behaviors_name_of(view: FeatureView) -> str:
    """Name of the behaviors view that an activity view counts.

    Raises:
        DeclarationError: The view is no activity view, or its tags were altered.
    """
    return _tag(view, tags.ACTIVITY_KIND, tags.BEHAVIORS)


def _tag(view: FeatureView, kind: str, key: str) -> str:
    if view.tags.get(tags.KIND) != kind or key not in view.tags:
        raise DeclarationError(
            f"Feature view {view.name!r} is not one of {kind} (tag {tags.KIND} is {view.tags.get(tags.KIND)!r}"
            f"{'' if key in view.tags else f', tag {key} is missing'}). Declare it with {_BUILDERS[kind]}(…)."
        )
    return str(view.tags[key])


_BUILDERS = {"behaviors": "behaviors_view", "activity": "activity_view"}

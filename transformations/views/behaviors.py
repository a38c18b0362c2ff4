"""The behavior table as a Feast source, and its behaviors as an ordinary view."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from feast import Entity, FeatureView, Field, FileSource, PushSource, RepoConfig
from feast.data_format import ParquetFormat
from feast.types import Float64, Int64, String

from feast_embeddings.models.errors import DeclarationError
from feast_embeddings.transformations.behaviors import BehaviorContract, CleaningRules
from feast_embeddings.transformations.histories import LATEST_FEATURES
from feast_embeddings.transformations.views import tags

ID_TYPES = {"int64": Int64, "string": String}
"""Feast's type of an id, by the contract's."""


class _BehaviorFiles(FileSource):
    """A file source that may be a pattern: Feast 0.67 reads it, but warns at `apply` that there is no such file."""

    def validate(self, config: RepoConfig) -> None:
        """As Feast's, of the first file that the pattern finds; of the pattern itself where it finds none."""
        path = Path(FileSource.get_uri_for_file_path(config.repo_path, self.path)).absolute()
        found = [] if "://" in self.path else sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
        if found:
            FileSource(path=str(found[0]), timestamp_field=self.timestamp_field).validate(config)
        else:
            super().validate(config)


def behavior_source(name: str, path: str | Path, contract: BehaviorContract) -> FileSource:
    """The team's behavior table as a Feast source, columns renamed as ``behaviors_view`` calls them.

    Args:
        name: Name of the source in the registry.
        path: Parquet file, folder or glob; ``folder/*.parquet`` is the folder, to which a push can add a file. Stock
            Feast reads it relative to the working directory.
        contract: Which column is what.
    """
    place = Path(path)
    folder = place.parent if place.name == "*.parquet" and "*" not in str(place.parent) else place
    renamed = {contract.entity: contract.join_key} | {
        column: LATEST_FEATURES[role] for role, column in contract.columns.items() if role in LATEST_FEATURES
    }
    return _BehaviorFiles(
        name=name,
        path=str(folder),
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

    Features: ``item_id``, ``behavior_type`` (if the source has a type column), ``value`` (if it has one),
    of the latest behavior: of several at one time, of the last in the order of ``Behaviors``. What is no behavior is
    left out, as in ticks and training; the cleaning rules do not act here.

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
        DeclarationError: The entity's join key is not the contract's, or ``push`` has no place to add behaviors to.
    """
    if push is not None and "*" in source.path:
        raise DeclarationError(
            f"View {name!r}: push={push!r} needs a file or folder to add behaviors to, and the path of its source is "
            f"{source.path!r}: name the folder."
        )
    if entity.join_key != contract.join_key:
        raise DeclarationError(
            f"View {name!r}: entity {entity.name!r} has join key {entity.join_key!r}, the contract "
            f"{contract.join_key!r}. Set join_key={entity.join_key!r} in the contract."
        )
    types = {"item": ID_TYPES[contract.item_dtype], "behavior_type": String, "value": Float64}
    features = [
        Field(name=LATEST_FEATURES[role], dtype=dtype) for role, dtype in types.items() if role in contract.columns
    ]
    return FeatureView(
        name=name,
        entities=[entity],
        ttl=timedelta(0),
        schema=[Field(name=contract.join_key, dtype=ID_TYPES[contract.entity_dtype]), *features],
        source=source if push is None else PushSource(name=push, batch_source=source),
        tags={
            tags.KIND: tags.BEHAVIORS_KIND,
            tags.CONTRACT: contract.to_json(),
            tags.CLEANING: (rules or CleaningRules()).to_json(),
            **({} if push is None else {tags.PUSHED: push}),
        },
    )


def contract_of(view: FeatureView) -> BehaviorContract:
    """The contract of a behaviors view.

    Raises:
        DeclarationError: The view is no behaviors view, or its tags were altered.
    """
    return BehaviorContract.from_json(tags.tag_of(view, tags.BEHAVIORS_KIND, tags.CONTRACT))


def rules_of(view: FeatureView) -> CleaningRules:
    """The cleaning rules of a behaviors view.

    Raises:
        DeclarationError: The view is no behaviors view, or its tags were altered.
    """
    return CleaningRules.from_json(tags.tag_of(view, tags.BEHAVIORS_KIND, tags.CLEANING))

"""What a repo declares, read back from its registry: embedding views and their tags, entities and their ids."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final, Literal, cast

from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.errors import EntityNotFoundException
from feast.infra.registry.base_registry import BaseRegistry
from feast.types import String

from feast_embeddings.materialize.declare.policy import Policy, policy_from_json
from feast_embeddings.materialize.declare.storage import Storage
from feast_embeddings.models.errors import DeclarationError
from feast_embeddings.transformations.views import EMBEDDING_KIND, KIND, PREFIX, SPACE

Tower = Literal["user", "item"]
_INTEGERS: Final = (ValueType.INT64, ValueType.INT32)


@dataclass(frozen=True)
class EmbeddingSpec:
    """What an embedding view declares, as the engine and the stores read it from its tags.

    Attributes:
        view: Name of the view.
        join_key: Its entity's join key.
        string_ids: The entity's ids are strings; otherwise int64.
        tower: ``"user"`` (histories are encoded) or ``"item"`` (the encoder's item tower).
        encoder: Name of the encoder; all views that name it share one live generation.
        artifact: Folder of the encoder artifact, relative to the feature repo.
        behaviors: Name of the view over the raw behaviors.
        history: Name of the history view that this view's ticks write; empty for an item tower.
        dim: Dimensions of the vectors.
        policy: When to encode what, and how to blend.
        declared_space: The artifact's space when the view was applied, or None where there was no artifact yet.
        log: Folder of the embedding log, relative to the feature repo.
        ttl_us: Age in microseconds past which a vector is no longer served; 0: it is served forever.
        storage: How many bits of a number are kept: ``float32``, ``float16`` or ``int8``.
        feature: Name of the view's one feature.
        users: For an item tower: the embedding view whose users' vectors stand for items that the encoder never saw;
            empty where there is none.
    """

    view: str
    join_key: str
    string_ids: bool
    tower: Tower
    encoder: str
    artifact: str
    behaviors: str
    history: str
    dim: int
    policy: Policy
    declared_space: str | None
    log: str
    ttl_us: int
    storage: Storage = "float32"
    feature: str = "embedding"
    users: str = ""

    @property
    def reference(self) -> str:
        """The feature as Feast's reads name it, ``<view>:<feature>``."""
        return f"{self.view}:{self.feature}"


def is_embedding(view: FeatureView) -> bool:
    """Whether ``view`` was declared by :func:`embedding_view` or :func:`item_embedding_view`."""
    return bool(view.tags.get(KIND) == EMBEDDING_KIND)


def spec_of(view: FeatureView) -> EmbeddingSpec:
    """Read the declaration back from a view's tags; raises DeclarationError for a view that has none."""
    if not is_embedding(view):
        raise DeclarationError(f"View {view.name!r} is not an embedding view: declare it with embedding_view().")
    tags = {key.removeprefix(PREFIX): value for key, value in view.tags.items()}
    field = vector_field(view)
    key = view.entity_columns[0]
    return EmbeddingSpec(
        view=view.name,
        join_key=key.name,
        string_ids=key.dtype == String,
        tower=cast(Tower, tags["tower"]),
        encoder=tags["encoder"],
        artifact=tags["artifact"],
        behaviors=tags["behaviors"],
        history=tags["history"],
        dim=int(tags["dim"]),
        policy=policy_from_json(tags["policy"]),
        declared_space=field.tags.get(SPACE),
        log=str(Path(source_of(view).path).parent.parent),
        ttl_us=round((view.ttl or timedelta(0)).total_seconds() * 1_000_000),
        storage=cast(Storage, tags.get("storage", "float32")),
        feature=field.name,
        users=tags.get("users", ""),
    )


def vector_field(view: FeatureView) -> Field:
    """The one feature of an embedding view; raises DeclarationError where there are others."""
    # a stream view that comes back from the registry lists its join key among its features
    keys = {column.name for column in view.entity_columns}
    fields = [field for field in view.schema if field.name not in keys]
    if len(fields) != 1:
        raise DeclarationError(
            f"Embedding view {view.name!r} has the features {', '.join(field.name for field in fields) or 'none'}: "
            "declare it with embedding_view() or item_embedding_view(), which give it one, and run `feast apply`."
        )
    return fields[0]


def source_of(view: FeatureView) -> FileSource:
    """The file source behind a view; raises DeclarationError where it has another kind of source."""
    source = view.batch_source
    if not isinstance(source, FileSource):
        raise DeclarationError(
            f"View {view.name!r} reads {type(source).__name__}: declare its batch source as a FileSource of parquet."
        )
    return source


def embedding_specs(registry: BaseRegistry, project: str) -> list[EmbeddingSpec]:
    """Declarations of every embedding view of a project."""
    return [spec_of(view) for view in registry.list_stream_feature_views(project) if is_embedding(view)]


def encoder_specs(registry: BaseRegistry, project: str, encoder: str) -> list[EmbeddingSpec]:
    """Declarations of the views that share an encoder name: they are cut over together."""
    return [spec for spec in embedding_specs(registry, project) if spec.encoder == encoder]


def behaviors_of(registry: BaseRegistry, project: str, spec: EmbeddingSpec) -> FeatureView:
    """The view over the raw behaviors that ``spec`` names."""
    return registry.get_feature_view(spec.behaviors, project)


def declared_entity(store: FeatureStore, name: str) -> Entity:
    """The entity of a name; raises DeclarationError, with the names there are, where there is none."""
    try:
        return store.registry.get_entity(name, store.project)
    except EntityNotFoundException as error:
        known = ", ".join(sorted(each.name for each in store.registry.list_entities(store.project))) or "none"
        raise DeclarationError(
            f"Project {store.project!r} declares no entity {name!r}; its entities: {known}. Name one of them, or run "
            "`feast apply`."
        ) from error


def entity_id_of(entity: Entity, entity_id: int | str) -> int | str:
    """An id as the entity has its ids; raises DeclarationError where it can be none."""
    if entity.value_type not in _INTEGERS:
        return str(entity_id)
    try:
        found = int(entity_id)
    except ValueError:
        found = 1 << 63
    as_written = not isinstance(entity_id, str) or entity_id == str(found)  # Python reads "1_0", " 10" and "+10" too
    if not as_written or not -(1 << 63) <= found < 1 << 63:
        raise DeclarationError(
            f"Entity {entity.name!r} has integer ids, and {entity_id!r} is none: give the id in decimal "
            "digits alone, as its views have it."
        )
    return found


def user_spec(store: FeatureStore, view: str | None) -> EmbeddingSpec:
    """The embedding view of that name, or the only one whose entities behave."""
    specs = [spec for spec in embedding_specs(store.registry, store.project) if spec.tower == "user"]
    chosen = [spec for spec in specs if view in (None, spec.view)]
    if len(chosen) == 1:
        return chosen[0]
    names = ", ".join(sorted(spec.view for spec in specs)) or "none"
    raise DeclarationError(
        f"Project {store.project!r} declares these embedding views of behaviors: {names}. "
        + ("Name one of them." if specs else "Declare one with embedding_view() and run `feast apply`.")
    )

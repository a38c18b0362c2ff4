"""Declarations for a feature repo: embedding views, the history view, pins, and how the engine reads them back."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import FunctionType
from typing import Literal, cast

import numpy as np
import pandas as pd
from feast import Entity, FeatureView, Field, FileSource, PushSource, StreamFeatureView, ValueType
from feast.types import Array, FeastType, Float32, Int32, Int64, String

from feast_embeddings.materialize.declare.policy import Full, Policy, policy_from_json, policy_to_json
from feast_embeddings.materialize.declare.storage import STORAGES, Storage
from feast_embeddings.models import HistoryBatch, load_encoder, read_manifest
from feast_embeddings.models.errors import ArtifactError, DeclarationError
from feast_embeddings.transformations import contract_of
from feast_embeddings.transformations.views import (
    BEHAVIORS,
    EMBEDDING,
    EMBEDDING_KIND,
    HISTORY_FEATURES,
    HISTORY_KIND,
    KIND,
    PREFIX,
    SPACE,
)

STATE = "data/embeddings"
PIN = "@"
Tower = Literal["user", "item"]


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
    users: str = ""


def embedding_view(
    name: str,
    *,
    entity: Entity,
    behaviors: FeatureView,
    history: FeatureView,
    encoder: str,
    dim: int,
    policy: Policy,
    artifact: str | None = None,
    ttl: timedelta = timedelta(0),
    state: str = STATE,
    storage: Storage = "float32",
    description: str = "",
) -> StreamFeatureView:
    """Declare the embedding of an entity's behaviors: a view with one feature, ``embedding``, float32 [dim].

    Args:
        name: Name of the view.
        entity: The entity that behaves.
        behaviors: The view over its raw behaviors (:func:`feast_embeddings.transformations.behaviors_view`).
        history: The view its ticks keep histories in (:func:`history_view`); one per embedding view.
        encoder: Name of the encoder; views of one encoder are cut over together.
        dim: Dimensions of the encoder's vectors.
        policy: ``Incremental``, ``Full`` or ``Hybrid``.
        artifact: Folder of the encoder artifact, relative to the feature repo. Default ``data/encoders/<encoder>``.
        ttl: Age past which a vector is no longer served, online or offline. Default: forever.
        state: Folder that holds the embedding log, relative to the feature repo.
        storage: ``float32``; or ``float16`` or ``int8`` (with one scale per vector), which take about a half and a
            quarter of the bytes in Redis. Vectors are rounded once, before they are staged and logged: online reads
            and historical retrieval return the same float32 numbers, and a later blend starts from them.
        description: For people.

    Raises:
        DeclarationError: ``behaviors`` or ``history`` is not such a view, ``storage`` is unknown, or the artifact at
            hand has another dimension than ``dim``.
    """
    contract_of(behaviors)
    if history.tags.get(KIND) != HISTORY_KIND:
        raise DeclarationError(f"embedding_view {name!r}: history={history.name!r} was not made by history_view().")
    tags = {"tower": "user", "behaviors": behaviors.name, "history": history.name}
    return _view(name, entity, encoder, dim, policy, artifact, ttl, state, storage, description, tags)


def item_embedding_view(
    name: str,
    *,
    entity: Entity,
    encoder: str,
    dim: int,
    policy: Policy | None = None,
    artifact: str | None = None,
    ttl: timedelta = timedelta(0),
    state: str = STATE,
    storage: Storage = "float32",
    unseen: FeatureView | None = None,
    description: str = "",
) -> StreamFeatureView:
    """Declare the item tower of an encoder: the vectors of the items it was trained on, and of new ones if asked.

    Arguments are those of :func:`embedding_view`. A trained item's vector changes only with the encoder, so the
    default policy is a refresh whenever the encoder's space is new. ``unseen`` names the embedding view of the same
    encoder whose users come to items that the encoder never saw: such an item is then placed by the vectors that were
    served for its users before their behaviors (``models.UnseenItems``), and ``feast materialize-incremental`` follows
    that view's ticks. Without it those items have no vector.

    Raises:
        DeclarationError: As :func:`embedding_view`; or ``unseen`` is no user embedding view of this encoder.
    """
    tags = {"tower": "item", "behaviors": "", "history": ""}
    if unseen is not None:
        _check_users(name, unseen, encoder, dim, artifact or f"data/encoders/{encoder}")
        tags["users"] = unseen.name
    return _view(name, entity, encoder, dim, policy or Full(), artifact, ttl, state, storage, description, tags)


def history_view(name: str, *, entity: Entity, behaviors: FeatureView, ttl: timedelta = timedelta(0)) -> FeatureView:
    """Declare where an entity's last behaviors are served from: raw item ids, type codes, times and values.

    An ordinary view with four list features, oldest first; ticks of its embedding view write it. Times are
    microseconds since the epoch, UTC; type codes follow the contract's list of behavior types.
    """
    contract = contract_of(behaviors)
    item: FeastType = Array(String) if contract.item_dtype == "string" else Array(Int64)
    dtypes: tuple[FeastType, ...] = (item, Array(Int32), Array(Int64), Array(Float32))
    source = behaviors.batch_source
    return FeatureView(
        name=name,
        entities=[entity],
        ttl=ttl,
        schema=[
            Field(name=entity.join_key, dtype=_id_type(entity)),
            *(Field(name=feature, dtype=dtype) for feature, dtype in zip(HISTORY_FEATURES, dtypes, strict=True)),
        ],
        source=source,
        tags={KIND: HISTORY_KIND, BEHAVIORS: behaviors.name},
    )


def pinned(view: FeatureView, space: str) -> FeatureView:
    """A projection of ``view`` that reads one space for ever, live or retained, for use in a feature service.

    Reads of a retired space raise SpaceError. Features of the projection are named ``<view>@<space>``.
    """
    projection = copy.deepcopy(view)
    projection.projection.name_alias = f"{view.name}{PIN}{space}"
    return projection


def is_embedding(view: FeatureView) -> bool:
    """Whether ``view`` was declared by :func:`embedding_view` or :func:`item_embedding_view`."""
    return bool(view.tags.get(KIND) == EMBEDDING_KIND)


def spec_of(view: FeatureView) -> EmbeddingSpec:
    """Read the declaration back from a view's tags; raises DeclarationError for a view that has none."""
    if not is_embedding(view):
        raise DeclarationError(f"View {view.name!r} is not an embedding view: declare it with embedding_view().")
    tags = {key.removeprefix(PREFIX): value for key, value in view.tags.items()}
    (field,) = (field for field in view.features if field.name == EMBEDDING)
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
        users=tags.get("users", ""),
    )


def source_of(view: FeatureView) -> FileSource:
    """The file source behind a view; raises DeclarationError where it has another kind of source."""
    source = view.batch_source
    if not isinstance(source, FileSource):
        raise DeclarationError(
            f"View {view.name!r} reads {type(source).__name__}: declare its batch source as a FileSource of parquet."
        )
    return source


def embed_behaviors(frame: pd.DataFrame) -> pd.DataFrame:
    """The stream transformation of an embedding view: histories in, vectors out, on cuda, mps or cpu.

    Args:
        frame: One row per entity, with the four list features of :func:`history_view` and ``event_timestamp``
            (the time the history stands at); ``frame.attrs["artifact"]`` names the encoder artifact.

    Returns:
        ``frame`` without the history, with ``embedding``: a list of float32 [dim] per row.
    """
    artifact = frame.attrs.get("artifact")
    if not artifact:
        raise ArtifactError(
            "embed_behaviors needs frame.attrs['artifact'], the folder of a trained encoder. If `feast materialize` "
            "came here, write `batch_engine: {type: feast_embeddings.materialize.engine.EmbeddingEngine}` in "
            "feature_store.yaml: another engine ran an embedding view."
        )

    lengths = frame["history_items"].map(len).to_numpy(np.int64)
    as_of = frame["event_timestamp"].to_numpy("datetime64[us]").astype(np.int64)

    def flat(column: str, dtype: type) -> np.ndarray:
        return np.concatenate([np.empty(0, dtype), *frame[column]]).astype(dtype)

    items = frame["history_items"]
    text = bool(len(items)) and any(isinstance(item, str) for item in items.iloc[0])
    batch = HistoryBatch(
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        items=flat("history_items", object if text else np.int64),
        behavior_types=flat("history_types", np.int32),
        times=flat("history_times", np.int64),
        values=flat("history_values", np.float32),
        as_of=as_of,
    )
    vectors = load_encoder(artifact).encode(batch)
    kept = frame[[column for column in frame.columns if not column.startswith("history_")]]
    return kept.assign(**{EMBEDDING: list(vectors)})


def _view(
    name: str,
    entity: Entity,
    encoder: str,
    dim: int,
    policy: Policy,
    artifact: str | None,
    ttl: timedelta,
    state: str,
    storage: Storage,
    description: str,
    tags: dict[str, str],
) -> StreamFeatureView:
    if dim <= 0:
        raise DeclarationError(f"Embedding view {name!r}: dim={dim} is not a dimension: use the encoder's, such as 64.")
    if PIN in name:
        raise DeclarationError(f"Embedding view {name!r}: a name must not contain {PIN!r}: it marks a pinned space.")
    if storage not in STORAGES:
        raise DeclarationError(
            f"Embedding view {name!r}: storage={storage!r} is unknown: use one of {', '.join(map(repr, STORAGES))}."
        )
    artifact = artifact or f"data/encoders/{encoder}"
    log = FileSource(
        name=f"{name}_log",
        path=f"{state}/log/{name}/live/*.parquet",
        timestamp_field="event_timestamp",
    )
    declared = {"kind": "embedding", "encoder": encoder, "artifact": artifact, "dim": str(dim), "storage": storage}
    declared |= {"policy": policy_to_json(policy)} | tags
    return StreamFeatureView(
        name=name,
        entities=[entity],
        ttl=ttl,
        schema=[
            Field(name=entity.join_key, dtype=_id_type(entity)),
            Field(name=EMBEDDING, dtype=Array(Float32), tags=_space_tag(name, artifact, dim)),
        ],
        source=PushSource(name=f"{name}_push", batch_source=log),
        mode="pandas",
        udf=cast(FunctionType, embed_behaviors),
        udf_string="feast_embeddings.materialize.embed_behaviors",
        timestamp_field="event_timestamp",
        description=description,
        tags={f"{PREFIX}{key}": value for key, value in declared.items()},
    )


def _check_users(name: str, unseen: FeatureView, encoder: str, dim: int, artifact: str) -> None:
    """Vectors of users stand for items only in one space."""
    users = spec_of(unseen) if is_embedding(unseen) else None
    if users is None or users.tower != "user":
        raise DeclarationError(
            f"item_embedding_view {name!r}: unseen={unseen.name!r} holds no vectors of users: name a view that "
            "embedding_view() declared."
        )
    if (users.encoder, users.dim, users.artifact) != (encoder, dim, artifact):
        raise DeclarationError(
            f"item_embedding_view {name!r}: unseen={unseen.name!r} is of encoder {users.encoder!r} (dim={users.dim}, "
            f"{users.artifact}), this view of {encoder!r} (dim={dim}, {artifact}): vectors are averaged within one "
            "space only, so declare both with one encoder."
        )


def _space_tag(view: str, artifact: str, dim: int) -> dict[str, str]:
    """The artifact's space, so that `feast apply` declares it; nothing before the first training."""
    if not Path(artifact).exists():
        return {}
    manifest = read_manifest(Path(artifact))
    if manifest.dim != dim:
        raise DeclarationError(
            f"Embedding view {view!r} declares dim={dim}, but the encoder at {artifact!r} has {manifest.dim}: "
            f"write dim={manifest.dim}, or train an encoder of {dim} dimensions."
        )
    return {SPACE: manifest.space}


def _id_type(entity: Entity) -> FeastType:
    return String if entity.value_type == ValueType.STRING else Int64

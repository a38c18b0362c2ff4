"""What a repo writes: embedding views, the history view, pins."""

from __future__ import annotations

import copy
from datetime import timedelta
from pathlib import Path
from types import FunctionType
from typing import Final, cast

import numpy as np
import pandas as pd
from feast import Entity, FeatureView, Field, FileSource, PushSource, StreamFeatureView, ValueType
from feast.types import Array, FeastType, Float32, Int32, Int64, String

from feast_embeddings.materialize.declare.arguments import EncoderRef, Inputs, Serving, former_keywords
from feast_embeddings.materialize.declare.policy import Full, Policy, policy_to_json
from feast_embeddings.materialize.declare.spec import is_embedding, spec_of
from feast_embeddings.models import HistoryBatch, load_encoder, read_manifest
from feast_embeddings.models.errors import ArtifactError, DeclarationError
from feast_embeddings.transformations import contract_of
from feast_embeddings.transformations.views import (
    BEHAVIORS,
    EMBEDDING,
    HISTORY_FEATURES,
    HISTORY_KIND,
    KIND,
    PREFIX,
    SPACE,
)

PIN: Final = "@"
LONGEST_NAME: Final = 100
"""Letters of a view's name; files that are named after it have names of up to 255 bytes."""


@former_keywords
def embedding_view(
    name: str,
    *,
    entity: Entity,
    inputs: Inputs,
    encoder: EncoderRef,
    policy: Policy,
    serve: Serving = Serving(),  # noqa: B008 - frozen
    description: str = "",
) -> StreamFeatureView:
    """Declare the embedding of an entity's behaviors: a view with one feature, float32 [dim], named by ``serve``.

    Args:
        name: Name of the view.
        entity: The entity that behaves.
        inputs: Its behaviors, and where its histories are kept.
        encoder: What encodes them.
        policy: ``Incremental``, ``Full`` or ``Hybrid``.
        serve: Under which name, how long and in how many bits vectors are served.
        description: For people.

    Raises:
        DeclarationError: ``inputs`` are not such views, or the artifact at hand has another dimension than declared.
    """
    behaviors, history = inputs.behaviors, inputs.history
    contract_of(behaviors)
    if history.tags.get(KIND) != HISTORY_KIND:
        raise DeclarationError(f"embedding_view {name!r}: history={history.name!r} was not made by history_view().")
    tags = {"tower": "user", "behaviors": behaviors.name, "history": history.name}
    return _view(name, entity, encoder, policy, serve, description, tags)


@former_keywords
def item_embedding_view(
    name: str,
    *,
    entity: Entity,
    encoder: EncoderRef,
    policy: Policy | None = None,
    serve: Serving = Serving(),  # noqa: B008 - frozen
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
        _check_users(name, unseen, encoder)
        tags["users"] = unseen.name
    return _view(name, entity, encoder, policy or Full(), serve, description, tags)


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


# Feast's registry keeps this function by dill, as a reference to its module: a name that outlives any move of files.
embed_behaviors.__module__ = "feast_embeddings.materialize"


def _view(
    name: str,
    entity: Entity,
    encoder: EncoderRef,
    policy: Policy,
    serve: Serving,
    description: str,
    tags: dict[str, str],
) -> StreamFeatureView:
    if PIN in name:
        raise DeclarationError(f"Embedding view {name!r}: a name must not contain {PIN!r}: it marks a pinned space.")
    if (
        not name
        or Path(name).name != name
        or name.startswith(".")
        or not name.isprintable()
        or len(name) > LONGEST_NAME
    ):
        raise DeclarationError(
            f"{name[:60]!r} is no name for an embedding view, whose log stands in a folder of that name: write one of "
            f"at most {LONGEST_NAME} letters, digits and underscores, such as 'user_embedding'."
        )
    if serve.feature == entity.join_key:
        # Feast puts features and join keys into one answer: the vector would stand in the place of the id.
        raise DeclarationError(
            f"Embedding view {name!r}: feature={serve.feature!r} is the join key of entity {entity.name!r}: write "
            f"another name, such as Serving(feature='{entity.name}_vector')."
        )
    log = FileSource(
        name=f"{name}_log",
        path=f"{serve.state}/log/{name}/live/*.parquet",
        timestamp_field="event_timestamp",
        field_mapping={EMBEDDING: serve.feature} if serve.feature != EMBEDDING else None,
    )
    declared = {"kind": "embedding", "encoder": encoder.name, "artifact": encoder.folder, "dim": str(encoder.dim)}
    declared |= {"storage": serve.storage, "policy": policy_to_json(policy)} | tags
    return StreamFeatureView(
        name=name,
        entities=[entity],
        ttl=serve.ttl,
        schema=[
            Field(name=entity.join_key, dtype=_id_type(entity)),
            Field(name=serve.feature, dtype=Array(Float32), tags=_space_tag(name, encoder)),
        ],
        source=PushSource(name=f"{name}_push", batch_source=log),
        mode="pandas",
        udf=cast(FunctionType, embed_behaviors),
        udf_string="feast_embeddings.materialize.embed_behaviors",
        timestamp_field="event_timestamp",
        description=description,
        tags={f"{PREFIX}{key}": value for key, value in declared.items()},
    )


def _check_users(name: str, unseen: FeatureView, encoder: EncoderRef) -> None:
    """Vectors of users stand for items only in one space."""
    users = spec_of(unseen) if is_embedding(unseen) else None
    if users is None or users.tower != "user":
        raise DeclarationError(
            f"item_embedding_view {name!r}: unseen={unseen.name!r} holds no vectors of users: name a view that "
            "embedding_view() declared."
        )
    if (users.encoder, users.dim, users.artifact) != (encoder.name, encoder.dim, encoder.folder):
        raise DeclarationError(
            f"item_embedding_view {name!r}: unseen={unseen.name!r} is of encoder {users.encoder!r} (dim={users.dim}, "
            f"{users.artifact}), this view of {encoder.name!r} (dim={encoder.dim}, {encoder.folder}): vectors are "
            "averaged within one space only, so declare both with one encoder."
        )


def _space_tag(view: str, encoder: EncoderRef) -> dict[str, str]:
    """The artifact's space, so that `feast apply` declares it; nothing before the first training."""
    if not Path(encoder.folder).exists():
        return {}
    manifest = read_manifest(Path(encoder.folder))
    if manifest.dim != encoder.dim:
        raise DeclarationError(
            f"Embedding view {view!r} declares dim={encoder.dim}, but the encoder at {encoder.folder!r} has "
            f"{manifest.dim}: write dim={manifest.dim}, or train an encoder of {encoder.dim} dimensions."
        )
    return {SPACE: manifest.space}


def _id_type(entity: Entity) -> FeastType:
    return String if entity.value_type == ValueType.STRING else Int64

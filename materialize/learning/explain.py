"""Why an entity's vector is what it is: its behaviors, its neighbors, and what the last tick changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from feast import FeatureStore

from feast_embeddings.materialize.declare import (
    EmbeddingSpec,
    behaviors_of,
    declared_entity,
    embedding_specs,
    entity_id_of,
)
from feast_embeddings.materialize.files import Workspace, matrix_of
from feast_embeddings.materialize.online import HistoryPlace, OnlineServer, read_history
from feast_embeddings.materialize.serving import Neighbors, Vectors, nearest, read_vectors
from feast_embeddings.models import Explanation, HistoryBatch, explain
from feast_embeddings.models.encoder import Encoder
from feast_embeddings.models.errors import DeclarationError, TickError
from feast_embeddings.models.explanation import Method, sequence_of
from feast_embeddings.models.types import Bools, Float32s, Ids
from feast_embeddings.transformations import BehaviorContract, contract_of


@dataclass(frozen=True)
class Change:
    """What the last tick that touched an entity did to its vector.

    Attributes:
        tick: Its number.
        previous_tick: The one before, in the same space.
        previous_end_us: Up to when that one knew behaviors, microseconds.
        cosine: Between the two vectors.
        moved: Length of their difference, over that of the earlier one.
    """

    tick: int
    previous_tick: int
    previous_end_us: int
    cosine: float
    moved: float


@dataclass(frozen=True)
class EntityExplanation:
    """An entity's served vector, explained.

    Attributes:
        entity_id: The entity.
        spec: The embedding view.
        contract: Of its behaviors.
        vectors: The served vector, one row.
        as_of_us: Up to when it knows behaviors, microseconds.
        explanation: Of the encoder's output for the history as of then.
        partial: Whether a layer below the last was asked for, and so not the vector is explained.
        blended: Cosine between that output and the served vector: 1 where nothing of the past was blended in.
        new: Which of the explained behaviors came since the tick before, bool [N]; all where there was none.
        change: What the last tick did; None for an entity's first vector in its space.
        neighbors: The nearest items by inner product; None where the encoder has no item view.
    """

    entity_id: int | str
    spec: EmbeddingSpec
    contract: BehaviorContract
    vectors: Vectors
    as_of_us: int
    explanation: Explanation
    partial: bool
    blended: float
    new: Bools
    change: Change | None
    neighbors: Neighbors | None


def explain_entity(
    store: FeatureStore,
    entity: str,
    entity_id: int | str,
    *,
    view: str | None = None,
    method: Method | None = None,
    layer: int | None = None,
    k: int = 10,
) -> EntityExplanation:
    """Explain the vector that an online read returns for an entity now.

    The history is the one kept online, as of the entity's last tick. Behaviors count as new by their event time: one
    that came late is not.

    Args:
        store: The feature store.
        entity: Name of the entity, as declared.
        entity_id: Its id; text is read as an integer where the entity's ids are integers.
        view: The embedding view, where the entity has several.
        method: As in :func:`feast_embeddings.models.explain`.
        layer: As there.
        k: Nearest items.

    Raises:
        DeclarationError: There is no such entity or view, or the encoder cannot be asked so.
        TickError: The entity has no vector yet.
        OnlineStoreError: Redis cannot be reached.
    """
    workspace, declared = Workspace.of(store.config), declared_entity(store, entity)
    found = entity_id_of(declared, entity_id)
    spec = _spec(store, declared.join_key, entity, view)
    ids: Ids = np.array([found], object if spec.string_ids else np.int64)
    vectors = read_vectors(store, spec.reference, ids)
    rows = workspace.log(spec).served(found, vectors.space) if vectors.found[0] else None
    if rows is None or not rows.num_rows:
        raise TickError(
            f"{entity} {entity_id!r} has no vector in view {spec.view!r}: it has no behaviors, or no tick has met them "
            "yet; run `feast materialize-incremental`."
        )
    as_of_us = rows["tick_end"][-1].value
    contract = contract_of(behaviors_of(store.registry, store.project, spec))
    encoder = workspace.encoder(vectors.space)
    history = _history(store, spec, contract, ids, as_of_us)
    explanation = explain(encoder, history, method, layer=layer)
    change = _change(rows)
    since = change.previous_end_us if change else 0
    return EntityExplanation(
        entity_id=found,
        spec=spec,
        contract=contract,
        vectors=vectors,
        as_of_us=as_of_us,
        explanation=explanation,
        partial=layer is not None and explanation.layer != _blocks(encoder),
        blended=cosine(vectors.values[0], encoder.encode(history)[0]),
        new=explanation.histories.times >= since,
        change=change,
        neighbors=_neighbors(store, spec, vectors, k),
    )


def cosine(one: Float32s, other: Float32s) -> float:
    """Cosine of two vectors; 0 where one of them is zero."""
    lengths = float(np.linalg.norm(one)) * float(np.linalg.norm(other))
    return float(one @ other) / lengths if lengths else 0.0


def _blocks(encoder: Encoder) -> int | None:
    sequence = sequence_of(encoder)
    return None if sequence is None else len(sequence.blocks)


def _spec(store: FeatureStore, join_key: str, entity: str, view: str | None) -> EmbeddingSpec:
    specs = [each for each in embedding_specs(store.registry, store.project) if each.tower == "user"]
    specs = [each for each in specs if each.join_key == join_key and view in (None, each.view)]
    if len(specs) == 1:
        return specs[0]
    names = ", ".join(each.view for each in specs) or "none"
    raise DeclarationError(
        f"Entity {entity!r} has these embedding views of histories{f' named {view!r}' if view else ''}: {names}. "
        + ("Name one with --view." if specs else "Name an entity whose behaviors are encoded.")
    )


def _history(
    store: FeatureStore, spec: EmbeddingSpec, contract: BehaviorContract, ids: Ids, as_of_us: int
) -> HistoryBatch:
    place = HistoryPlace(spec.history, spec.join_key, contract.item_dtype)
    return read_history(OnlineServer.of(store.config), place, ids, as_of_us)


def _change(rows: pa.Table) -> Change | None:
    if rows.num_rows < 2:
        return None
    before, after = matrix_of(rows["embedding"].slice(rows.num_rows - 2))
    length = float(np.linalg.norm(before))
    ticks: Any = rows["tick"].to_pylist()
    return Change(
        tick=ticks[-1],
        previous_tick=ticks[-2],
        previous_end_us=rows["tick_end"][-2].value,
        cosine=cosine(before, after),
        moved=float(np.linalg.norm(after - before)) / length if length else float("inf"),
    )


def _neighbors(store: FeatureStore, spec: EmbeddingSpec, vectors: Vectors, k: int) -> Neighbors | None:
    specs = embedding_specs(store.registry, store.project)
    items = [each for each in specs if each.tower == "item" and each.encoder == spec.encoder]
    return nearest(store, items[0].reference, vectors, k) if items else None

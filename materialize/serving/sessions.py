"""Serving session vectors: which encoder answers, loaded once per process, and the encoding of a request's rows."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from feast import FeatureStore, RepoConfig

from feast_embeddings.materialize.clock import now_us
from feast_embeddings.materialize.files.workspace import Workspace
from feast_embeddings.materialize.online import fills
from feast_embeddings.materialize.online.stores import online_store_of
from feast_embeddings.materialize.serving import metrics
from feast_embeddings.materialize.serving.answer import Answer, current_answer
from feast_embeddings.models import Encoder, HistoryBatch
from feast_embeddings.models.encoder.batch import Float32s, Ids
from feast_embeddings.models.encoder.preprocessing import lookup_of
from feast_embeddings.models.errors import (
    ArtifactError,
    DeclarationError,
    FeastEmbeddingsError,
    OnlineStoreError,
    SpaceError,
)
from feast_embeddings.transformations.views.session import (
    SESSION_INPUTS,
    Columns,
    SessionSpec,
    serve_sessions_with,
    session_spec_of,
)
from feast_embeddings.transformations.views.session_histories import session_histories
from feast_embeddings.transformations.views.tags import HISTORY_FEATURES

_log = logging.getLogger(__name__)
KEPT: Final = 4
"""Encoders of so many spaces stay loaded: the live one, its predecessor for a rollback, and a pinned one or two."""
_WARM_LENGTHS: Final = (1, 12, 40, 80, 150, 250)


@dataclass(frozen=True, slots=True)
class Loaded:
    """An encoder in use, and an index of the items that it knows; None for one that knows items by their content."""

    encoder: Encoder
    items: pd.Index[int] | None

    def encode(self, batch: HistoryBatch, *, exact: bool) -> Float32s:
        """Vectors float32 [B, dim]; not exact: by the encoder's quick way for requests, where it has one."""
        quick = getattr(self.encoder, "encode_now", self.encoder.encode)
        vectors: Float32s = self.encoder.encode(batch) if exact else quick(batch)
        return vectors

    def unknown(self, items: Ids) -> int:
        """How many of ``items`` [n] the encoder does not know."""
        return 0 if self.items is None or not len(items) else int(np.sum(self.items.get_indexer(pd.Index(items)) < 0))


class SessionEncoders:
    """Encoders by space: each is loaded once, by one thread, while the others wait for it alone."""

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._lock = threading.Lock()
        self._loading: dict[tuple[str, ...], threading.Lock] = {}
        self._loaded: OrderedDict[tuple[str, ...], Loaded] = OrderedDict()

    def get(self, config: RepoConfig, encoder: str, space: str) -> Loaded:
        """The encoder of a space.

        Raises:
            ArtifactError: This machine's state folder holds no such encoder.
        """
        engine = config.batch_engine
        key = (space, str(getattr(engine, "device", None)), str(getattr(engine, "precision", None)))
        with self._lock:
            if key in self._loaded:
                self._loaded.move_to_end(key)
                return self._loaded[key]
            loading = self._loading.setdefault(key, threading.Lock())
        with loading:
            with self._lock:
                if key in self._loaded:
                    return self._loaded[key]
            loaded = _load(Workspace.of(config), encoder, space)
            with self._lock:
                self._loaded[key] = loaded
                while len(self._loaded) > self._kept:
                    self._loaded.popitem(last=False)
                self._loading.pop(key, None)
        metrics.LOADED.labels(encoder).inc()
        return loaded


ENCODERS: Final = SessionEncoders()
"""Those of this process."""


def warm_up(store: FeatureStore) -> list[str]:
    """Load the encoders that the declared session views would answer with now, and encode with each once.

    ``feast serve`` does so by itself when it starts. A view whose encoder has no generation yet is left out.

    Returns:
        The names of the views that are ready to answer.

    Raises:
        ArtifactError: A served space's encoder is not on this machine.
        OnlineStoreError: Redis cannot be reached.
    """
    ready = []
    for view in store.registry.list_on_demand_feature_views(store.project, allow_cache=True):
        spec = session_spec_of(view)
        if spec is None:
            continue
        online = online_store_of(store)
        try:
            loaded = _encoder_of(Answer(online, store.config, {}), spec)
        except SpaceError:
            continue
        session_histories(spec, _some_request(spec), now_us(), loaded.encoder.context)
        for length in _WARM_LENGTHS:
            some = _some_history(spec, min(length, loaded.encoder.context))
            loaded.encode(some, exact=spec.exact)
        ready.append(spec.view)
    return ready


def warm_up_quietly(config: RepoConfig) -> None:
    """:func:`warm_up` for a server's start: what stands in the way is logged; the first request tells it again."""
    try:
        warm_up(FeatureStore(config=config))
    except FeastEmbeddingsError as error:
        _log.warning("Session views are not warm: %s", error)


def encode_sessions(spec: SessionSpec, inputs: Columns) -> Sequence[Float32s | None]:
    """Vectors of the rows of one request, encoded together; None for a row without any behavior.

    The space is that of the generation under which the rest of the answer was read.

    Raises:
        OnlineStoreError: There is no online answer that these rows could belong to.
        SpaceError: The encoder has no live generation yet, or the pinned space is not served.
        ArtifactError: The space's encoder is not on this machine.
        DeclarationError: The encoder does not fit the declaration.
        BehaviorSourceError: The request's lists do not fit together.
    """
    answer = current_answer()
    if answer is None:
        raise OnlineStoreError(
            f"On-demand view {spec.view!r} answers online reads only: its space is that of the answer. For training, "
            f"read {spec.embedding!r} and {spec.view!r}'s history from the past instead."
        )
    started = time.perf_counter()
    loaded = _encoder_of(answer, spec)
    sessions = session_histories(spec, inputs, now_us(), loaded.encoder.context)
    merged = time.perf_counter()
    vectors = loaded.encode(sessions.histories, exact=spec.exact)
    ended = time.perf_counter()
    metrics.SESSIONS.labels(spec.view).inc(len(vectors))
    metrics.UNKNOWN_ITEMS.labels(spec.view).inc(loaded.unknown(sessions.items))
    for outcome, number in sessions.counts.items():
        metrics.BEHAVIORS.labels(spec.view, outcome).inc(number)
    metrics.SECONDS.labels(spec.view, "merge").observe(merged - started)
    metrics.SECONDS.labels(spec.view, "encode").observe(ended - merged)
    known = sessions.histories.lengths > 0
    return [vector if some else None for vector, some in zip(vectors, known.tolist(), strict=True)]


def _encoder_of(answer: Answer, spec: SessionSpec) -> Loaded:
    if spec.encoder in answer.manifests:
        manifest = answer.manifests[spec.encoder]
    else:  # nothing else in the answer is in this encoder's space
        manifest = fills.read_manifest(answer.store, answer.config, spec.encoder)
        answer.store.follow(spec.encoder)
    ref = manifest.fill_of(spec.embedding, spec.space) if manifest else None
    if ref is None:
        raise SpaceError(
            f"On-demand view {spec.view!r}: encoder {spec.encoder!r} has no live generation of {spec.embedding!r} "
            "yet: run `feast-embeddings train`, `feast apply` and `feast materialize` first."
        )
    loaded = ENCODERS.get(answer.config, spec.encoder, ref.space)
    _check(spec, loaded.encoder)
    return loaded


def _load(workspace: Workspace, encoder: str, space: str) -> Loaded:
    try:
        found = workspace.encoder(space)
    except ArtifactError as error:
        raise ArtifactError(
            f"The encoder of space {space}, which is served for {encoder!r}, is not on this machine: session views "
            f"need the folder {workspace.paths.encoder(space)} beside whoever answers. {error}"
        ) from error
    ids = found.item_ids()
    return Loaded(found, lookup_of(ids) if len(ids) else None)


def _some_history(spec: SessionSpec, length: int) -> HistoryBatch:
    text = spec.contract.item_dtype == "string"
    items: Ids = np.full(length, "", object) if text else np.zeros(length, np.int64)
    return HistoryBatch(
        offsets=np.array([0, length], np.int64),
        items=items,
        behavior_types=np.zeros(length, np.int32),
        times=np.arange(length, dtype=np.int64),
        values=np.full(length, np.nan, np.float32),
        as_of=np.array([length], np.int64),
    )


def _some_request(spec: SessionSpec) -> Columns:
    cells = ("" if spec.contract.item_dtype == "string" else 0, spec.contract.type_names[0], 0, 0.0)
    stored: dict[str, list[Any]] = {name: [None] for name in HISTORY_FEATURES}
    return stored | {name: [[cell]] for name, cell in zip(SESSION_INPUTS, cells, strict=True)}


def _check(spec: SessionSpec, encoder: Encoder) -> None:
    if encoder.dim != spec.dim:
        raise DeclarationError(
            f"On-demand view {spec.view!r} declares dim={spec.dim}, but the encoder that is served has {encoder.dim}: "
            "run `feast apply` with the declaration of the live encoder."
        )
    declared = spec.contract.type_names
    if declared[: len(encoder.behavior_types)] != encoder.behavior_types:
        raise DeclarationError(
            f"On-demand view {spec.view!r} declares behavior types {declared}, but the encoder that is served was "
            f"trained on {encoder.behavior_types}: types may only be added at the end; restore their order."
        )


serve_sessions_with(encode_sessions)

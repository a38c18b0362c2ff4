"""Encoders of sessions, by space: each is loaded once per process."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
from feast import RepoConfig

from feast_embeddings.materialize.files import Workspace
from feast_embeddings.materialize.serving import metrics
from feast_embeddings.models import Encoder, HistoryBatch
from feast_embeddings.models.encoder import lookup_of
from feast_embeddings.models.errors import ArtifactError
from feast_embeddings.models.types import Float32s, Ids

KEPT: Final = 4
"""Encoders of so many spaces stay loaded: the live one, its predecessor for a rollback, and a pinned one or two."""


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


def _load(workspace: Workspace, encoder: str, space: str) -> Loaded:
    try:
        found = workspace.encoder(space)
    except ArtifactError as error:
        raise ArtifactError(
            f"The encoder of space {space}, which is served for {encoder!r}, is not on this machine: session views "
            f"need the folder {workspace.state / 'encoders' / space} beside whoever answers. {error}"
        ) from error
    ids = found.item_ids()
    return Loaded(found, lookup_of(ids) if len(ids) else None)

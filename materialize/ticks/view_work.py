"""What ticks and refreshes of one view share: encoders, blends, and guarded writes under a lease."""

from __future__ import annotations

from typing import Any

import numpy as np
from feast import RepoConfig

from feast_embeddings.materialize.declare import EmbeddingSpec, Hybrid, Incremental, blend
from feast_embeddings.materialize.files.behavior_log import BehaviorLog
from feast_embeddings.materialize.files.workspace import Workspace
from feast_embeddings.materialize.ledger.leases import Lease
from feast_embeddings.materialize.ledger.records import RECEIVING, Fill, Tick
from feast_embeddings.materialize.online import fills as online
from feast_embeddings.materialize.online_store import EmbeddingOnlineStore
from feast_embeddings.materialize.ticks.milestones import reached
from feast_embeddings.materialize.ticks.progress import counter
from feast_embeddings.models import Encoder, HistoryBatch
from feast_embeddings.models.encoder.batch import Float32s, Ids
from feast_embeddings.models.errors import DeclarationError
from feast_embeddings.transformations.behaviors.contract import IdType
from feast_embeddings.transformations.views.tags import EMBEDDING

ENCODE_ROWS = 8192


class ViewWork:
    """The means of one job on one view.

    Args:
        workspace, store, config: Of the feature repo.
        spec: The view's declaration.
        source: Where its behaviors come from; None for items.
        lease: Held by the job; every longer step checks it.

    Attributes:
        encoded: Histories and items encoded so far.
    """

    def __init__(
        self,
        workspace: Workspace,
        store: EmbeddingOnlineStore,
        config: RepoConfig,
        spec: EmbeddingSpec,
        source: BehaviorLog | None,
        lease: Lease,
    ) -> None:
        self.workspace, self.ledger = workspace, workspace.ledger
        self.store, self.config, self.spec = store, config, spec
        self.log = workspace.log(spec)
        self.source = source
        self.lease = lease
        self.encoded = 0
        # what every read and write of this view in Redis is told
        self._where: dict[str, Any] = {"store": store, "config": config, "join_key": spec.join_key}

    # ── compute ──────────────────────────────────────────────────────────────────────────────────────────

    @property
    def policy(self) -> Incremental:
        """The policy of the view's ticks."""
        policy = self.spec.policy
        if isinstance(policy, Hybrid):
            return policy.incremental
        return policy if isinstance(policy, Incremental) else Incremental()

    def encoder(self, fill: Fill) -> Encoder:
        """The encoder of a fill's space.

        Raises:
            DeclarationError: The behavior types are not those that it was trained on.
        """
        encoder = self.workspace.encoder(fill.space)
        if self.source is not None:
            declared = tuple(kind.name for kind in self.source.contract.types)
            if declared[: len(encoder.behavior_types)] != encoder.behavior_types:
                raise DeclarationError(
                    f"View {self.spec.behaviors!r} declares behavior types {declared}, but the encoder in space "
                    f"{fill.space} was trained on {encoder.behavior_types}: types may only be added at the end; "
                    "restore their order, or train again."
                )
        self.ledger.register_space(fill.space, fill.encoder, encoder.dim, encoder.numeric_path)
        return encoder

    def kept(self, tick: Tick) -> int:
        """How many behaviors of each history a tick keeps: enough for every encoder in use, fixed once chosen."""
        if tick.kept is not None:
            return tick.kept
        used = self.ledger.fills(view=self.spec.view, states=(*RECEIVING, "building"))
        spaces = {fill.space for fill in (*used, *map(self.ledger.fill, tick.fills))}
        kept = max(self.workspace.encoder(space).context for space in spaces)
        self.ledger.update_tick(tick, kept=kept)
        return kept

    def encode(self, encoder: Encoder, batch: HistoryBatch) -> Float32s:
        """Vectors of histories [n]: float32 [n, dim]."""
        vectors = np.empty((len(batch), encoder.dim), np.float32)
        with counter(len(batch), f"{self.spec.view}: encode", "history") as shown:
            for start in range(0, len(batch), ENCODE_ROWS):
                stop = min(start + ENCODE_ROWS, len(batch))
                vectors[start:stop] = encoder.encode(batch.take(np.arange(start, stop, dtype=np.int64)))
                self.lease.check()
                shown.update(stop - start)
        self.encoded += len(batch)
        return vectors

    def blended(self, tick: Tick, fill: str, ids: Ids, extracted: Float32s) -> Float32s:
        """What a tick makes of a fill's vectors as they stand in Redis: float32 [n, dim]."""
        old = online.read_fill(
            **self._where, view_name=self.spec.view, fill=fill, feature=EMBEDDING, dim=self.spec.dim, ids=ids
        )
        # Δt counts event time, ends of ticks: wall-clock time would make a retry blend otherwise.
        alphas = self.policy.alphas(np.where(old.found, tick.end_us - old.tick_end_us, 0))
        return blend(old.vectors, extracted, alphas, old.found)

    # ── Redis ────────────────────────────────────────────────────────────────────────────────────────────

    def write_vectors(self, tick: Tick, fill: str, ids: Ids, vectors: Float32s) -> None:
        """Write a tick's vectors, float32 [n, dim], into a fill, each where the stored tick is older."""
        online.write_fill(
            **self._where,
            **self._stamps(tick),
            view_name=self.spec.view,
            fill=fill,
            feature=EMBEDDING,
            ids=ids,
            vectors=vectors,
            on_chunk=self._on_chunk,
            storage=self.spec.storage,
        )

    def write_histories(self, tick: Tick, ids: Ids, batch: HistoryBatch) -> None:
        """Write the histories [n] that a tick leaves behind, each where the stored tick is older."""
        online.write_history(
            **self._where,
            **self._stamps(tick),
            view_name=self.spec.history,
            ids=ids,
            batch=batch,
            item_dtype=self._item_dtype,
            on_chunk=self._on_chunk,
        )

    def read_histories(self, ids: Ids, as_of_us: int) -> HistoryBatch:
        """The histories [n] in Redis, of behaviors before a time."""
        return online.read_history(
            **self._where, view_name=self.spec.history, ids=ids, as_of_us=as_of_us, item_dtype=self._item_dtype
        )

    def _stamps(self, tick: Tick) -> dict[str, Any]:
        return {"tick": tick.number, "tick_end_us": tick.end_us, "event_time_us": tick.window_start_us or 0}

    @property
    def _item_dtype(self) -> IdType:
        return self.source.contract.item_dtype if self.source is not None else "int64"

    def _on_chunk(self, _rows: int) -> None:
        reached("chunk")
        self.lease.check()

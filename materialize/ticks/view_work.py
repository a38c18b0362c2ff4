"""What the ticks of one view work with: its declaration, ledger, log, encoders and rows in Redis, under a lease."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from feast_embeddings.materialize.declare import EmbeddingSpec, Incremental, blend, ticks_of
from feast_embeddings.materialize.files import BehaviorLog, Workspace
from feast_embeddings.materialize.ledger import RECEIVING, Fill, Lease, Tick
from feast_embeddings.materialize.online import (
    FillPlace,
    FillRows,
    HistoryPlace,
    OnlineServer,
    TickStamp,
    read_fill,
    read_history,
    write_fill,
    write_history,
)
from feast_embeddings.materialize.ticks.intact import Marks
from feast_embeddings.materialize.ticks.milestones import counter, reached
from feast_embeddings.models import Encoder, HistoryBatch
from feast_embeddings.models.errors import DeclarationError, OvertakenError
from feast_embeddings.models.types import Float32s, Ids
from feast_embeddings.transformations.behaviors import IdType
from feast_embeddings.transformations.views import EMBEDDING

ENCODE_ROWS = 8192


class ViewWork:
    """The means of one job, or of one lane of a stream, on one view.

    Args:
        workspace, server: Of the feature repo.
        spec: The view's declaration.
        source: Where its behaviors come from; None for items.
        lease: Held by the job; every longer step checks it.

    Attributes:
        encoded: Histories and items encoded so far.
        marks: What shows that Redis holds what was written.
    """

    def __init__(
        self,
        workspace: Workspace,
        server: OnlineServer,
        spec: EmbeddingSpec,
        source: BehaviorLog | None,
        lease: Lease,
    ) -> None:
        self.workspace, self.ledger = workspace, workspace.ledger
        self.server, self.spec = server, spec
        self.log = workspace.log(spec)
        self.source = source
        self.lease = lease
        self.policy: Incremental = ticks_of(spec.policy)
        self.encoded = 0
        self._checked: dict[str, Encoder] = {}
        self.marks = Marks(self.ledger, server, spec)
        item_dtype: IdType = source.contract.item_dtype if source is not None else "int64"
        self._histories = HistoryPlace(spec.history, spec.join_key, item_dtype)

    # ── encoders ─────────────────────────────────────────────────────────────────────────────────────────

    def check(self, spaces: Sequence[str] = ()) -> None:
        """Check the encoders of every fill that a tick would write, and of ``spaces``, before it is recorded.

        Raises:
            DeclarationError: As :meth:`encoder`.
        """
        used = self.ledger.fills(view=self.spec.view, states=(*RECEIVING, "building"))
        for space in {*spaces, *(fill.space for fill in used)}:
            self.encoder(space)

    def encoder(self, space: str) -> Encoder:
        """The encoder of a space, checked once.

        Raises:
            DeclarationError: The behavior types are not those that it was trained on, or its vectors are of another
                dimension than declared.
        """
        if space not in self._checked:
            encoder = self.workspace.encoder(space)
            self._check_encoder(encoder)
            self.ledger.register_space(space, self.spec.encoder, encoder.dim, encoder.numeric_path)
            self._checked[space] = encoder
        return self._checked[space]

    def _check_encoder(self, encoder: Encoder) -> None:
        if encoder.dim != self.spec.dim:
            raise DeclarationError(
                f"View {self.spec.view!r} declares dim={self.spec.dim}, but the encoder in space {encoder.space} has "
                f"{encoder.dim}: correct dim= in its declaration, or train again."
            )
        if self.source is None:
            return
        declared = tuple(kind.name for kind in self.source.contract.types)
        if declared[: len(encoder.behavior_types)] != encoder.behavior_types:
            raise DeclarationError(
                f"View {self.spec.behaviors!r} declares behavior types {declared}, but the encoder in space "
                f"{encoder.space} was trained on {encoder.behavior_types}: types may only be added at the end; "
                "restore their order, or train again."
            )

    def longest_context(self, spaces: Sequence[str]) -> int:
        """Behaviors that the encoders of these spaces need of each history; reads no ledger.

        Raises:
            OvertakenError: One of them was not checked: a cutover came in between.
        """
        unknown = [space for space in spaces if space not in self._checked]
        if unknown:
            raise OvertakenError(f"View {self.spec.view!r}: space {unknown[0]} is in use now: check it, and try again.")
        return max(self._checked[space].context for space in spaces)

    def kept(self, tick: Tick) -> int:
        """How many behaviors of each history a tick keeps: enough for every encoder in use, fixed once chosen."""
        if tick.kept is not None:
            return tick.kept
        used = self.ledger.fills(view=self.spec.view, states=(*RECEIVING, "building"))
        spaces = {fill.space for fill in (*used, *map(self.ledger.fill, tick.fills))}
        kept = max(self.workspace.encoder(space).context for space in spaces)
        self.ledger.update_tick(tick, kept=kept)
        return kept

    def targets(self, tick: Tick) -> list[Fill]:
        """The fills a tick writes, without those that a cutover has retired since."""
        found = [self.ledger.fill(name) for name in tick.fills]
        return [fill for fill in found if fill.state not in ("retired", "removed")]

    # ── compute ──────────────────────────────────────────────────────────────────────────────────────────

    def encode(self, encoder: Encoder, batch: HistoryBatch) -> Float32s:
        """Vectors of histories [n]: float32 [n, dim]."""
        if len(batch) <= ENCODE_ROWS:
            self.encoded += len(batch)
            return encoder.encode(batch)
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
        if self.policy.half_life is None and not self.policy.alpha:
            return extracted
        old = self.stored(fill, ids)
        # Δt counts event time, ends of ticks: wall-clock time would make a retry blend otherwise.
        alphas = self.policy.alphas(np.where(old.found, tick.end_us - old.tick_end_us, 0))
        return blend(old.vectors, extracted, alphas, old.found)

    # ── Redis ────────────────────────────────────────────────────────────────────────────────────────────

    def stored(self, fill: str, ids: Ids) -> FillRows:
        """The rows of entities [n] in a fill as they stand in Redis."""
        return read_fill(self.server, self._place(fill), self.spec.dim, ids)

    def write_vectors(self, tick: Tick, fill: str, ids: Ids, vectors: Float32s) -> None:
        """Write a tick's vectors, float32 [n, dim], into a fill, each where the stored tick is older."""
        write_fill(
            self.server,
            self._place(fill),
            _stamp(tick),
            ids,
            vectors,
            storage=self.spec.storage,
            on_chunk=self._on_chunk,
        )

    def write_histories(self, tick: Tick, ids: Ids, batch: HistoryBatch) -> None:
        """Write the histories [n] that a tick leaves behind, each where the stored tick is older."""
        write_history(self.server, self._histories, _stamp(tick), ids, batch, on_chunk=self._on_chunk)

    def read_histories(self, ids: Ids, as_of_us: int) -> HistoryBatch:
        """The histories [n] in Redis, of behaviors before a time."""
        return read_history(self.server, self._histories, ids, as_of_us)

    def _place(self, fill: str) -> FillPlace:
        return FillPlace(self.spec.view, self.spec.join_key, fill, EMBEDDING)

    def _on_chunk(self, _rows: int) -> None:
        reached("chunk")
        self.lease.check()


def _stamp(tick: Tick) -> TickStamp:
    return TickStamp(tick.number, tick.end_us, tick.window_start_us or 0)

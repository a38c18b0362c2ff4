"""The steps of one micro-batch; at whatever step a worker dies, whoever finishes it ends in the same bits.

recorded → members (quarantine, then the part of the behavior log, exclusive) → staged (exclusive) → window → Redis
(guarded by tick number) → embedding log and ledger → offsets committed. The steps from *staged* on are those of batch
ticks, with the same files, the same guarded writes, and the same blend.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from feast import RepoConfig

from feast_embeddings.materialize.clock import now_us
from feast_embeddings.materialize.declare.policy import Hybrid, Incremental, blend
from feast_embeddings.materialize.declare.views import EmbeddingSpec
from feast_embeddings.materialize.files.behavior_log import BehaviorLog, digest
from feast_embeddings.materialize.files.dead_letters import PoisonMessages
from feast_embeddings.materialize.files.embedding_log import LogStamp
from feast_embeddings.materialize.files.workspace import Workspace
from feast_embeddings.materialize.ledger.leases import Lease
from feast_embeddings.materialize.ledger.offsets import StreamLedger, StreamTick
from feast_embeddings.materialize.ledger.records import Fill
from feast_embeddings.materialize.online import fills as online
from feast_embeddings.materialize.online_store import EmbeddingOnlineStore
from feast_embeddings.materialize.stream.judge import Members, Membership
from feast_embeddings.materialize.stream.payloads import Decoded, decode
from feast_embeddings.materialize.stream.source import Delivery, Source
from feast_embeddings.materialize.ticks.milestones import reached
from feast_embeddings.models import HistoryBatch
from feast_embeddings.models.encoder.batch import Float32s, Ids
from feast_embeddings.models.errors import StreamError
from feast_embeddings.transformations import Behaviors, Histories, extend
from feast_embeddings.transformations.views.tags import EMBEDDING


@dataclass
class Applied:
    """What a tick came to, once its rows are servable.

    Attributes:
        tick: The tick, with its window open.
        counts: What became of its behaviors.
        digest: Of the accepted ones.
        rows: Rows of vectors written.
        seconds: How long each stage took: encode, stage, write.
        unknown: Behaviors with an item that the encoder does not know.
    """

    tick: StreamTick
    counts: Mapping[str, int]
    digest: str
    rows: int
    seconds: dict[str, float] = field(default_factory=dict)
    unknown: int = 0


class StreamTicks:
    """Applies the micro-batches of one lane of one view; used by one thread, but for :meth:`publish`."""

    def __init__(
        self,
        workspace: Workspace,
        store: EmbeddingOnlineStore,
        config: RepoConfig,
        spec: EmbeddingSpec,
        source: BehaviorLog,
        lease: Lease,
        lane: str,
        lateness_us: int | None = None,
    ) -> None:
        self.workspace, self.store, self.config, self.spec = workspace, store, config, spec
        self.ledger, self.stream = workspace.ledger, StreamLedger(workspace.ledger)
        self.log, self.lease, self.lane = workspace.log(spec), lease, lane
        self.contract = source.contract
        self.membership = Membership(source, spec.view, lateness_us)
        self.poison = PoisonMessages(workspace.state / "quarantine" / "messages")
        self._spaces: dict[str, str] = {}
        self._published_us = 0

    def take_up(self, source: Source) -> list[StreamTick]:
        """Finish what a stopped worker of this lane left, in order; then the lane may go on."""
        found = self.stream.open_ticks(self.spec.view, self.lane)
        self.membership.remember(source.partitions, [tick.number for tick in found])
        for tick in found:
            if tick.source != source.name:
                raise StreamError(
                    f"Tick {tick.number} of view {tick.view!r} was begun from source {tick.source!r}, and this worker "
                    f"reads {source.name!r}: run a worker on {tick.source!r} once, which finishes it."
                )
            members = self.membership.find(tick)
            delivery = source.replay(tick.ranges) if members is None else None
            decoded = None if delivery is None else decode(delivery.payloads, self.contract)
            applied = self.apply(tick, delivery, decoded, members)
            self.publish(applied)
            source.commit(tick.positions)
        return found

    def record(self, delivery: Delivery) -> StreamTick:
        """Record a micro-batch."""
        tick = self.stream.record(
            self.lease, self.spec.view, self.lane, delivery.source, delivery.ranges, self._longest_context
        )
        reached("recorded")
        return tick

    def compute(
        self, tick: StreamTick, delivery: Delivery | None, decoded: Decoded | None, members: Members | None = None
    ) -> Applied:
        """Everything up to the staged files; nothing that reads return has changed yet.

        Pass either the messages, or the members that :meth:`Membership.find` found.
        """
        began = time.perf_counter()
        if members is None:
            assert delivery is not None and decoded is not None  # noqa: S101, PT018 - one or the other
            members = self.membership.judge(tick, delivery, decoded, self._read_history)
            if len(members.quarantined) or len(members.poison):
                self.workspace.quarantine().write(self.spec.view, tick.number, members.quarantined)
                self.poison.write(self.spec.view, tick.number, members.poison)
        self.membership.append(tick, members)
        reached("members")
        applied = Applied(tick, members.counts, digest(members.behaviors), 0)
        if not self._staged(tick):
            self._stage(tick, members.behaviors, applied, began)
        reached("staged")
        return applied

    def write(self, applied: Applied) -> None:
        """Open the window, and write the staged rows to Redis: from now on they are served."""
        began = time.perf_counter()
        applied.tick = tick = self.stream.begin_write(self.lease, applied.tick)
        reached("window")
        for fill in self._targets(tick):
            staged = self.log.staged(fill.fill, tick.number)
            if staged is not None and len(staged[0]):
                self._write_fill(tick, fill.fill, *staged)
                applied.rows = max(applied.rows, len(staged[0]))
        history = self.log.staged_history(tick.number)
        if history is not None and len(history[0]):
            self._write_history(tick, *history)
        reached("written")
        applied.seconds["write"] = time.perf_counter() - began

    def apply(
        self, tick: StreamTick, delivery: Delivery | None, decoded: Decoded | None, members: Members | None = None
    ) -> Applied:
        """:meth:`compute`, then :meth:`write`."""
        applied = self.compute(tick, delivery, decoded, members)
        self.write(applied)
        return applied

    def publish(self, applied: Applied) -> None:
        """The log and one commit of the ledger; offsets may be committed to the source after it."""
        tick = applied.tick
        self._published_us = max(now_us(), self._published_us + 1, (tick.window_start_us or 0) + 1)
        us = self._published_us
        if applied.rows:
            for fill in self._targets(tick):
                stamp = LogStamp(fill.fill, fill.space, tick.number, tick.end_us, tick.window_start_us or us, us)
                self.log.publish(stamp, live=fill.state == "live")
        reached("logged")
        self.stream.publish(self.lease, tick, applied.counts, applied.digest, applied.rows, us)
        self.log.drop_staged(tick.number, tick.fills)
        reached("published")

    # ── compute ──────────────────────────────────────────────────────────────────────────────────────────

    def _stage(self, tick: StreamTick, behaviors: Behaviors, applied: Applied, began: float) -> None:
        ids = behaviors.entities
        fills = self._targets(tick)
        batch = extend(self._read_history(ids, tick.end_us), ids, behaviors, tick.kept, tick.end_us)
        policy = self.policy
        seen = batch if policy.context == "window" else Histories(behaviors).as_of(ids, tick.end_us, tick.kept)
        extracted = {space: self.workspace.encoder(space).encode(seen) for space in {fill.space for fill in fills}}
        vectors = {fill.fill: self._blended(tick, fill, ids, extracted[fill.space], policy) for fill in fills}
        applied.unknown = self._unknown(behaviors, fills)
        applied.seconds["encode"] = time.perf_counter() - began
        staging = time.perf_counter()
        self.log.stage_history(tick.number, ids, batch)
        for name, matrix in vectors.items():
            self.log.stage(name, tick.number, ids, matrix)
        applied.seconds["stage"] = time.perf_counter() - staging

    def _blended(self, tick: StreamTick, fill: Fill, ids: Ids, extracted: Float32s, policy: Incremental) -> Float32s:
        if policy.half_life is None and not policy.alpha:
            return extracted
        old = online.read_fill(
            self.store, self.config, view_name=self.spec.view, join_key=self.spec.join_key, fill=fill.fill,
            feature=EMBEDDING, dim=self.spec.dim, ids=ids,
        )  # fmt: skip
        alphas = policy.alphas(np.where(old.found, tick.end_us - old.tick_end_us, 0))
        return blend(old.vectors, extracted, alphas, old.found)

    @property
    def policy(self) -> Incremental:
        """How ticks encode and blend: that of the view's batch ticks."""
        policy = self.spec.policy
        if isinstance(policy, Hybrid):
            return policy.incremental
        return policy if isinstance(policy, Incremental) else Incremental()

    def _read_history(self, ids: Ids, as_of_us: int) -> HistoryBatch:
        return online.read_history(
            self.store, self.config, view_name=self.spec.history, join_key=self.spec.join_key, ids=ids,
            as_of_us=as_of_us, item_dtype=self.contract.item_dtype,
        )  # fmt: skip

    def _write_fill(self, tick: StreamTick, fill: str, ids: Ids, vectors: Float32s) -> None:
        online.write_fill(
            self.store, self.config, view_name=self.spec.view, join_key=self.spec.join_key, fill=fill,
            feature=EMBEDDING, tick=tick.number, tick_end_us=tick.end_us, event_time_us=tick.window_start_us or 0,
            ids=ids, vectors=vectors, on_chunk=self._on_chunk, storage=self.spec.storage,
        )  # fmt: skip

    def _write_history(self, tick: StreamTick, ids: Ids, batch: HistoryBatch) -> None:
        online.write_history(
            self.store, self.config, view_name=self.spec.history, join_key=self.spec.join_key, tick=tick.number,
            tick_end_us=tick.end_us, event_time_us=tick.window_start_us or 0, ids=ids, batch=batch,
            item_dtype=self.contract.item_dtype, on_chunk=self._on_chunk,
        )  # fmt: skip

    def _staged(self, tick: StreamTick) -> bool:
        return self.log.has_staged(tick.number, [fill.fill for fill in self._targets(tick)], history=True)

    def _targets(self, tick: StreamTick) -> list[Fill]:
        """The fills a tick writes, without those that a cutover has retired since."""
        states = ("live", "retained", "ready")
        return [fill for fill in self.ledger.fills(view=self.spec.view, states=states) if fill.fill in tick.fills]

    def _longest_context(self, spaces: Sequence[str]) -> int:
        return max(self.workspace.encoder(space).context for space in spaces)

    def _unknown(self, behaviors: Behaviors, fills: list[Fill]) -> int:
        index = getattr(self.workspace.encoder(fills[-1].space), "items", None) if fills else None
        return 0 if index is None else int(np.count_nonzero(index.rows(behaviors.items) == 0))

    def _on_chunk(self, _rows: int) -> None:
        reached("chunk")
        self.lease.check()

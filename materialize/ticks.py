"""The steps of one recorded tick; whatever step a stopped job left it at, finishing it again ends the same way.

read state → compute → staged files (exclusive) → Redis (guarded by tick number) → log and ledger
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from feast import RepoConfig

from feast_embeddings.materialize import online_writes as online
from feast_embeddings.materialize.clock import now_us
from feast_embeddings.materialize.embedding_log import LogStamp
from feast_embeddings.materialize.leases import Lease
from feast_embeddings.materialize.ledger_records import Fill, Tick
from feast_embeddings.materialize.members import BehaviorLog, counts_of, digest
from feast_embeddings.materialize.online_store import EmbeddingOnlineStore
from feast_embeddings.materialize.policy import Hybrid, Incremental, blend
from feast_embeddings.materialize.progress import counter
from feast_embeddings.materialize.steps import reached
from feast_embeddings.materialize.tombstones import NEVER, Tombstones
from feast_embeddings.materialize.views import EmbeddingSpec
from feast_embeddings.materialize.workspace import Workspace
from feast_embeddings.models import Encoder, HistoryBatch
from feast_embeddings.models.batch import Float32s, Ids
from feast_embeddings.models.errors import DeclarationError
from feast_embeddings.transformations import Behaviors, Histories, Prepared, extend
from feast_embeddings.transformations.contract import IdType
from feast_embeddings.transformations.tags import EMBEDDING

RECEIVING = ("live", "retained", "ready")
"""States of the fills that ticks go into."""


class Ticks:
    """Finishes recorded ticks of one view."""

    def __init__(
        self,
        workspace: Workspace,
        store: EmbeddingOnlineStore,
        config: RepoConfig,
        spec: EmbeddingSpec,
        source: BehaviorLog | None,
        lease: Lease,
    ) -> None:
        self.workspace = workspace
        self.ledger = workspace.ledger
        self.store = store
        self.config = config
        self.spec = spec
        self.log = workspace.log(spec)
        self.lease = lease
        self._encoded = 0
        self._source = source

    def changed(self, tick: Tick) -> bool:
        """Whether a tick that had no effect yet lost its membership: its behaviors are not what was recorded."""
        if self._source is None or tick.digest is None or self._staged(tick):
            return False
        behaviors = self._source.members(tick).behaviors
        return (tick.members, tick.digest) != (len(behaviors), digest(behaviors))

    def reads_state(self, tick: Tick) -> bool:
        """Whether a tick has still to read, from Redis, the vectors that it blends with."""
        return tick.kind == "incremental" and not self._staged(tick)

    def abandon(self, tick: Tick) -> None:
        """Void a tick that had no effect, with all that it left: counts, quarantined rows, staged files."""
        self.ledger.abandon(tick)
        self.workspace.quarantine().write(self.spec.view, tick.number, pa.table({}))
        self.log.drop_staged(tick.number, tick.fills)

    def finish(self, tick: Tick) -> Tick:
        """Compute what is not staged yet, write it to Redis, and publish it; a refresh is left to its cutover."""
        if not self._staged(tick):
            self._stage(tick)
            tick = self.ledger.update_tick(tick, encoded=self._encoded)
        reached("staged")
        if tick.window_start_us is None:
            tick = self.ledger.update_tick(tick, window_start_us=now_us())
        reached("window")
        rows = self._write(tick)
        reached("written")
        if tick.kind == "full":
            self.ledger.update_fill(tick.fills[0], state="ready", rows=rows)
            return self.ledger.update_tick(tick, state="written", rows=rows)
        return self._publish(tick, rows)

    # ── compute ──────────────────────────────────────────────────────────────────────────────────────────

    def _staged(self, tick: Tick) -> bool:
        return self.log.has_staged(tick.number, self._targets(tick), history=self._source is not None)

    def _targets(self, tick: Tick) -> list[str]:
        """The fills a tick writes, without those that a cutover of another view has retired since."""
        return [name for name in tick.fills if self.ledger.fill(name).state not in ("retired", "removed")]

    def _kept(self, tick: Tick) -> int:
        """How many behaviors of each history a tick keeps: enough for every encoder in use, fixed once chosen."""
        if tick.kept is not None:
            return tick.kept
        used = self.ledger.fills(view=self.spec.view, states=RECEIVING)
        spaces = {fill.space for fill in (*used, *map(self.ledger.fill, tick.fills))}
        kept = max(self.workspace.encoder(space).context for space in spaces)
        self.ledger.update_tick(tick, kept=kept)
        return kept

    def _stage(self, tick: Tick) -> None:
        self._encoded = 0
        self.lease.check()
        if self._source is None:
            self._stage_items(tick)
            return
        prepared = self._source.members(tick)
        self._record_members(tick, prepared)
        self.lease.check()
        if tick.kind == "full":
            self._stage_refresh(tick, self._source, prepared.behaviors)
        else:
            self._stage_increment(tick, prepared.behaviors)

    def _record_members(self, tick: Tick, prepared: Prepared) -> None:
        self.workspace.quarantine().write(self.spec.view, tick.number, prepared.quarantined)
        found = digest(prepared.behaviors)
        self.ledger.set_members(tick, len(prepared.behaviors), found, counts_of(prepared))
        reached("members")

    def _stage_items(self, tick: Tick) -> None:
        encoder = self._encoder(self.ledger.fill(tick.fills[0]))
        ids = encoder.item_ids()
        ids = ids[Tombstones(self.ledger, self.spec.join_key).erased_us(pa.array(ids)) == NEVER]
        vectors, _ = encoder.encode_items(ids)
        self._encoded += len(ids)
        self.log.stage(tick.fills[0], tick.number, ids, vectors)

    def _stage_refresh(self, tick: Tick, source: BehaviorLog, members: Behaviors) -> None:
        behaviors = members if tick.start_us is None else source.until(tick.end_us, tick.created_until_us)
        encoder = self._encoder(self.ledger.fill(tick.fills[0]))
        ids = behaviors.entities
        batch = Histories(behaviors).as_of(ids, tick.end_us, self._kept(tick))
        vectors = self._encode(encoder, batch)
        self.log.stage_history(tick.number, ids, batch)
        self.log.stage(tick.fills[0], tick.number, ids, vectors)

    def _stage_increment(self, tick: Tick, behaviors: Behaviors) -> None:
        ids = behaviors.entities
        fills = [self.ledger.fill(name) for name in self._targets(tick)]
        encoders = {fill.space: self._encoder(fill) for fill in fills}
        context = self._kept(tick)
        previous = self._read_history(ids, tick.end_us)
        batch = extend(previous, ids, behaviors, context, tick.end_us)
        policy = self._incremental()
        seen = batch if policy.context == "window" else Histories(behaviors).as_of(ids, tick.end_us, context)
        extracted = {space: self._encode(encoder, seen) for space, encoder in encoders.items()}
        self.log.stage_history(tick.number, ids, batch)
        for fill in fills:
            self.log.stage(fill.fill, tick.number, ids, self._blended(tick, fill, ids, extracted[fill.space], policy))

    def _blended(self, tick: Tick, fill: Fill, ids: Ids, extracted: Float32s, policy: Incremental) -> Float32s:
        old = online.read_fill(
            self.store,
            self.config,
            view_name=self.spec.view,
            join_key=self.spec.join_key,
            fill=fill.fill,
            feature=EMBEDDING,
            dim=self.spec.dim,
            ids=ids,
        )
        # Δt counts event time, ends of ticks: wall-clock time would make a retry blend otherwise.
        alphas = policy.alphas(np.where(old.found, tick.end_us - old.tick_end_us, 0))
        return blend(old.vectors, extracted, alphas, old.found)

    def _encode(self, encoder: Encoder, batch: HistoryBatch, rows: int = 8192) -> Float32s:
        vectors = np.empty((len(batch), encoder.dim), np.float32)
        with counter(len(batch), f"{self.spec.view}: encode", "history") as shown:
            for start in range(0, len(batch), rows):
                stop = min(start + rows, len(batch))
                vectors[start:stop] = encoder.encode(batch.take(np.arange(start, stop, dtype=np.int64)))
                self.lease.check()
                shown.update(stop - start)
        self._encoded += len(batch)
        return vectors

    def _encoder(self, fill: Fill) -> Encoder:
        encoder = self.workspace.encoder(fill.space)
        if self._source is not None:
            declared = tuple(kind.name for kind in self._source.contract.types)
            if declared[: len(encoder.behavior_types)] != encoder.behavior_types:
                raise DeclarationError(
                    f"View {self.spec.behaviors!r} declares behavior types {declared}, but the encoder in space "
                    f"{fill.space} was trained on {encoder.behavior_types}: types may only be added at the end; "
                    "restore their order, or train again."
                )
        self.ledger.register_space(fill.space, fill.encoder, encoder.dim, encoder.numeric_path)
        return encoder

    def _incremental(self) -> Incremental:
        policy = self.spec.policy
        if isinstance(policy, Hybrid):
            return policy.incremental
        return policy if isinstance(policy, Incremental) else Incremental()

    # ── write and publish ────────────────────────────────────────────────────────────────────────────────

    def _write(self, tick: Tick) -> int:
        rows = 0
        self.lease.check()
        for fill in self._targets(tick):
            staged = self.log.staged(fill, tick.number)
            assert staged is not None, fill  # noqa: S101 - finish() staged it
            ids, vectors = staged
            online.write_fill(
                self.store,
                self.config,
                view_name=self.spec.view,
                join_key=self.spec.join_key,
                fill=fill,
                feature=EMBEDDING,
                tick=tick.number,
                tick_end_us=tick.end_us,
                event_time_us=tick.window_start_us or 0,
                ids=ids,
                vectors=vectors,
                on_chunk=self._on_chunk,
            )
            rows = max(rows, len(ids))
        history = self.log.staged_history(tick.number)
        if history is not None:
            self._write_history(tick, *history)
        return rows

    def _write_history(self, tick: Tick, ids: Ids, batch: HistoryBatch) -> None:
        online.write_history(
            self.store,
            self.config,
            view_name=self.spec.history,
            join_key=self.spec.join_key,
            tick=tick.number,
            tick_end_us=tick.end_us,
            event_time_us=tick.window_start_us or 0,
            ids=ids,
            batch=batch,
            item_dtype=self._item_dtype,
            on_chunk=self._on_chunk,
        )

    def _read_history(self, ids: Ids, as_of_us: int) -> HistoryBatch:
        return online.read_history(
            self.store,
            self.config,
            view_name=self.spec.history,
            join_key=self.spec.join_key,
            ids=ids,
            as_of_us=as_of_us,
            item_dtype=self._item_dtype,
        )

    @property
    def _item_dtype(self) -> IdType:
        return self._source.contract.item_dtype if self._source is not None else "int64"

    def _publish(self, tick: Tick, rows: int) -> Tick:
        self.lease.check()
        last = self.ledger.last_tick(self.spec.view)
        # Within a fill the log's times strictly grow, also where a simulated clock stands still.
        event_us = max(now_us(), (last.published_us or 0) + 1 if last else 0)
        for name in self._targets(tick):
            fill = self.ledger.fill(name)
            stamp = LogStamp(name, fill.space, tick.number, tick.end_us, tick.window_start_us or event_us, event_us)
            self.log.publish(stamp, live=fill.state == "live")
        reached("logged")
        tick = self.ledger.update_tick(tick, state="published", published_us=event_us, rows=rows)
        self.log.drop_staged(tick.number, tick.fills)
        reached("published")
        return tick

    def _on_chunk(self, _rows: int) -> None:
        reached("chunk")
        self.lease.check()

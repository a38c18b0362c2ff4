"""Recovery: fills an empty or replaced Redis from the logs, bit for bit as the ticks had left it, without an encoder.

Vectors come from the embedding log, histories from the behavior log; the manifest comes last, so that no read sees a
part. Every write is guarded by its tick, as the ticks' own are: a restore that was stopped is simply run again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
from feast import FeatureStore

from feast_embeddings.materialize.declare import EmbeddingSpec, embedding_specs
from feast_embeddings.materialize.files import BehaviorLog, FillRowsOfTick, Workspace, newest_rows
from feast_embeddings.materialize.ledger import RECEIVING, Fill, Generation, Tombstones
from feast_embeddings.materialize.online import (
    FillPlace,
    HistoryPlace,
    Manifest,
    OnlineServer,
    TickStamp,
    publish_manifest,
    read_fill,
    read_manifest,
    write_fill,
    write_history,
    write_marks,
)
from feast_embeddings.materialize.retrieval import histories_left
from feast_embeddings.materialize.stream import histories_left_by_stream
from feast_embeddings.materialize.ticks import manifest_of, reached
from feast_embeddings.materialize.upkeep.standstill import standstill
from feast_embeddings.models.encoder import HistoryBatch
from feast_embeddings.models.errors import LedgerError, OnlineStoreError
from feast_embeddings.models.types import Float32s, Ids, Int64s
from feast_embeddings.transformations.behaviors import concat_ids
from feast_embeddings.transformations.views import EMBEDDING


@dataclass
class Restored:
    """What a restore wrote; rows that Redis held already are not counted.

    Attributes:
        rows: Fill, or history view → rows written.
        generations: Encoder → its live generation.
        notices: For people.
    """

    rows: dict[str, int] = field(default_factory=dict)
    generations: dict[str, int] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)


def restore(store: FeatureStore) -> Restored:
    """Fill Redis with what the ledger says is live, retained or ready, and publish the live generations.

    Reads afterwards are bit-equal to what they were, and so are the ticks that follow, as long as the behavior table
    still holds what those before had read. Other views of the repo are not restored: materialize them anew. Can be
    repeated, and taken up after a stop.

    Raises:
        LeaseError: A job works on one of the views.
        OnlineStoreError: Redis cannot be reached, or holds something that the ledger does not know.
        LedgerError: The embedding log has lost a fill.
    """
    workspace, restored = Workspace.of(store.config), Restored()
    specs = embedding_specs(store.registry, store.project)
    for encoder in sorted({spec.encoder for spec in specs}):
        own = [spec for spec in specs if spec.encoder == encoder]
        with standstill(workspace, store.project, own) as still_ours:
            _Restore(store, workspace, own, restored, still_ours).run()
    if not specs:
        restored.notices.append(f"project {store.project!r} declares no embedding view: nothing to restore")
    elif restored.generations:
        restored.notices.append("activity and other views are not restored: run `feast materialize` for them")
    return restored


class _Restore:
    """The restore of one encoder's views."""

    def __init__(
        self,
        store: FeatureStore,
        workspace: Workspace,
        specs: Sequence[EmbeddingSpec],
        restored: Restored,
        still_ours: Callable[[], None],
    ) -> None:
        self.workspace, self.ledger = workspace, workspace.ledger
        self.server, self.registry = OnlineServer.of(store.config), store.registry
        self.specs, self.restored, self.still_ours = specs, restored, still_ours
        self.encoder = specs[0].encoder
        self._stamps: dict[int, tuple[int, int]] = {}  # tick → its end, and the start of its online write

    def run(self) -> None:
        """Vectors, then histories, then the manifest."""
        live = self.ledger.live_generation(self.encoder)
        if live is None:
            self.restored.notices.append(f"encoder {self.encoder!r} has never been live: nothing to restore")
            return
        manifest = self._manifest(live)
        stored = self._stored(manifest)
        for spec in self.specs:
            ids, ticks = self._vectors(spec)
            if spec.tower == "user":
                self._histories(spec, ids, ticks)
        for spec in self.specs:
            write_marks(self.server, spec.view, self.ledger.marks(spec.view))
        reached("restored-rows")
        if stored is None or stored.generation < live.generation:
            publish_manifest(self.server, manifest)
        self.restored.generations[self.encoder] = live.generation

    # ── what Redis holds already ─────────────────────────────────────────────────────────────────────────

    def _manifest(self, live: Generation) -> Manifest:
        fills = {fill.fill: fill for fill in self.ledger.fills(encoder=self.encoder)}
        return manifest_of(live, fills, {name: fill.state for name, fill in fills.items()})

    def _stored(self, manifest: Manifest) -> Manifest | None:
        """The manifest in Redis: none, an older one, the same, or that of a cutover still to be finished."""
        stored = read_manifest(self.server, self.encoder)
        if stored is None or stored.generation < manifest.generation or stored == manifest:
            return stored
        pending = [each for each in self.ledger.generations(self.encoder) if each.cutover_us is None]
        if any(each.generation == stored.generation for each in pending):
            return stored
        raise OnlineStoreError(
            f"Redis serves generation {stored.generation} of encoder {self.encoder!r}, and by the ledger it would be "
            f"generation {manifest.generation}: this Redis is newer, or another ledger's. Bring back the ledger that "
            "belongs to it, or connect an empty Redis."
        )

    def _check_known(self, spec: EmbeddingSpec, rows: FillRowsOfTick) -> None:
        """Rows that are there already are of ticks that the ledger recorded."""
        there = read_fill(self.server, _place(spec, rows.fill), spec.dim, rows.ids)
        known, _ = self.ledger.newest(spec.view)
        if int(there.tick.max(initial=0)) > known:
            raise OnlineStoreError(
                f"Redis holds rows of tick {int(there.tick.max())} of view {spec.view!r}, and the ledger's last one is "
                f"{known}: this Redis is newer. Bring back the ledger that belongs to it, or connect an empty Redis."
            )

    # ── vectors ──────────────────────────────────────────────────────────────────────────────────────────

    def _vectors(self, spec: EmbeddingSpec) -> tuple[Ids, Int64s]:
        """Restore every fill; the entities [n] of the view, and the last tick of each, int64 [n]."""
        fills = self.ledger.fills(view=spec.view, states=RECEIVING)
        parts: list[Ids] = [np.empty(0, object if spec.string_ids else np.int64)]
        ticks, found = [np.empty(0, np.int64)], set()
        for rows in self._rows(spec, fills):
            written = write_fill(
                self.server,
                _place(spec, rows.fill),
                TickStamp(rows.tick, rows.tick_end_us, rows.written_us),
                rows.ids,
                rows.vectors,
                storage=spec.storage,
                on_chunk=self._on_chunk,
            )
            if written < len(rows.ids):
                self._check_known(spec, rows)
            self._count(rows.fill, written)
            found.add(rows.fill)
            self._stamps[rows.tick] = (rows.tick_end_us, rows.written_us)
            parts.append(rows.ids)
            ticks.append(np.full(len(rows.ids), rows.tick, np.int64))
        self._check_found(spec, fills, found)
        return _last_of_each(concat_ids(parts), np.concatenate(ticks))

    def _rows(self, spec: EmbeddingSpec, fills: Sequence[Fill]) -> Iterator[FillRowsOfTick]:
        log = self.workspace.log(spec)
        yield from newest_rows(log, [fill.fill for fill in fills])
        for fill in (fill for fill in fills if fill.state == "ready"):
            # the rows a fill was made with are in the log only from its cutover on; later ticks stand over them
            first = log.staged(fill.fill, fill.tick)
            if first is not None:
                yield self._of_tick(spec, fill.fill, fill.tick, *first)
            for rows in log.caught_up(fill.fill):
                for number in np.unique(rows.tick).tolist():
                    own = rows.tick == number
                    yield self._of_tick(spec, fill.fill, number, rows.ids[own], rows.vectors[own])

    def _of_tick(self, spec: EmbeddingSpec, fill: str, number: int, ids: Ids, vectors: Float32s) -> FillRowsOfTick:
        tick = self.ledger.tick(spec.view, number)
        return FillRowsOfTick(fill, number, tick.end_us, tick.window_start_us or 0, ids, vectors)

    def _check_found(self, spec: EmbeddingSpec, fills: Sequence[Fill], found: set[str]) -> None:
        erased = Tombstones(self.ledger, spec.join_key).marks().num_rows
        for fill in fills:
            if fill.fill not in found and fill.rows > erased:
                raise LedgerError(
                    f"Fill {fill.fill} of view {spec.view!r} should hold {fill.rows:,} rows, and the log under "
                    f"{self.workspace.log(spec).folder} has none of them: restore that folder, or run `feast "
                    "materialize` for a full refresh."
                )

    # ── histories ────────────────────────────────────────────────────────────────────────────────────────

    def _histories(self, spec: EmbeddingSpec, ids: Ids, numbers: Int64s) -> None:
        """Restore the history of every entity as its last tick, ``numbers`` int64 [n], had left it."""
        self.restored.rows.setdefault(spec.history, 0)
        if not len(ids):
            return
        source = self.workspace.behavior_log(self.registry, self.server.project, spec)
        ticks, pending = self.ledger.applied_ticks(spec.view), self.ledger.open_tick(spec.view, "incremental")
        if pending is not None:  # it may stand in the log, if only its last step was missing
            ticks.append(pending)
        by_batch = np.isin(numbers, [tick.number for tick in ticks])
        self._histories_of_stream(spec, source, ids[~by_batch], numbers[~by_batch])
        ids, numbers = ids[by_batch], numbers[by_batch]
        if not len(ids):
            return
        kept = {tick.number: tick.kept or 1 for tick in ticks}
        index = np.searchsorted(np.array([tick.number for tick in ticks], np.int64), numbers)
        for queries, batch, _ in histories_left(source, ticks, kept, ids, index):
            for at in np.unique(index[queries]):
                rows = np.flatnonzero((index[queries] == at) & (batch.lengths > 0))
                stamp = TickStamp(ticks[at].number, ticks[at].end_us, ticks[at].window_start_us or 0)
                self._write_history(spec, source, stamp, ids[queries[rows]], batch.take(rows))

    def _histories_of_stream(self, spec: EmbeddingSpec, source: BehaviorLog, ids: Ids, numbers: Int64s) -> None:
        """Restore histories whose last tick was a micro-batch of the view's stream."""
        if not len(ids):
            return
        spaces = {fill.space for fill in self.ledger.fills(view=spec.view, states=RECEIVING)}
        kept = {tick.number: tick.kept or 1 for tick in self.ledger.micro_batches(spec.view)}
        length = max(kept.values(), default=0) or max(self.workspace.encoder(space).context for space in spaces)
        ends = np.array([self._stamps[number][0] for number in numbers.tolist()], np.int64)
        unfinished = [
            tick.number for tick in self.ledger.open_micro_batches(spec.view) if tick.number not in self._stamps
        ]
        batch = histories_left_by_stream(source, spec.view, unfinished, ids, ends, length)
        for number in np.unique(numbers).tolist():
            rows = np.flatnonzero((numbers == number) & (batch.lengths > 0))
            self._write_history(spec, source, TickStamp(number, *self._stamps[number]), ids[rows], batch.take(rows))

    def _write_history(
        self, spec: EmbeddingSpec, source: BehaviorLog, stamp: TickStamp, ids: Ids, batch: HistoryBatch
    ) -> None:
        """Write histories [n] of one tick; its rows' event time is the start of its online write."""
        place = HistoryPlace(spec.history, spec.join_key, source.contract.item_dtype)
        written = write_history(self.server, place, stamp, ids, batch, on_chunk=self._on_chunk)
        self._count(spec.history, written)

    def _count(self, name: str, written: int) -> None:
        self.restored.rows[name] = self.restored.rows.get(name, 0) + written

    def _on_chunk(self, _rows: int) -> None:
        reached("restored-chunk")
        self.still_ours()


def _place(spec: EmbeddingSpec, fill: str) -> FillPlace:
    return FillPlace(spec.view, spec.join_key, fill, EMBEDDING)


def _last_of_each(ids: Ids, ticks: Int64s) -> tuple[Ids, Int64s]:
    """Each entity once, with the largest of its ticks."""
    unique, owner = np.unique(ids, return_inverse=True)
    last = np.zeros(len(unique), np.int64)
    np.maximum.at(last, owner, ticks)
    return cast(Ids, unique), last

"""Recomputes a stream's vectors from the recorded membership of its ticks: the same bits, or something is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureStore

from feast_embeddings.materialize.clock import now_us
from feast_embeddings.materialize.declare import EmbeddingSpec, Incremental, blend, ticks_of, user_spec
from feast_embeddings.materialize.files import (
    BehaviorLog,
    Workspace,
    behavior_log_of,
    erased_rows,
    newest_rows,
    parts_folder,
    raw_rows,
)
from feast_embeddings.materialize.ledger import RECEIVING, Fill, Tick
from feast_embeddings.materialize.online import FillPlace, OnlineServer, read_fill
from feast_embeddings.models import HistoryBatch
from feast_embeddings.models.errors import LedgerError
from feast_embeddings.models.types import Float32s, Ids, Int64s
from feast_embeddings.transformations import Behaviors, Histories, extend, prepare
from feast_embeddings.transformations.views import EMBEDDING

Row = tuple[int | str, bytes]
_Columns = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@dataclass
class Replayed:
    """What a replay of one fill came to.

    Attributes:
        fill: The fill.
        ticks: Micro-batches replayed.
        rows: Vectors computed.
        vectors: Entity → its last vector's bytes, float32 [dim].
        diverged: Entities whose stored vector has other bits.
    """

    fill: str
    ticks: int = 0
    rows: int = 0
    vectors: dict[int | str, bytes] = field(default_factory=dict)
    diverged: list[int | str] = field(default_factory=list)


def replay_stream(store: FeatureStore, view: str | None = None) -> list[Replayed]:
    """Replay the recorded ticks of a view's stream for each fill in use, and compare with what Redis holds.

    A fill's state before its first micro-batch is taken from the embedding log and the behavior log; everything
    after it is computed anew, tick by tick, with the ticks' own members, ends and targets.

    Raises:
        LedgerError: The recorded ticks and the behavior log disagree.
    """
    workspace, spec = Workspace.of(store.config), user_spec(store, view)
    log = behavior_log_of(store, workspace, spec)
    found = []
    for fill in workspace.ledger.fills(view=spec.view, states=RECEIVING):
        replayed = _Replay(workspace, spec, log, fill).run()
        ids = np.array(sorted(replayed.vectors), object if spec.string_ids else np.int64)
        place = FillPlace(spec.view, spec.join_key, fill.fill, EMBEDDING)
        stored = read_fill(OnlineServer.of(store.config), place, spec.dim, ids)
        same = (
            vector.tobytes() == replayed.vectors[each]
            for each, vector in zip(ids.tolist(), stored.vectors, strict=True)
        )
        replayed.diverged = [each for each, equal in zip(ids.tolist(), same, strict=True) if not equal]
        found.append(replayed)
    return found


class _Replay:
    def __init__(self, workspace: Workspace, spec: EmbeddingSpec, log: BehaviorLog, fill: Fill) -> None:
        self.workspace, self.spec, self.log, self.fill = workspace, spec, log, fill
        self.folder = parts_folder(log.path) or Path(log.path)
        self.encoder = workspace.encoder(fill.space)
        self.ticks = [
            tick
            for tick in workspace.ledger.micro_batches(spec.view, fill.tick)
            if fill.fill in tick.fills
        ]  # fmt: skip
        self.ends: dict[int | str, int] = {}
        self.histories: dict[int | str, _Columns] = {}

    def run(self) -> Replayed:
        replayed = Replayed(self.fill.fill)
        if not self.ticks:
            return replayed
        self._begin(replayed)
        members, erased = self._members(), erased_rows(self.folder, self.spec.view)
        for tick in self.ticks:
            rows = members.get(tick.number)
            expected = (tick.members or 0) - erased[tick.number]
            if (0 if rows is None else len(rows)) != expected:
                raise LedgerError(
                    f"Tick {tick.number} of view {self.spec.view!r} applied {expected} behaviors, and the behavior log "
                    f"{self.folder} has {0 if rows is None else len(rows)} of it: restore its files."
                )
            if rows is not None:
                self._tick(tick, rows, replayed)
            replayed.ticks += 1
        return replayed

    def _begin(self, replayed: Replayed) -> None:
        """The state before the first micro-batch: vectors from the embedding log, histories from the behavior log."""
        first = self.ticks[0].number
        for rows in newest_rows(self.workspace.log(self.spec), [self.fill.fill], before=first):
            for entity, vector in zip(rows.ids.tolist(), rows.vectors, strict=True):
                replayed.vectors[entity] = vector.tobytes()
                self.ends[entity] = rows.tick_end_us
        before = self._raw_before(first)
        behaviors = prepare(self.log.living(before), self.log.contract, self.log.rules, now_us()).behaviors
        ids = behaviors.entities
        self._keep(ids, Histories(behaviors).as_of(ids, self.ticks[0].end_us, self.ticks[0].kept or 1))

    def _raw_before(self, first: int) -> pa.Table:
        """Raw rows of the behavior log that no micro-batch from ``first`` on appended."""
        return raw_rows(self.folder, self.spec.view, self.log.contract, lambda ticks: pc.less(ticks, first))

    def _members(self) -> dict[int, pa.Table]:
        """Canonical rows by tick."""
        table, numbers = self.log.members_of(self.ticks)
        order = np.argsort(numbers, kind="stable")
        found, starts = np.unique(numbers[order], return_index=True)
        bounds = zip(found.tolist(), np.split(order, starts[1:]), strict=True) if len(found) else ()
        return {number: table.take(pa.array(rows)) for number, rows in bounds}

    def _tick(self, tick: Tick, rows: pa.Table, replayed: Replayed) -> None:
        behaviors = Behaviors(rows)
        ids = behaviors.entities
        batch = extend(self._stored(ids, tick.end_us), ids, behaviors, tick.kept or 1, tick.end_us)
        policy = ticks_of(self.spec.policy)
        seen = batch if policy.context == "window" else Histories(behaviors).as_of(ids, tick.end_us, tick.kept or 1)
        vectors = self._blended(ids, tick, self.encoder.encode(seen), policy, replayed)
        self._keep(ids, batch)
        for entity, vector in zip(ids.tolist(), vectors, strict=True):
            replayed.vectors[entity] = vector.tobytes()
            self.ends[entity] = tick.end_us
        replayed.rows += len(ids)

    def _blended(self, ids: Ids, tick: Tick, extracted: Float32s, policy: Incremental, replayed: Replayed) -> Float32s:
        listed = ids.tolist()
        found = np.array([each in replayed.vectors for each in listed], np.bool_)
        nothing = bytes(4 * self.spec.dim)
        old = np.frombuffer(b"".join(replayed.vectors.get(each, nothing) for each in listed), np.float32)
        elapsed: Int64s = np.array([tick.end_us - self.ends.get(each, tick.end_us) for each in listed], np.int64)
        return blend(old.reshape(-1, self.spec.dim), extracted, policy.alphas(elapsed), found)

    def _keep(self, ids: Ids, batch: HistoryBatch) -> None:
        for row, entity in enumerate(ids.tolist()):
            part = slice(batch.offsets[row], batch.offsets[row + 1])
            self.histories[entity] = (
                batch.items[part], batch.behavior_types[part], batch.times[part], batch.values[part]
            )  # fmt: skip

    def _stored(self, ids: Ids, as_of_us: int) -> HistoryBatch:
        string_items = self.log.contract.item_dtype == "string"
        blank = (
            np.empty(0, object if string_items else np.int64),
            np.empty(0, np.int32),
            np.empty(0, np.int64),
            np.empty(0, np.float32),
        )
        parts = [self.histories.get(each, blank) for each in ids.tolist()]
        lengths = [len(part[0]) for part in parts]
        items, types, times, values = (np.concatenate([part[i] for part in parts]) for i in range(4))
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return HistoryBatch(offsets, items, types, times, values, np.full(len(ids), as_of_us, np.int64))


def lines_of(replayed: list[Replayed]) -> Iterator[str]:
    """For people."""
    for each in replayed:
        same = (
            "bit-equal to what is served" if not each.diverged else f"{len(each.diverged):,} entities have OTHER bits"
        )
        yield f"{each.fill}: {each.ticks:,} micro-batches, {each.rows:,} vectors recomputed, {same}"

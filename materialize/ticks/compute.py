"""What a tick of a user view computes: the histories of its entities as it leaves them, and their blended vectors.

Of a job's tick also what it computes them from: the behaviors that the behavior table has within its bounds.
"""

from __future__ import annotations

import time
from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc

from feast_embeddings.materialize.files import BehaviorLog, counts_of, digest
from feast_embeddings.materialize.ledger import Tick
from feast_embeddings.materialize.ticks.milestones import reached
from feast_embeddings.materialize.ticks.pipeline import Pipeline
from feast_embeddings.materialize.ticks.view_work import ViewWork
from feast_embeddings.models import HistoryBatch
from feast_embeddings.transformations import Behaviors, Histories, Prepared, extend


class ByTime:
    """Reads the members of recorded ticks, and records what they are: the table is the team's, and may change."""

    def __init__(self, work: ViewWork, source: BehaviorLog) -> None:
        self.work, self.source = work, source

    def changed(self, tick: Tick) -> bool:
        """Whether a tick's behaviors are not what was recorded."""
        if tick.digest is None:
            return False
        behaviors = self.source.members(tick).behaviors
        return (tick.members, tick.digest) != (len(behaviors), digest(behaviors))

    def record(self, tick: Tick) -> Behaviors:
        """Read a tick's members, and record what they are; bad rows are kept."""
        prepared = self.source.members(tick)
        keep_members(self.work, tick, prepared)
        return prepared.behaviors


def keep_members(work: ViewWork, tick: Tick, prepared: Prepared) -> None:
    """Record what a tick's membership turned out to hold, and keep its bad rows."""
    work.workspace.quarantine().write(work.spec.view, tick.number, prepared.quarantined)
    work.ledger.set_members(tick, len(prepared.behaviors), digest(prepared.behaviors), counts_of(prepared))
    reached("members")
    work.lease.check()


class UserVectors:
    """Computes and stages vectors and histories of ticks, given their members.

    Attributes:
        seconds: How long the last tick's stages took: encode, stage.
    """

    def __init__(self, work: ViewWork, source: BehaviorLog) -> None:
        self.work, self.source = work, source
        self.ledger, self.log, self.view = work.ledger, work.log, work.spec.view
        self.seconds: dict[str, float] = {}

    def stage(self, tick: Tick, behaviors: Behaviors) -> None:
        """Compute what a tick makes of its members, and stage it."""
        began = time.perf_counter()
        ids, kept, fills = behaviors.entities, self.work.kept(tick), self.work.targets(tick)
        encoders = {fill.space: self.work.encoder(fill.space) for fill in fills}
        batch = self._histories(tick, behaviors, kept)
        seen = batch
        if self.work.policy.context == "new":
            seen = Histories(behaviors).as_of(ids, tick.end_us, kept)
        extracted = {space: self.work.encode(encoder, seen) for space, encoder in encoders.items()}
        vectors = {fill.fill: self.work.blended(tick, fill.fill, ids, extracted[fill.space]) for fill in fills}
        self.work.lease.check()
        self.work.marks.check_before(tick)
        staging = time.perf_counter()
        self.log.stage_history(tick.number, ids, batch)
        for fill, matrix in vectors.items():
            self.log.stage(fill, tick.number, ids, matrix)
        self.seconds = {"encode": staging - began, "stage": time.perf_counter() - staging}

    def _histories(self, tick: Tick, behaviors: Behaviors, length: int) -> HistoryBatch:
        """Histories as the tick leaves them: those in Redis with its behaviors, or all from the behavior log."""
        refresh = self.ledger.open_tick(self.view, "full")
        if refresh is not None and refresh.number < tick.number and self._differs(tick, refresh, length):
            return self._after(refresh, tick, behaviors, length)
        ids = behaviors.entities
        return extend(self.work.read_histories(ids, tick.end_us), ids, behaviors, length, tick.end_us)

    def _differs(self, tick: Tick, refresh: Tick, length: int) -> bool:
        """Whether histories in Redis, while a refresh is being made, may differ from those that it makes.

        The refresh may write the very members of a tick that bridges it first, keep more of each history, or take
        back what was cancelled.
        """
        contract, rules = self.source.contract, self.source.rules
        before = [each for each in self.ledger.applied_ticks(self.view) if each.number < refresh.number]
        grown = not before or length > (before[-1].kept or 0)
        return tick.bridges(refresh) or grown or (bool(contract.cancellations) and rules.cancellations)

    def _after(self, refresh: Tick, tick: Tick, behaviors: Behaviors, length: int) -> HistoryBatch:
        """Histories as a tick leaves them that comes after a refresh, all from the behavior log."""
        source, ids = self.source.before(refresh), behaviors.entities
        parts = [source.until(refresh.end_us, refresh.created_until_us, entities=ids)]
        if not tick.bridges(refresh):  # those of a bridge are the refresh's own
            table, _ = self.source.members_of(self._between(refresh, tick))
            own = pc.is_in(table["entity"], value_set=pa.array(ids, table.schema.field("entity").type))
            parts += [Behaviors(table.filter(own)), behaviors]
        return Histories(Behaviors.concat(parts)).as_of(ids, tick.end_us, length)

    def _between(self, refresh: Tick, tick: Tick) -> list[Tick]:
        """Ticks recorded after a refresh and before a tick; of a lane, also those that are about to be published."""
        found = self.ledger.ticks_after(self.view, refresh.number)
        found += self.ledger.open_micro_batches(self.view, tick.lane) if tick.streamed else []
        return [each for each in found if each.number < tick.number and not each.bridges(refresh)]


class TicksOfView(Protocol):
    """Finishes recorded ticks of one view; the caller holds the lease of the view's ticks."""

    pipeline: Pipeline

    def changed(self, tick: Tick) -> bool:
        """Whether a tick that had no effect yet lost its membership: its behaviors are not what was recorded."""

    def finish(self, tick: Tick) -> Tick:
        """Compute what is not staged yet, write it to Redis, and publish it."""

    def abandon(self, tick: Tick) -> None:
        """Void a tick that had no effect, with all that it left."""


class UserTicks:
    """Ticks of a user view, whose members are behaviors by their times."""

    def __init__(self, work: ViewWork, source: BehaviorLog) -> None:
        self.pipeline = Pipeline(work)
        self._members, self._vectors = ByTime(work, source), UserVectors(work, source)

    def changed(self, tick: Tick) -> bool:
        """As of any tick."""
        return not self.pipeline.staged(tick) and self._members.changed(tick)

    def finish(self, tick: Tick) -> Tick:
        """As of any tick."""
        return self.pipeline.finish(tick, self._stage)

    def abandon(self, tick: Tick) -> None:
        """As of any tick."""
        self.pipeline.abandon(tick)

    def _stage(self, tick: Tick) -> None:
        self._vectors.stage(tick, self._members.record(tick))

"""The steps of one recorded tick; whatever step a stopped job left it at, finishing it again ends the same way.

read state → compute → staged files (exclusive) → Redis (guarded by tick number) → log and ledger
"""

from __future__ import annotations

import pyarrow as pa

from feast_embeddings.materialize.clock import now_us
from feast_embeddings.materialize.files.behavior_log import BehaviorLog, counts_of, digest
from feast_embeddings.materialize.files.embedding_log import LogStamp
from feast_embeddings.materialize.ledger.records import Tick
from feast_embeddings.materialize.ticks.catch_up import histories_after
from feast_embeddings.materialize.ticks.milestones import reached
from feast_embeddings.materialize.ticks.view_work import ViewWork
from feast_embeddings.models import HistoryBatch
from feast_embeddings.transformations import Behaviors, Histories, Prepared, extend


class Ticks:
    """Finishes recorded incremental ticks of one view; the caller holds the view's lease."""

    def __init__(self, work: ViewWork) -> None:
        self.work = work
        self.ledger, self.log, self.view = work.ledger, work.log, work.spec.view

    @property
    def _source(self) -> BehaviorLog:
        assert self.work.source is not None, self.view  # noqa: S101 - items have no incremental ticks
        return self.work.source

    def changed(self, tick: Tick) -> bool:
        """Whether a tick that had no effect yet lost its membership: its behaviors are not what was recorded."""
        if tick.digest is None or self.staged(tick):
            return False
        behaviors = self._source.members(tick).behaviors
        return (tick.members, tick.digest) != (len(behaviors), digest(behaviors))

    def staged(self, tick: Tick) -> bool:
        """Whether a tick is computed: it reads nothing of Redis any more."""
        return self.log.has_staged(tick.number, self._targets(tick), history=True)

    def abandon(self, tick: Tick) -> None:
        """Void a tick that had no effect, with all that it left: counts, quarantined rows, staged files."""
        self.ledger.abandon(tick)
        self.work.workspace.quarantine().write(self.view, tick.number, pa.table({}))
        self.log.drop_staged(tick.number, tick.fills)

    def finish(self, tick: Tick) -> Tick:
        """Compute what is not staged yet, write it to Redis, and publish it."""
        if not self.staged(tick):
            self._stage(tick)
            tick = self.ledger.update_tick(tick, encoded=self.work.encoded)
        reached("staged")
        if tick.window_start_us is None:
            tick = self.ledger.update_tick(tick, window_start_us=now_us())
        reached("window")
        rows = self._write(tick)
        reached("written")
        return self._publish(tick, rows)

    def _targets(self, tick: Tick) -> list[str]:
        """The fills a tick writes, without those that a cutover of another view has retired since."""
        return [name for name in tick.fills if self.ledger.fill(name).state not in ("retired", "removed")]

    # ── compute ──────────────────────────────────────────────────────────────────────────────────────────

    def _stage(self, tick: Tick) -> None:
        self.work.encoded = 0
        self.work.lease.check()
        prepared = self._source.members(tick)
        record_members(self.work, tick, prepared)
        self.work.lease.check()
        behaviors = prepared.behaviors
        ids, context, policy = behaviors.entities, self.work.kept(tick), self.work.policy
        fills = [self.ledger.fill(name) for name in self._targets(tick)]
        encoders = {fill.space: self.work.encoder(fill) for fill in fills}
        batch = self._histories(tick, behaviors, context)
        seen = batch if policy.context == "window" else Histories(behaviors).as_of(ids, tick.end_us, context)
        extracted = {space: self.work.encode(encoder, seen) for space, encoder in encoders.items()}
        self.log.stage_history(tick.number, ids, batch)
        for fill in fills:
            vectors = self.work.blended(tick, fill.fill, ids, extracted[fill.space])
            self.log.stage(fill.fill, tick.number, ids, vectors)

    def _histories(self, tick: Tick, behaviors: Behaviors, length: int) -> HistoryBatch:
        """Histories as the tick leaves them: those in Redis with its behaviors, or all from the behavior log."""
        refresh = self.ledger.open_tick(self.view, "full")
        if refresh is not None and refresh.number < tick.number and self._differs(tick, refresh, length):
            return histories_after(self.ledger, self._source, refresh, tick, behaviors, length)
        ids = behaviors.entities
        previous = self.work.read_histories(ids, tick.end_us)
        return extend(previous, ids, behaviors, length, tick.end_us)

    def _differs(self, tick: Tick, refresh: Tick, length: int) -> bool:
        """Whether histories in Redis, while a refresh is being made, may differ from those that it makes.

        The refresh may write the very members of a tick that bridges it first, keep more of each history, or take
        back what was cancelled.
        """
        contract, rules = self._source.contract, self._source.rules
        before = [each for each in self.ledger.applied_ticks(self.view) if each.number < refresh.number]
        grown = not before or length > (before[-1].kept or 0)
        return tick.bridges(refresh) or grown or (bool(contract.cancellations) and rules.cancellations)

    # ── write and publish ────────────────────────────────────────────────────────────────────────────────

    def _write(self, tick: Tick) -> int:
        rows = 0
        self.work.lease.check()
        for fill in self._targets(tick):
            staged = self.log.staged(fill, tick.number)
            assert staged is not None, fill  # noqa: S101 - finish() staged it
            self.work.write_vectors(tick, fill, *staged)
            rows = max(rows, len(staged[0]))
        history = self.log.staged_history(tick.number)
        if history is not None:
            self.work.write_histories(tick, *history)
        return rows

    def _publish(self, tick: Tick, rows: int) -> Tick:
        self.work.lease.check()
        # Within a fill the log's times strictly grow, also where a simulated clock stands still.
        event_us = max(now_us(), self.ledger.last_published_us(self.view) + 1)
        for name in self._targets(tick):
            fill = self.ledger.fill(name)
            stamp = LogStamp(name, fill.space, tick.number, tick.end_us, tick.window_start_us or event_us, event_us)
            self.log.publish(stamp, live=fill.state == "live")
        reached("logged")
        tick = self.ledger.update_tick(tick, state="published", published_us=event_us, rows=rows)
        self.log.drop_staged(tick.number, tick.fills)
        reached("published")
        return tick


def record_members(work: ViewWork, tick: Tick, prepared: Prepared) -> None:
    """Record what a tick's membership turned out to hold, and keep its bad rows."""
    work.workspace.quarantine().write(work.spec.view, tick.number, prepared.quarantined)
    work.ledger.set_members(tick, len(prepared.behaviors), digest(prepared.behaviors), counts_of(prepared))
    reached("members")

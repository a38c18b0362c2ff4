"""The one way of every tick, of jobs and streams, of users and items, and of refreshes.

recorded → members → staged (exclusive) → window → Redis (guarded by tick number) → log → published

Who records a tick and finds its members differs; from the staged files on everything is here. Whatever step a stopped
job left a tick at, going on from there ends in the same bits.
"""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa

from feast_embeddings.materialize.clock import now_us
from feast_embeddings.materialize.files import LogStamp
from feast_embeddings.materialize.ledger import MembersFound, Tick
from feast_embeddings.materialize.ticks.milestones import reached
from feast_embeddings.materialize.ticks.view_work import ViewWork

Stage = Callable[[Tick], None]
"""Finds a tick's members, computes its vectors and histories, and stages them."""


class Pipeline:
    """Takes recorded ticks of one view through their steps; the caller holds a lease on them."""

    def __init__(self, work: ViewWork) -> None:
        self.work = work
        self.ledger, self.log, self.view = work.ledger, work.log, work.spec.view

    def staged(self, tick: Tick) -> bool:
        """Whether a tick is computed: it reads nothing of Redis any more."""
        fills = [fill.fill for fill in self.work.targets(tick)]
        return self.log.has_staged(tick.number, fills, history=self.work.source is not None)

    def finish(self, tick: Tick, stage: Stage) -> Tick:
        """Compute what is not staged yet, write it to Redis, and publish it."""
        tick, rows = self.write(self.compute(tick, stage))
        return self.publish(tick, rows)

    def compute(self, tick: Tick, stage: Stage) -> Tick:
        """Everything up to the staged files; nothing that reads return has changed yet."""
        self.work.encoded = 0
        if not self.staged(tick):
            self.work.lease.check()
            stage(tick)
        reached("staged")
        return tick

    def write(self, tick: Tick) -> tuple[Tick, int]:
        """Open the window, and write what is staged to Redis, where it is served; the tick, and its rows of a fill."""
        if tick.window_start_us is None:
            encoded = {"encoded": self.work.encoded} if self.work.encoded else {}
            tick = self.ledger.update_tick(tick, window_start_us=now_us(), **encoded)
        reached("window")
        self.work.lease.check()
        if tick.kind == "full":
            self.work.marks.begin(tick)
        rows = max((self._write_fill(tick, fill.fill) for fill in self.work.targets(tick)), default=0)
        for ids, batch in self.log.staged_history_parts(tick.number):
            if len(ids):
                self.work.write_histories(tick, ids, batch)
        self.work.lease.check()
        self.work.marks.set(tick)
        reached("written")
        return tick, rows

    def _write_fill(self, tick: Tick, fill: str) -> int:
        rows = 0
        for ids, vectors in self.log.staged_parts(fill, tick.number):
            if len(ids):
                self.work.write_vectors(tick, fill, ids, vectors)
            rows += len(ids)
        return rows

    def publish(self, tick: Tick, rows: int, found: MembersFound | None = None) -> Tick:
        """The log, and one commit of the ledger, with what the tick held where that stands nowhere yet."""
        self.work.lease.check()
        while True:
            # Published times grow within a view, also where a clock stands still or another host's is ahead.
            published_us = max(now_us(), self.ledger.last_published_us(self.view) + 1, tick.window_start_us or 0)
            fills = self.work.targets(tick)
            for fill in fills if rows else ():
                written_us = tick.window_start_us or published_us
                stamp = LogStamp(fill.fill, fill.space, tick.number, tick.end_us, written_us, published_us)
                self.log.publish(stamp, live=fill.state == "live")
            reached("logged")
            if self.ledger.publish(tick, published_us, rows, fills, found):
                break
        self.log.drop_staged(tick.number, tick.fills)
        reached("published")
        return self.ledger.tick(self.view, tick.number)

    def abandon(self, tick: Tick) -> None:
        """Void a tick that had no effect, with all that it left: counts, quarantined rows, staged files."""
        self.ledger.abandon(tick)
        self.work.workspace.quarantine().write(self.view, tick.number, pa.table({}))
        self.log.drop_staged(tick.number, tick.fills)

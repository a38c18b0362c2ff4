"""A job's incremental ticks of a user view: finished, at whatever step a stopped job left them, or voided."""

from __future__ import annotations

from typing import Protocol

from feast_embeddings.materialize.files.behavior_log import BehaviorLog
from feast_embeddings.materialize.ledger.records import Tick
from feast_embeddings.materialize.ticks.compute import UserVectors
from feast_embeddings.materialize.ticks.membership import ByTime
from feast_embeddings.materialize.ticks.pipeline import Pipeline
from feast_embeddings.materialize.ticks.view_work import ViewWork


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

"""Membership by time: the behaviors of a job's tick or refresh, as the behavior table has them within its bounds."""

from __future__ import annotations

from feast_embeddings.materialize.files import BehaviorLog, counts_of, digest
from feast_embeddings.materialize.ledger import Tick
from feast_embeddings.materialize.ticks.milestones import reached
from feast_embeddings.materialize.ticks.view_work import ViewWork
from feast_embeddings.transformations import Behaviors, Prepared


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

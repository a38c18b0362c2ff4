"""Catching up: applies to a fill that is being made the ticks that were recorded after its refresh.

In the order of their numbers, with the same members, the same policy and the same files on disk as ticks have: the
fill ends as if the refresh had been done first and those ticks afterwards, whatever stops the work in between.
"""

from __future__ import annotations

import numpy as np

from feast_embeddings.materialize.files.behavior_log import BehaviorLog
from feast_embeddings.materialize.ledger.database import Ledger
from feast_embeddings.materialize.ledger.records import Tick
from feast_embeddings.materialize.ticks.milestones import reached
from feast_embeddings.materialize.ticks.view_work import ViewWork
from feast_embeddings.models import HistoryBatch
from feast_embeddings.models.encoder.batch import Ids
from feast_embeddings.transformations import Behaviors, Histories


class CatchUp:
    """Brings the fill of one refresh up to the view's last published tick.

    Args:
        work: The refresh's means.
        refresh: The refresh; its own rows are in Redis.
    """

    def __init__(self, work: ViewWork, refresh: Tick) -> None:
        self.work, self.refresh = work, refresh
        self.fill = work.ledger.fill(refresh.fills[0])
        self._done: set[int] = set()

    def apply(self) -> int:
        """Apply the ticks that were published meanwhile; returns how many.

        A tick may be published while the earlier ones are applied: call it again until it returns 0. Only under the
        lease of the ticks does that last.
        """
        found = [tick for tick in _later(self.work.ledger, self.refresh) if tick.number not in self._done]
        for tick in found:
            if not tick.bridges(self.refresh):
                self._apply(tick)
            self._done.add(tick.number)
        return len(found)

    def _apply(self, tick: Tick) -> None:
        log, fill = self.work.log, self.fill.fill
        self.work.lease.check()
        if log.caught_up(fill, tick.number) is None:
            ids, vectors = self._computed(tick)
            self.work.lease.check()
            log.stage_caught_up(fill, tick.number, ids, vectors)
        reached("caught-up-staged")
        staged = log.caught_up(fill, tick.number)
        assert staged is not None, tick  # noqa: S101 - staged above
        self.work.write_vectors(tick, fill, *staged)
        reached("caught-up")

    def _computed(self, tick: Tick) -> tuple[Ids, np.ndarray]:
        """Entities [n] of a tick, and their blended vectors, float32 [n, dim]."""
        work, source = self.work, self.work.source
        assert source is not None, tick  # noqa: S101 - items have no ticks
        behaviors = source.members(tick).behaviors
        ids, length = behaviors.entities, work.kept(self.refresh)
        if work.policy.context == "window":
            batch = histories_after(work.ledger, source, self.refresh, tick, behaviors, length)
        else:
            batch = Histories(behaviors).as_of(ids, tick.end_us, length)
        extracted = work.encode(work.encoder(self.fill), batch)
        return ids, work.blended(tick, self.fill.fill, ids, extracted)


def histories_after(
    ledger: Ledger, source: BehaviorLog, refresh: Tick, tick: Tick, behaviors: Behaviors, length: int
) -> HistoryBatch:
    """Histories as a tick leaves them that comes after a refresh, all from the behavior log.

    Args:
        ledger: Names the ticks in between.
        source: The behaviors.
        refresh: Where the histories start anew.
        tick: The tick.
        behaviors: Its members.
        length: Longest history to keep.

    Returns:
        One history for each of the tick's entities, as of its end.
    """
    ids = behaviors.entities
    parts = [source.until(refresh.end_us, refresh.created_until_us, entities=ids)]
    if not tick.bridges(refresh):  # those of a bridge are the refresh's own
        between = [each for each in _later(ledger, refresh) if each.number < tick.number]
        parts += [_of(source.members(each).behaviors, ids) for each in between if not each.bridges(refresh)]
        parts.append(behaviors)
    return Histories(Behaviors.concat(parts)).as_of(ids, tick.end_us, length)


def _later(ledger: Ledger, refresh: Tick) -> list[Tick]:
    """Published incremental ticks that were recorded after a refresh, in order."""
    found = ledger.published_ticks(refresh.view, after=refresh.number)
    return [tick for tick in found if tick.kind == "incremental"]


def _of(behaviors: Behaviors, ids: Ids) -> Behaviors:
    """The behaviors of some entities (ascending)."""
    wanted = np.isin(behaviors.entities, ids)
    return behaviors.select(np.repeat(wanted, np.diff(behaviors.offsets)))

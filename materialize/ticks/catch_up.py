"""Catching up: applies to a fill that is being made the ticks that were recorded after its refresh, a stream's too.

With the same members, the same policy and in the order of their numbers: the fill ends as if the refresh had been done
first and those ticks afterwards, whatever stops the work in between. Many ticks are encoded at once, and staged in one
file, which is created exclusively and names them: whoever finds it applies it and computes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import pyarrow as pa

from feast_embeddings.materialize.declare import as_stored, blend
from feast_embeddings.materialize.files import BehaviorLog, CaughtUp, StagedHistories
from feast_embeddings.materialize.ledger import Tick
from feast_embeddings.materialize.ticks.milestones import reached
from feast_embeddings.materialize.ticks.view_work import ViewWork
from feast_embeddings.models import HistoryBatch
from feast_embeddings.models.types import Float32s, Int64s
from feast_embeddings.transformations import Behaviors
from feast_embeddings.transformations.behaviors import content_keys, lex_order
from feast_embeddings.transformations.histories import Arrivals, merged

MOST_TICKS: Final = 128
"""Ticks that are applied at once, at most."""


class CatchUp:
    """Brings the fill of one refresh up to the view's last published tick.

    Args:
        work: The refresh's means.
        source: The view's behaviors.
        refresh: The refresh; its own rows are in Redis.
    """

    def __init__(self, work: ViewWork, source: BehaviorLog, refresh: Tick) -> None:
        self.work, self.source, self.refresh = work, source, refresh
        self.fill = work.ledger.fill(refresh.fills[0])
        self._ticks: dict[int, Tick] = {}  # what was applied, and what is being applied
        self._members = _Members.none(source)

    def apply(self) -> int:
        """Apply the ticks that were published meanwhile; returns how many.

        A tick may be published while the earlier ones are applied: call it again until it returns 0. Only while no
        tick is at work does that last.
        """
        if not self._ticks:
            self._take_up()
        found = self.work.ledger.ticks_after(self.work.spec.view, self.refresh.number)
        waiting = [tick for tick in found if tick.number not in self._ticks]
        for start in range(0, len(waiting), MOST_TICKS):
            self._apply(waiting[start : start + MOST_TICKS])
        return len(waiting)

    def _take_up(self) -> None:
        """Apply again what a stopped refresh had staged."""
        staged = list(self.work.log.caught_up(self.fill.fill))
        if staged:
            numbers = {number for rows in staged for number in rows.ticks}
            found = self.work.ledger.ticks_after(self.work.spec.view, self.refresh.number)
            self._learn([tick for tick in found if tick.number in numbers or tick.bridges(self.refresh)])
            for rows in staged:
                self._write(rows)

    def _learn(self, ticks: Sequence[Tick]) -> None:
        self._ticks |= {tick.number: tick for tick in ticks}
        own = [tick for tick in ticks if not tick.bridges(self.refresh)]  # those of a bridge are the refresh's own
        self._members = self._members.joined(_Members.of(self.source, own))

    def _apply(self, ticks: Sequence[Tick]) -> None:
        self.work.lease.check()
        self._learn(ticks)
        own = [tick for tick in ticks if not tick.bridges(self.refresh)]
        if not own:
            return
        staged = self.work.log.stage_caught_up(self.fill.fill, self._computed(own))
        reached("caught-up-staged")
        self._write(staged)
        reached("caught-up")

    def _write(self, rows: CaughtUp) -> None:
        for number in np.unique(rows.tick).tolist():
            own = np.flatnonzero(rows.tick == number)
            self.work.write_vectors(self._ticks[number], self.fill.fill, rows.ids[own], rows.vectors[own])

    # ── compute ──────────────────────────────────────────────────────────────────────────────────────────

    @cached_property
    def _stored_histories(self) -> StagedHistories:
        return self.work.log.staged_histories(self.refresh.number)

    def _computed(self, ticks: Sequence[Tick]) -> CaughtUp:
        """What ticks make of the fill: each of their entities, as the last of them leaves it."""
        policy, numbers = self.work.policy, [tick.number for tick in ticks]
        pairs = self._members.pairs(numbers)
        last = np.append(pairs.entity[1:] != pairs.entity[:-1], np.ones(min(len(pairs.entity), 1), np.bool_))
        blends = policy.half_life is not None or bool(policy.alpha)
        if not blends:  # what the ticks before an entity's last one made of it is overwritten
            pairs, last = pairs.take(np.flatnonzero(last)), np.ones(int(last.sum()), np.bool_)
        ends_us = np.array([self._ticks[number].end_us for number in pairs.tick.tolist()], np.int64)
        batch = self._histories(pairs, ends_us, window=policy.context == "window")
        vectors = self.work.encode(self.work.encoder(self.fill.space), batch)
        ids = self._members.behaviors.entities[pairs.entity]
        if blends:
            vectors = self._blended(pairs, ends_us, vectors)
        at = np.flatnonzero(last)
        return CaughtUp(ids[at], vectors[at], pairs.tick[at], tuple(numbers))

    def _histories(self, pairs: _Pairs, ends_us: Int64s, *, window: bool) -> HistoryBatch:
        """The history of each pair as its tick leaves it, or of the tick's own behaviors alone."""
        members = self._members
        ids, length = members.behaviors.entities[pairs.entity], self.work.kept(self.refresh)
        before = (
            self._stored_histories.of(ids)
            if window
            else HistoryBatch.empty(members.behaviors.items, np.zeros(len(ids), np.int64))
        )
        start = members.behaviors.offsets[:-1][pairs.entity] if window else pairs.start
        counts = pairs.end - start
        owner = np.repeat(np.arange(len(ids)), counts)
        rows = np.repeat(start - np.concatenate([[0], np.cumsum(counts)[:-1]]), counts) + np.arange(counts.sum())
        rows = members.by_tick[rows]
        found = members.behaviors
        columns = (found.items[rows], found.behavior_types[rows], found.times_us[rows], found.values[rows])
        return merged(before, Arrivals(owner, *columns), length, ends_us)

    def _blended(self, pairs: _Pairs, ends_us: Int64s, extracted: Float32s) -> Float32s:
        """The vectors [n] of pairs, each blended with what the tick before had made of its entity."""
        first = np.flatnonzero(np.append(True, pairs.entity[1:] != pairs.entity[:-1]))
        place = np.arange(len(pairs.entity)) - np.repeat(first, np.diff([*first.tolist(), len(pairs.entity)]))
        owner = np.cumsum(place == 0) - 1
        old = self.work.stored(self.fill.fill, self._members.behaviors.entities[pairs.entity[first]])
        vectors, found, old_end_us = old.vectors.copy(), old.found.copy(), old.tick_end_us.copy()
        made = np.empty_like(extracted)
        for turn in range(int(place.max(initial=-1)) + 1):
            rows = np.flatnonzero(place == turn)
            of = owner[rows]
            alphas = self.work.policy.alphas(np.where(found[of], ends_us[rows] - old_end_us[of], 0))
            blended = blend(vectors[of], extracted[rows], alphas, found[of])
            made[rows] = vectors[of] = as_stored(blended, self.work.spec.storage)
            found[of], old_end_us[of] = True, ends_us[rows]
        return made


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Entities and ticks that have behaviors of theirs, by entity and then by tick; [n] each.

    Attributes:
        entity: int64, which of the entities.
        tick: int64, number of the tick.
        start, end: int64, the tick's behaviors of the entity, in the order of ``_Members.by_tick``.
    """

    entity: Int64s
    tick: Int64s
    start: Int64s
    end: Int64s

    def take(self, rows: Int64s) -> _Pairs:
        return _Pairs(self.entity[rows], self.tick[rows], self.start[rows], self.end[rows])


class _Members:
    """Behaviors of the ticks after a refresh, each with the number of its tick.

    Attributes:
        behaviors: All of them, N.
        by_tick: int64 [N], their order by entity and then by tick.
    """

    def __init__(self, table: pa.Table, numbers: Int64s) -> None:
        order = lex_order(*content_keys(table))
        self.behaviors, self._numbers = Behaviors.from_sorted(table.take(pa.array(order))), numbers[order]
        owner = np.repeat(np.arange(len(self.behaviors.entities)), np.diff(self.behaviors.offsets))
        self.by_tick = np.lexsort([self._numbers, owner])
        self._owner, self._sorted = owner[self.by_tick], self._numbers[self.by_tick]

    @classmethod
    def none(cls, source: BehaviorLog) -> _Members:
        return cls(Behaviors.empty(source.contract).table, np.empty(0, np.int64))

    @classmethod
    def of(cls, source: BehaviorLog, ticks: Sequence[Tick]) -> _Members:
        return cls(*source.members_of(ticks)) if ticks else cls.none(source)

    def joined(self, other: _Members) -> _Members:
        table = pa.concat_tables([self.behaviors.table, other.behaviors.table]).combine_chunks()
        return _Members(table, np.concatenate([self._numbers, other._numbers]))

    def pairs(self, numbers: Sequence[int]) -> _Pairs:
        """The pairs of these ticks."""
        new = np.append(True, (self._owner[1:] != self._owner[:-1]) | (self._sorted[1:] != self._sorted[:-1]))
        start = np.flatnonzero(new[: len(self._owner)]).astype(np.int64)
        end = np.append(start[1:], len(self._owner)).astype(np.int64)[: len(start)]
        pairs = _Pairs(self._owner[start].astype(np.int64), self._sorted[start], start, end)
        return pairs.take(np.flatnonzero(np.isin(pairs.tick, numbers)))

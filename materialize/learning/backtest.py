"""Replays policies on real behaviors in memory: which vectors would have stood when, and what they would have cost.

Nothing is written. What is shared with the engine is what decides the vectors: :func:`~.declare.due`,
:meth:`~.declare.Incremental.alphas`, :func:`~.declare.blend`, the encoder; arrays stand in for Redis. A vector is there
from the end of its tick on, and behaviors come in time: jobs that take long, and late behaviors, are not replayed.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from feast_embeddings.materialize.declare import Due, Full, Incremental, blend
from feast_embeddings.materialize.learning.candidates import (
    Candidate,
    Questions,
    Replayed,
    Spent,
    incremental_of,
    scheduled,
)
from feast_embeddings.models import Encoder, HistoryBatch, SequenceEncoder
from feast_embeddings.models.errors import DeclarationError
from feast_embeddings.models.evaluation import cut
from feast_embeddings.models.sequence import CachedState, empty_state
from feast_embeddings.models.types import Bools, Float32s, Int64s
from feast_embeddings.transformations.behaviors import bisect_segments

_BEHAVIOR_BYTES = 24
"""Of one behavior of a stored history: item and time 8 each, type and value 4 each."""

_TICK_BYTES = 8

_TIMED = 2048
"""Histories of a unit that are timed, at most."""


@dataclass(slots=True)
class _Arm:
    """A candidate's arrays: over all E entities what a tick decides by, over the A asked ones their vectors."""

    candidate: Candidate
    runs: deque[tuple[int, Due]]
    covered: Int64s
    updated_us: Int64s
    found: Bools
    vectors: Float32s
    cache: CachedState | None
    answers: Float32s
    answered: Bools
    behind: Int64s
    timed_every: int = 1
    measured_s: float = 0.0
    measured: int = 0
    spent: Spent = field(default_factory=Spent)


class Backtest:
    """Replays candidates from ``start_us`` to ``end_us`` over whole histories.

    Args:
        histories: One per entity, whole, [E]; behaviors from ``end_us`` on play no part.
        encoder: Frozen.
        questions: When which vector is read; times in [start, end).
        start_us: As of when every candidate begins with a full refresh, at no cost.
        end_us: Up to when jobs run, each as soon as it is due.
    """

    def __init__(
        self, histories: HistoryBatch, encoder: Encoder, questions: Questions, start_us: int, end_us: int
    ) -> None:
        self.histories, self.encoder = histories, encoder
        self.start_us, self.end_us = start_us, end_us
        self._asked, self._place = np.unique(questions.entities, return_inverse=True)
        self._questions = questions
        self._order = np.argsort(questions.asked_us, kind="stable")
        self._asked_us = questions.asked_us[self._order]
        self._by_time = np.argsort(histories.times, kind="stable")
        self._sorted_times = histories.times[self._by_time]
        self._owner = np.repeat(np.arange(len(histories)), histories.lengths)
        self._place_of = np.full(len(histories), -1)
        self._place_of[self._asked] = np.arange(len(self._asked))
        self._first = histories.offsets[:-1]
        self._rows_now = self._first.copy()
        self._now_us = int(np.iinfo(np.int64).min)
        self._active: dict[tuple[Any, ...], Int64s] = {}
        self._memo: dict[tuple[Any, ...], Float32s] = {}

    def run(self, candidates: Sequence[Candidate]) -> list[Replayed]:
        """Every candidate, side by side: what two of them encode alike is encoded once, and counted for both.

        Raises:
            DeclarationError: A cached candidate of an encoder that keeps no state.
        """
        self._rows_now, self._now_us = self._first.copy(), int(np.iinfo(np.int64).min)
        self._advance(self.start_us)
        arms = [self._arm(candidate) for candidate in candidates]
        times = sorted({self.start_us, *(at for arm in arms for at, _ in arm.runs)})
        for at, until in zip(times, [*times[1:], np.iinfo(np.int64).max], strict=True):
            self._memo.clear()
            self._advance(at)
            for arm in arms:
                while arm.runs and arm.runs[0][0] == at:
                    _, unit = arm.runs.popleft()
                    self._apply(arm, unit, at)
            self._answer(arms, at, until)
        return [self._replayed(arm) for arm in arms]

    def _arm(self, candidate: Candidate) -> _Arm:
        size, asked, dim = len(self.histories), len(self._asked), self.encoder.dim
        cache = None
        if candidate.cached:
            if not isinstance(self.encoder, SequenceEncoder):
                raise DeclarationError(f"Candidate {candidate.name!r}: {type(self.encoder).__name__} keeps no state.")
            cache = empty_state(self.encoder, self._batch(np.zeros(asked, np.int64), np.zeros(asked, np.int64), 0))
        arm = _Arm(
            candidate,
            deque(scheduled(candidate.policy, self.start_us, self.end_us)),
            self._first.copy(),
            np.zeros(size, np.int64),
            np.zeros(size, np.bool_),
            np.zeros((asked, dim), np.float32),
            cache,
            np.zeros((len(self._order), dim), np.float32),
            np.zeros(len(self._order), np.bool_),
            np.zeros(len(self._order), np.int64),
        )
        self._apply(arm, Due("full", None, self.start_us), self.start_us)
        arm.spent, arm.measured_s, arm.measured = Spent(), 0.0, 0
        arm.timed_every = max(1, len(arm.runs) // 10)
        return arm

    # ── units ────────────────────────────────────────────────────────────────────────────────────────────

    def _apply(self, arm: _Arm, unit: Due, at_us: int) -> None:
        entities = self._members(unit)
        stop = self._rows_before(entities, unit.end_us)
        first, covered = self._first[entities], arm.covered[entities]
        if unit.kind == "incremental":
            waiting = stop - covered >= arm.candidate.min_new
            entities, stop, first, covered = entities[waiting], stop[waiting], first[waiting], covered[waiting]
        policy = incremental_of(arm.candidate.policy)
        whole = unit.kind == "full" or policy.context == "window"
        start = np.maximum(first if whole else covered, stop - self.encoder.context)
        if arm.cache is not None and unit.start_us is not None:
            start, needed = np.maximum(covered, start), self._place_of[entities] >= 0
            vectors = self._extended(arm, entities[needed], start[needed], stop[needed], unit.end_us)
            work = np.minimum(stop - start + (start > first), self.encoder.context)  # the last one is computed again
        else:
            needed = self._needed(arm, entities, at_us)
            first_us = unit.start_us if unit.kind == "incremental" else None
            alone = isinstance(arm.candidate.policy, Full) or arm.candidate.min_new > 1  # with a choice of its own
            key = (arm.candidate.name if alone else None, whole, first_us, unit.end_us)
            vectors = self._encoded(key, start[needed], stop[needed])
            work = stop - start
            if arm.cache is not None:
                self._extended(arm, entities[needed], start[needed], stop[needed], unit.end_us)
        self._keep(arm, unit, entities[needed], vectors, policy)
        self._time(arm, start, stop, work, unit.end_us)
        arm.covered[entities] = stop
        arm.updated_us[entities] = unit.end_us
        arm.found[entities] = True
        arm.spent.units += 1
        arm.spent.histories += len(entities)
        arm.spent.behaviors += int(work.sum())

    def _time(self, arm: _Arm, start: Int64s, stop: Int64s, work: Int64s, end_us: int) -> None:
        """In about ten of an arm's units, how long the unit's own batch takes: whoever is asked about, or not."""
        if len(arm.runs) % arm.timed_every or not len(start):
            return
        start, stop, work = start[:_TIMED], stop[:_TIMED], work[:_TIMED]
        batch = self._batch(start, stop, end_us)
        began = time.perf_counter()
        if arm.cache is not None and isinstance(self.encoder, SequenceEncoder):
            self.encoder.extend_state(empty_state(self.encoder, batch), batch)
        else:
            self.encoder.encode(batch)
        arm.measured_s += time.perf_counter() - began
        arm.measured += int(work.sum())

    def _needed(self, arm: _Arm, entities: Int64s, at_us: int) -> Bools:
        """Of which entities a vector can matter: the asked ones; between two refreshes alone, those asked meanwhile."""
        if not isinstance(arm.candidate.policy, Full):
            return self._place_of[entities] >= 0
        until_us = arm.runs[0][0] if arm.runs else np.iinfo(np.int64).max
        low, high = np.searchsorted(self._asked_us, [at_us, until_us])
        needed = np.zeros(len(self.histories), np.bool_)
        needed[self._questions.entities[self._order[low:high]]] = True
        return np.asarray(needed[entities], np.bool_)

    def _keep(self, arm: _Arm, unit: Due, entities: Int64s, vectors: Float32s, policy: Incremental) -> None:
        place = self._place_of[entities]
        if unit.kind == "incremental":
            found = arm.found[entities]
            alphas = policy.alphas(np.where(found, unit.end_us - arm.updated_us[entities], 0))
            vectors = blend(arm.vectors[place], vectors, alphas, found)
        arm.vectors[place] = vectors

    def _advance(self, at_us: int) -> None:
        """Let the behaviors before ``at_us`` have happened."""
        low, high = np.searchsorted(self._sorted_times, [self._now_us, at_us])
        np.add.at(self._rows_now, self._owner[self._by_time[low:high]], 1)
        self._now_us = at_us

    def _members(self, unit: Due) -> Int64s:
        """Who has behaviors in the unit, ascending; for a refresh, who has any before its end."""
        if unit.kind == "full":
            return np.flatnonzero(self._rows_before(np.arange(len(self.histories)), unit.end_us) > self._first)
        key = ("members", unit.start_us, unit.end_us)
        if key not in self._active:
            low, high = np.searchsorted(self._sorted_times, [unit.start_us or 0, unit.end_us])
            self._active = {key: np.unique(self._owner[self._by_time[low:high]])}
        return self._active[key]

    def _rows_before(self, entities: Int64s, end_us: int | Int64s) -> Int64s:
        """One past each entity's last row with an earlier event time: int64 [n]."""
        if isinstance(end_us, int) and end_us == self._now_us:
            return self._rows_now[entities]
        times = np.array(np.broadcast_to(np.asarray(end_us, np.int64), (len(entities),)))
        return bisect_segments(self.histories.times, self._first[entities], self.histories.offsets[entities + 1], times)

    def _batch(self, start: Int64s, stop: Int64s, as_of_us: int) -> HistoryBatch:
        return cut(self.histories, start, stop, np.full(len(start), as_of_us, np.int64))

    def _encoded(self, key: tuple[Any, ...], start: Int64s, stop: Int64s) -> Float32s:
        """Vectors of the behaviors ``start … stop - 1`` of some entities, as of the key's last part."""
        if key not in self._memo:
            self._memo[key] = self.encoder.encode(self._batch(start, stop, key[-1]))
        return self._memo[key]

    def _extended(self, arm: _Arm, entities: Int64s, start: Int64s, stop: Int64s, end_us: int) -> Float32s:
        """Vectors of asked entities after the behaviors ``start … stop - 1``, by what the cache holds."""
        assert arm.cache is not None  # noqa: S101 - the caller looked
        assert isinstance(self.encoder, SequenceEncoder)  # noqa: S101 - `_arm` refused others
        cache, at, covered = arm.cache, self._place_of[entities], arm.covered[entities]
        last = self._batch(np.where(arm.found[entities], covered - 1, covered), covered, end_us)
        state = CachedState(cache.space, cache.numeric_path, cache.keys[at], cache.values[at], cache.kept[at], last)
        vectors, after = self.encoder.extend_state(state, self._batch(np.maximum(start, covered), stop, end_us))
        cache.keys[at], cache.values[at], cache.kept[at] = after.keys, after.values, after.kept
        return vectors

    # ── answers ──────────────────────────────────────────────────────────────────────────────────────────

    def _answer(self, arms: Sequence[_Arm], from_us: int, until_us: int) -> None:
        low, high = np.searchsorted(self._asked_us, [from_us, until_us])
        rows = self._order[low:high]
        entities = self._questions.entities[rows]
        now = self._rows_before(entities, self._questions.asked_us[rows])
        for arm in arms:
            arm.answers[rows] = arm.vectors[self._place[rows]]
            arm.answered[rows] = arm.found[entities]
            arm.behind[rows] = now - arm.covered[entities]

    def _replayed(self, arm: _Arm) -> Replayed:
        lengths = np.minimum(arm.covered - self._first, self.encoder.context)[arm.found]
        policy = incremental_of(arm.candidate.policy)
        size = 4.0 * self.encoder.dim
        if not isinstance(arm.candidate.policy, Full):
            if policy.alpha or policy.half_life is not None:
                size += _TICK_BYTES
            if arm.cache is not None:
                size += arm.cache.bytes_per_user + _BEHAVIOR_BYTES
            elif policy.context == "window":
                size += _BEHAVIOR_BYTES * float(lengths.mean()) if len(lengths) else 0.0
        arm.spent.seconds = arm.measured_s * arm.spent.behaviors / max(arm.measured, 1)
        return Replayed(arm.candidate, arm.answers, arm.answered, arm.behind, arm.spent, size)

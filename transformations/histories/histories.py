"""Point-in-time histories: the last behaviors of any entity before any time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from feast_embeddings.models.encoder import HistoryBatch, segments
from feast_embeddings.models.errors import BehaviorSourceError
from feast_embeddings.models.types import Bools, Float32s, Float64s, Ids, Int32s, Int64s
from feast_embeddings.transformations.behaviors import Behaviors, bisect_segments, concat_ids, lex_order, ranks


@dataclass(frozen=True, slots=True)
class Arrivals:
    """N behaviors in any order, each with the row of the histories that it belongs to.

    Attributes:
        owner: int64 [N].
        items: Raw item ids [N].
        behavior_types: int32 [N].
        times: int64 [N], microseconds since the epoch, UTC.
        values: [N], NaN where there is none; float32 to be merged.
    """

    owner: Int64s
    items: Ids
    behavior_types: Int32s
    times: Int64s
    values: Float32s | Float64s

    def __len__(self) -> int:
        """Number of behaviors, N."""
        return len(self.owner)

    def where(self, mask: Bools) -> Arrivals:
        """Those where ``mask`` (bool [N]) is true."""
        return Arrivals(
            self.owner[mask], self.items[mask], self.behavior_types[mask], self.times[mask], self.values[mask]
        )


class Histories:
    """Histories of the entities of ``behaviors``, as of any time.

    Args:
        behaviors: Everything that a history may hold.
    """

    def __init__(self, behaviors: Behaviors) -> None:
        self.behaviors = behaviors

    def as_of(self, entities: Ids, as_of_us: int | Int64s, length: int) -> HistoryBatch:
        """The last ``length`` behaviors of each entity with event time strictly before its time.

        Args:
            entities: Ids [B], in any order; repeated ids are answered each, unknown ids with an empty
                history.
            as_of_us: One time for all, or int64 [B], in microseconds since the epoch, UTC.
            length: Longest history to return, >= 1.

        Returns:
            B histories, oldest behavior first.

        Raises:
            BehaviorSourceError: ``length`` is below 1, or ids and times do not pair up.
        """
        times = _paired_times(entities, as_of_us, length)
        start, end = segments_before(self.behaviors, entities, times)
        start = np.maximum(start, end - length)
        rows, offsets = segments(start, end - start)
        return HistoryBatch(
            offsets=offsets,
            items=self.behaviors.items[rows],
            behavior_types=self.behaviors.behavior_types[rows],
            times=self.behaviors.times_us[rows],
            values=self.behaviors.values[rows],
            as_of=times,
        )


def extend(
    previous: HistoryBatch, entities: Ids, behaviors: Behaviors, length: int, as_of_us: int | Int64s
) -> HistoryBatch:
    """Stored histories with new behaviors merged in, each behavior in its place in time.

    Law: extending tick by tick, in any split and order of delivery, equals ``Histories.as_of`` on everything
    delivered so far, as long as ``length`` stays the same. It holds for late behaviors too: the last
    ``length`` of a union never include what the last ``length`` of a part had already left out. Applying the
    same behaviors twice adds them twice: guard redelivery by the tick.

    Args:
        previous: B histories, row b of ``entities[b]``; empty for a new entity.
        entities: Unique ids [B].
        behaviors: New behaviors of those entities, all before ``as_of_us``.
        length: Longest history to keep, >= 1.
        as_of_us: The time at which the merged histories stand, one for all or int64 [B], microseconds.

    Returns:
        B histories as of ``as_of_us``.

    Raises:
        BehaviorSourceError: A behavior is of another entity or not before ``as_of_us``; ids repeat; the parts
            do not pair up.
    """
    times = _paired_times(entities, as_of_us, length)
    owner_of_new = _owners(previous, entities, behaviors)
    if np.any(behaviors.times_us >= times[owner_of_new]):
        raise BehaviorSourceError(
            "Some new behaviors are not before as_of_us; pass behaviors.between(…, as_of_us), and the rest later."
        )
    columns = (behaviors.items, behaviors.behavior_types, behaviors.times_us, behaviors.values)
    return merged(previous, Arrivals(owner_of_new, *columns), length, times)


def merged(previous: HistoryBatch, new: Arrivals, length: int, as_of: Int64s) -> HistoryBatch:
    """What ``extend`` does, unchecked: ``previous`` [B] and what is new of each, as of ``as_of`` (int64 [B])."""
    names = ("behavior_types", "times", "values")
    columns: dict[str, Any] = {name: np.concatenate([getattr(previous, name), getattr(new, name)]) for name in names}
    owners, items = np.concatenate([previous.owner, new.owner]), concat_ids([previous.items, new.items])
    order = lex_order(owners, columns["times"], ranks(items), columns["behavior_types"], columns["values"])
    ends = np.cumsum(np.bincount(owners, minlength=len(previous))).astype(np.int64)
    starts = np.maximum(np.concatenate([[0], ends[:-1]]), ends - length).astype(np.int64)[: len(ends)]
    rows, offsets = segments(starts, ends - starts)
    return HistoryBatch(offsets, items, as_of=as_of, **columns).gathered(order[rows], offsets, as_of)


def empty_histories(entities: Ids, behaviors: Behaviors) -> HistoryBatch:
    """One empty history per entity, with the id type of ``behaviors``: what ``extend`` starts from."""
    return HistoryBatch.empty(behaviors.items, np.zeros(len(entities), dtype=np.int64))


def locate(known: Ids, wanted: Ids) -> tuple[Int64s, Bools]:
    """Position of each wanted id in ``known`` (ascending, unique), 0 if absent; and whether it is there."""
    if not len(known) or not len(wanted):
        return np.zeros(len(wanted), dtype=np.int64), np.zeros(len(wanted), dtype=np.bool_)
    if (known.dtype == object) != (wanted.dtype == object):
        raise BehaviorSourceError(
            f"The ids asked for are {wanted.dtype}, those of the behaviors are {known.dtype}; "
            "ids are int64, or str in an object array, as the contract declares."
        )
    position = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    found = np.asarray(known[position] == wanted, dtype=np.bool_)
    return np.where(found, position, 0).astype(np.int64), found


def segments_before(behaviors: Behaviors, entities: Ids, times: Int64s) -> tuple[Int64s, Int64s]:
    """Rows ``start:end`` of each entity's behaviors before its time: two int64 [B]; empty if unknown."""
    position, found = locate(behaviors.entities, entities)
    if not len(behaviors):
        return np.zeros(len(times), dtype=np.int64), np.zeros(len(times), dtype=np.int64)
    start = behaviors.offsets[position]
    limit = np.where(found, behaviors.offsets[position + 1], start)
    return start, bisect_segments(behaviors.times_us, start, limit, times)


def pair_times(entities: Ids, as_of_us: int | Int64s) -> Int64s:
    """One time per entity: int64 [B].

    Raises:
        BehaviorSourceError: There are neither one nor B times.
    """
    times = np.asarray(as_of_us, dtype=np.int64)
    if times.ndim and len(times) != len(entities):
        raise BehaviorSourceError(
            f"{len(entities)} entities and {len(times)} times do not pair up; give one time for all, or one each."
        )
    return np.array(np.broadcast_to(times, (len(entities),)))


def _paired_times(entities: Ids, as_of_us: int | Int64s, length: int) -> Int64s:
    if length < 1:
        raise BehaviorSourceError(f"A history of length {length} holds nothing; ask for a length of 1 or more.")
    return pair_times(entities, as_of_us)


def _owners(previous: HistoryBatch, entities: Ids, behaviors: Behaviors) -> Int64s:
    """For each new behavior the row of its entity in ``entities``: int64 [N]."""
    if len(previous) != len(entities):
        raise BehaviorSourceError(
            f"{len(previous)} stored histories and {len(entities)} entities do not pair up; pass one history each."
        )
    order = np.argsort(entities, kind="stable").astype(np.int64)
    ascending = entities[order]
    if len(entities) > 1 and bool(np.any(ascending[1:] == ascending[:-1])):
        raise BehaviorSourceError("An entity is listed twice; a stored history is extended once per tick.")
    position, found = locate(ascending, behaviors.entities)
    if not np.all(found):
        stranger = behaviors.entities[~found].tolist()[0]
        raise BehaviorSourceError(
            f"There are new behaviors of entity {stranger!r}, which is not among the entities to extend; "
            "list it, with an empty history if it is new."
        )
    if not len(order):
        return np.empty(0, dtype=np.int64)
    return np.repeat(order[position], np.diff(behaviors.offsets))

"""Behaviors, history and activity views in the past, computed from the behavior log with nothing that came later.

A history is what the ticks had written online by then: it stands at the end of the last tick published at or
before t. Activity has no ticks, and stands at t itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from feast_embeddings.materialize.clock import now_us
from feast_embeddings.materialize.files import BehaviorLog
from feast_embeddings.materialize.ledger import Tick
from feast_embeddings.models import HistoryBatch
from feast_embeddings.models.types import Ids, Int64s
from feast_embeddings.transformations import (
    ActivitySpec,
    Behaviors,
    CleaningRules,
    Histories,
    activity,
    clean,
    prepare,
    read_behaviors,
)
from feast_embeddings.transformations.histories import RECENCY, latest, latest_rows
from feast_embeddings.transformations.views import HISTORY_FEATURES

_Part = tuple[Int64s, HistoryBatch, Int64s]
_BLOCK = 20_000
_EVERYTHING = 1 << 62


def history_at(
    log: BehaviorLog, ticks: list[Tick], contexts: Mapping[int, int], ttl_us: int, ids: Ids, times_us: Int64s
) -> pa.Table:
    """Histories as online reads returned them.

    Args:
        log: The behaviors.
        ticks: Published ticks of the embedding view that keeps these histories, by number.
        contexts: Tick number → behaviors that it kept of each history.
        ttl_us: Age of the online write past which a history is no longer served, microseconds; 0: never.
        ids: Entities [n].
        times_us: int64 [n], microseconds since the epoch, UTC.

    Returns:
        The four list columns of a history view [n]; null where nothing was served.
    """
    batches, rows, start = [_nothing(log)], np.full(len(ids), -1, np.int64), 0
    for asked, known in _by_refresh(ticks, times_us):
        windows = np.array([each.window_start_us or 0 for each in known], np.int64)
        tick = _tick_at(known, times_us[asked])
        found, tick = asked[tick >= 0], tick[tick >= 0]
        if not len(found):
            continue
        for queries, batch, wrote in histories_left(log, known, contexts, ids[found], tick):
            query = found[queries]
            shown = batch.lengths > 0
            if ttl_us > 0:
                shown &= times_us[query] - windows[wrote] <= ttl_us
            rows[query[shown]] = start + np.flatnonzero(shown)
            batches.append(batch)
            start += len(batch)
    return _history_table(log, _concat(batches), rows)


def histories_left(
    log: BehaviorLog, ticks: list[Tick], contexts: Mapping[int, int], ids: Ids, tick: Int64s
) -> Iterator[_Part]:
    """The histories that ticks had left when a tick was done: each as the last tick that had the entity wrote it.

    Args:
        log: The behaviors.
        ticks: Ticks of the embedding view that keeps these histories, by number.
        contexts: Tick number → behaviors that it kept of each history.
        ids: Entities [n].
        tick: int64 [n], index of the tick asked for.

    Yields:
        Positions int64 [m] in ``ids``, their m histories, and the index int64 [m] of the tick that wrote each.
    """
    by_members = bool(log.contract.created_time) or (bool(log.contract.cancellations) and log.rules.cancellations)
    kept = np.array([contexts[each.number] for each in ticks], np.int64)
    yield from (_by_tick if by_members else _at_once)(log, ticks, kept, ids, tick)


def activity_at(log: BehaviorLog, spec: ActivitySpec, ids: Ids, times_us: Int64s) -> pa.Table:
    """Activity of entities [n] as of int64 [n] microseconds, from behaviors strictly before each time.

    Null where there is none: online, such an entity has no row.
    """
    behaviors = _until(log, ids, int(times_us.max(initial=0)), CleaningRules(cancellations=False))
    table = activity(clean(behaviors, log.contract, log.rules), log.contract, spec, ids, times_us)
    for rows in _blocks(np.flatnonzero(_before_a_cancellation(log, behaviors, ids, times_us))):
        own = clean(_own_behaviors(behaviors, ids[rows], times_us[rows]), log.contract, log.rules)
        again = activity(own, log.contract, spec, np.arange(len(rows), dtype=np.int64), times_us[rows])
        order = np.arange(len(ids), dtype=np.int64)
        order[rows] = len(ids) + np.arange(len(rows))
        table = pa.concat_tables([table, again]).take(pa.array(order))
    known = table[RECENCY].is_valid()
    return table.take(pc.if_else(known, pa.array(np.arange(len(ids))), None))


def behaviors_at(log: BehaviorLog, ids: Ids, times_us: Int64s, *, by_created: bool) -> pa.Table:
    """The latest behavior of entities [n] at or before int64 [n] microseconds, whatever the cleaning rules say.

    With ``by_created``, only behaviors that were written by then count.
    """
    behaviors = _until(log, ids, int(times_us.max(initial=0)) + 1, CleaningRules(cancellations=False))
    written_us = behaviors.written_us if by_created else None
    return latest(behaviors, log.contract, latest_rows(behaviors, ids, times_us, written_us))


# ── activity: no cancellation acts before its time ───────────────────────────────────────────────────────────


def _before_a_cancellation(log: BehaviorLog, behaviors: Behaviors, ids: Ids, times_us: Int64s) -> npt.NDArray[np.bool_]:
    """Bool [n]: queries of entities that cancel something at or after the time asked for."""
    codes = list(log.contract.cancellations) if log.rules.cancellations else []
    cancelling = behaviors.select(np.isin(behaviors.behavior_types, codes))
    if not len(cancelling):
        return np.zeros(len(ids), np.bool_)
    last_us = cancelling.times_us[cancelling.offsets[1:] - 1]
    place = np.minimum(np.searchsorted(cancelling.entities, ids), len(last_us) - 1)
    return np.asarray((cancelling.entities[place] == ids) & (times_us <= last_us[place]), np.bool_)


def _own_behaviors(behaviors: Behaviors, ids: Ids, times_us: Int64s) -> Behaviors:
    """Each query's behaviors before its time, under the query's number as entity: cleaned apart from all others."""
    batch = Histories(behaviors).as_of(ids, times_us, _EVERYTHING)
    rows = len(batch.times)
    columns = {
        "entity": pa.array(np.repeat(np.arange(len(ids), dtype=np.int64), batch.lengths)),
        "item": pa.array(batch.items, behaviors.table.schema.field("item").type),
        "behavior_type": pa.array(batch.behavior_types),
        "event_time": pa.array(batch.times).cast(pa.timestamp("us", tz="UTC")),
        "value": pa.array(batch.values.astype(np.float64), from_pandas=True),
        "created_time": pa.nulls(rows, pa.timestamp("us", tz="UTC")),
        "dedup_id": pa.nulls(rows, pa.string()),
    }
    return Behaviors(pa.table(columns))


def _blocks(rows: Int64s) -> Iterator[Int64s]:
    return (rows[start : start + _BLOCK] for start in range(0, len(rows), _BLOCK))


# ── histories ────────────────────────────────────────────────────────────────────────────────────────────────


def _tick_at(ticks: list[Tick], times_us: Int64s) -> Int64s:
    """Index int64 [n] of the newest tick published at or before each time; -1 before the first one."""
    published = np.array([tick.published_us or 0 for tick in ticks], np.int64)
    order = np.argsort(published, kind="stable")
    newest = np.append(np.maximum.accumulate(order), -1)
    return np.asarray(newest[np.searchsorted(published[order], times_us, side="right") - 1], np.int64)


def _by_refresh(ticks: list[Tick], times_us: Int64s) -> Iterator[tuple[Int64s, list[Tick]]]:
    """Queries, int64 [m], and the ticks that were known at their times.

    A refresh that ticks overtook counts before them, by its number, but only from its own publication on.
    """
    published = np.array([each.published_us or 0 for each in ticks], np.int64)
    earliest_after = np.minimum.accumulate(published[::-1])[::-1]
    overtaken = [index for index, each in enumerate(ticks) if each.kind == "full"]
    overtaken = [index for index in overtaken if published[index] > earliest_after[index]]
    overtaken.sort(key=lambda index: published[index])
    known = np.searchsorted(published[overtaken], times_us, side="right")
    for count in np.unique(known):
        unknown = set(overtaken[count:])
        yield np.flatnonzero(known == count), [each for index, each in enumerate(ticks) if index not in unknown]


def _at_once(log: BehaviorLog, ticks: list[Tick], kept: Int64s, ids: Ids, tick: Int64s) -> Iterator[_Part]:
    """All ticks from one reading: right where no behavior comes late and none is taken back."""
    ends = np.array([each.end_us for each in ticks], np.int64)
    histories = Histories(_until(log, ids, int(ends[tick.max()]), log.rules))
    last = histories.as_of(ids, ends[tick], 1)
    last_us = np.append(last.times, 0)[np.where(last.lengths > 0, last.offsets[:-1], -1)]
    fulls = np.array([index if each.kind == "full" else 0 for index, each in enumerate(ticks)], np.int64)
    refreshed = np.maximum.accumulate(fulls)[tick]
    # the tick that brought the last behavior wrote the history, or the refresh after it did
    brought = ends.copy()
    for refresh in _bridged(ticks):
        brought[refresh] = ticks[refresh].start_us or 0
    wrote = np.maximum(np.minimum(np.searchsorted(brought, last_us, side="right"), tick), refreshed)
    for length in np.unique(kept[wrote]):
        queries = np.flatnonzero(kept[wrote] == length)
        yield queries, histories.as_of(ids[queries], ends[tick[queries]], int(length)), wrote[queries]


def _by_tick(log: BehaviorLog, ticks: list[Tick], kept: Int64s, ids: Ids, tick: Int64s) -> Iterator[_Part]:
    """Tick after tick, from each one's own members, as the ticks did: a refresh starts anew."""
    wanted = np.unique(tick)
    fulls = [index for index in range(int(wanted[0]) + 1) if ticks[index].kind == "full"]
    bridges = set(_bridged(ticks).values())
    entities, owner = np.unique(ids, return_inverse=True)
    wrote = np.zeros(len(entities), np.int64)
    behaviors = Behaviors.empty(log.contract)
    for index in range(fulls[-1] if fulls else 0, int(wanted[-1]) + 1):
        each = ticks[index]
        if each.kind == "full":
            found = _of(log.until(each.end_us, each.created_until_us), entities)
            behaviors = found
        else:
            found = _of(log.members(each).behaviors, entities)
            new = len(found) and index not in bridges  # the refresh before a bridge knows its behaviors
            behaviors = Behaviors.concat([behaviors, found]) if new else behaviors
        wrote[np.isin(entities, found.entities)] = index
        asked = np.flatnonzero(tick == index)
        lengths = kept[wrote[owner[asked]]]
        for length in np.unique(lengths):
            queries = asked[lengths == length]
            yield queries, Histories(behaviors).as_of(ids[queries], each.end_us, int(length)), wrote[owner[queries]]


def _bridged(ticks: list[Tick]) -> dict[int, int]:
    """Refreshes whose members a tick brought to the fills in use, and that tick; by index."""
    fulls = [index for index, each in enumerate(ticks) if each.kind == "full"]
    return {at: at + 1 for at in fulls if at + 1 < len(ticks) and ticks[at + 1].bridges(ticks[at])}


def _of(behaviors: Behaviors, entities: npt.NDArray[Any]) -> Behaviors:
    ids = behaviors.table["entity"]
    kept = pc.is_in(ids, value_set=pa.array(entities, ids.type))
    return Behaviors.from_sorted(behaviors.table.filter(kept))


def _until(log: BehaviorLog, ids: Ids, until_us: int, rules: CleaningRules) -> Behaviors:
    """The behaviors of ``ids`` before a time, by ``rules``."""
    entities = cast(Ids, np.unique(ids))
    raw = read_behaviors(log.path, log.contract, event_us=(None, until_us), entities=entities, undated=False)
    return prepare(log.living(raw), log.contract, rules, max(until_us, now_us())).behaviors


def _nothing(log: BehaviorLog) -> HistoryBatch:
    no_ids = np.empty(0, np.int64 if log.contract.entity_dtype == "int64" else object)
    return Histories(Behaviors.empty(log.contract)).as_of(no_ids, np.empty(0, np.int64), 1)


def _concat(batches: list[HistoryBatch]) -> HistoryBatch:
    first = batches[0]
    lengths = np.concatenate([batch.lengths for batch in batches])
    return replace(
        first,
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        items=np.concatenate([batch.items for batch in batches]),
        behavior_types=np.concatenate([batch.behavior_types for batch in batches]),
        times=np.concatenate([batch.times for batch in batches]),
        values=np.concatenate([batch.values for batch in batches]),
        as_of=np.concatenate([batch.as_of for batch in batches]),
    )


def _history_table(log: BehaviorLog, batch: HistoryBatch, rows: Int64s) -> pa.Table:
    """The list columns of ``rows`` (int64 [n]; -1: null)."""
    item_type = pa.string() if log.contract.item_dtype == "string" else pa.int64()
    ragged = (
        pa.array(batch.items, item_type),
        pa.array(batch.behavior_types, pa.int32()),
        pa.array(batch.times, pa.int64()),
        pa.array(batch.values, pa.float32()),
    )
    offsets, wanted = pa.array(batch.offsets), pa.array(rows, mask=rows < 0)
    columns = [
        pa.LargeListArray.from_arrays(offsets, values).take(wanted).cast(pa.list_(values.type)) for values in ragged
    ]
    return pa.Table.from_arrays(columns, names=list(HISTORY_FEATURES))

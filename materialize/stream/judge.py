"""The behaviors of a micro-batch: judged, deduplicated against the recent past, and appended to the behavior log once.

The part of the behavior log that a tick appends is created exclusively, under a name fixed by the tick: whoever finds
it takes its members from there. So a tick's members never change, whatever is delivered again.
"""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feast_embeddings.materialize.clock import now_us
from feast_embeddings.materialize.files import (
    OFFSET,
    ORIGIN,
    PARTITION,
    POISON,
    SOURCE,
    TICK,
    BehaviorLog,
    create,
    part_name,
    parts_folder,
    raw_rows,
    read_part,
    recent_rows,
)
from feast_embeddings.materialize.ledger import Tick
from feast_embeddings.materialize.stream.payloads import Decoded
from feast_embeddings.materialize.stream.source import Delivery
from feast_embeddings.models.encoder import HistoryBatch
from feast_embeddings.models.types import Ids, Int64s
from feast_embeddings.transformations import Behaviors, Histories, prepare
from feast_embeddings.transformations.behaviors import (
    QUARANTINE_SCHEMA,
    deduplicate,
    quarantine_rows,
    raw_schema,
    refusals,
    validate,
)

TOO_LATE: Final = "older than the allowed lateness"
_COUNTS: Final = b"feast_embeddings.counts"
_ROW = "__row"

HistoriesOf = Callable[[Ids, int], HistoryBatch]
"""Stored histories of entities, as of a time in microseconds."""


@dataclass(frozen=True, slots=True)
class Members:
    """What became of a micro-batch.

    Attributes:
        behaviors: The accepted ones.
        counts: Every behavior by what became of it; ``read`` is the sum of all others, but for ``late``, which says
            how many of the applied ones came after younger ones.
        quarantined: Refused rows: ``validate.QUARANTINE_SCHEMA``.
        poison: Messages that hold no behavior, with their bytes.
        part: The accepted rows as they are appended to the behavior log; None where they stand there already.
    """

    behaviors: Behaviors
    counts: Mapping[str, int]
    quarantined: pa.Table
    poison: pa.Table
    part: pa.Table | None


class Recent:
    """Keys of the behaviors that a lane applied last, against duplicated deliveries; bounded, oldest out first."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._keys: set[str] = set()
        self._order: deque[list[str]] = deque()

    def __len__(self) -> int:
        return len(self._keys)

    def known(self, keys: list[str]) -> np.ndarray:
        """Which of the keys were applied: bool [N]."""
        return np.fromiter(map(self._keys.__contains__, keys), np.bool_, len(keys))

    def add(self, keys: list[str]) -> None:
        """Remember keys of applied behaviors."""
        self._keys.update(keys)
        self._order.append(keys)
        while len(self._keys) > self.most and len(self._order) > 1:
            self._keys.difference_update(self._order.popleft())


class Judge:
    """Members of the micro-batches of one lane.

    Args:
        log: The behavior log; a folder.
        view: The embedding view.
        lateness_us: Behaviors that happened longer before a tick's end are refused; None: none is.
        remembered: How many of the last applied behaviors a delivery is compared with.
    """

    def __init__(self, log: BehaviorLog, view: str, lateness_us: int | None = None, remembered: int = 100_000) -> None:
        self.log, self.contract, self.rules = log, log.contract, log.rules
        self.view, self.lateness_us = view, lateness_us
        self.folder = parts_folder(log.path) or Path(log.path)
        self.recent = Recent(remembered)
        self._youngest_us = 0

    def part(self, tick: int) -> Path:
        """Where a tick's behaviors are appended."""
        return self.folder / part_name(self.view, tick)

    def remember(self, partitions: Sequence[int], unfinished: Sequence[int]) -> None:
        """Take up the recent past of a lane: its partitions' last behaviors, but for those of unfinished ticks."""
        for table in recent_rows(self.folder, self.view, partitions, unfinished, self.recent.most):
            raw = table.select(raw_schema(self.contract).names)
            self._applied(validate(raw, self.contract, np.iinfo(np.int64).max).table)

    def find(self, tick: Tick) -> Members | None:
        """The members of a tick that appended its part of the log already."""
        path = self.part(tick.number)
        if not path.exists():
            return None
        table = read_part(path)
        counts = json.loads(table.schema.metadata[_COUNTS])
        raw = table.select(raw_schema(self.contract).names)
        canonical = validate(raw, self.contract, tick.end_us - 1).table
        nothing = QUARANTINE_SCHEMA.empty_table()
        return Members(Behaviors(canonical), counts, nothing, POISON.empty_table(), None)

    def members(self, tick: Tick, delivery: Delivery, decoded: Decoded, histories_of: HistoriesOf) -> Members:
        """Judge every behavior of a micro-batch."""
        raw = decoded.raw.append_column(_ROW, pa.array(np.arange(len(decoded.raw)), pa.int64()))
        living = self.log.living(raw)
        judged = validate(living.drop_columns([_ROW]), self.contract, tick.end_us - 1)
        table, rows = judged.table, judged.rows
        reasons = np.full(len(rows), "", object)
        if self.lateness_us is not None:
            reasons[_times(table) < tick.end_us - self.lateness_us] = TOO_LATE
        kept, repeated = self._first(table, reasons == "")
        refused = self._refused(table, kept, tick, histories_of)
        reasons[kept[refused != ""]] = refused[refused != ""]
        kept = kept[refused == ""]
        canonical = table.take(pa.array(kept))
        bad_rows = np.concatenate([judged.bad_rows, rows[reasons != ""]])
        bad_reasons = judged.reasons + list(reasons[reasons != ""])
        late = int(np.count_nonzero(_times(canonical) < self._youngest_us))
        poison = _poison(delivery, decoded)
        counts = _counts(len(raw), len(raw) - len(living), len(kept), repeated, bad_reasons, poison, late)
        quarantined = quarantine_rows(living.drop_columns([_ROW]), self.contract, bad_rows, bad_reasons)
        part = self._part_rows(tick, delivery, decoded, living.take(pa.array(rows[kept])))
        return Members(Behaviors.from_sorted(canonical), counts, quarantined, poison, part)

    def append(self, tick: Tick, members: Members) -> Members:
        """Append what was judged to the behavior log, for good; what a tick of that number appended first counts."""
        if members.part is not None:
            table = members.part.replace_schema_metadata({_COUNTS: json.dumps(members.counts).encode()})
            create(self.part(tick.number), table)
        self._applied(members.behaviors.table)
        return members

    def _first(self, table: pa.Table, good: np.ndarray) -> tuple[Int64s, int]:
        """Rows that repeat neither another row nor the recent past, in the order of ``Behaviors``; and how many do."""
        rows = np.flatnonzero(good)
        part = table.take(pa.array(rows))
        order, repeated = deduplicate(part, np.zeros(len(rows), np.bool_))
        known = self.recent.known(keys_of(part, self.contract.dedup_id is not None))
        again = repeated | known
        order = order[~again[order]]
        return rows[order].astype(np.int64), int(np.count_nonzero(again))

    def _refused(self, table: pa.Table, kept: Int64s, tick: Tick, histories_of: HistoriesOf) -> np.ndarray:
        """Why the cleaning rules refuse each of the rows ``kept``, or "": their entities' histories are the context."""
        rules = self.rules
        active = rules.max_per_day is not None or rules.burst is not None
        if not len(kept) or not (active or (rules.cancellations and self.contract.cancellations)):
            return np.full(len(kept), "", object)
        new = table.take(pa.array(kept))
        ids = Behaviors.from_sorted(new).entities
        both = pa.concat_tables([_canonical(ids, histories_of(ids, tick.end_us), table.schema), new])
        order, _ = deduplicate(both, np.arange(len(both)) < len(both) - len(kept))
        found = np.full(len(both), "", object)
        found[order] = refusals(both.take(pa.array(order)), self.contract, rules)
        return found[len(both) - len(kept) :]

    def _part_rows(self, tick: Tick, delivery: Delivery, decoded: Decoded, rows: pa.Table) -> pa.Table:
        message = decoded.message[rows[_ROW].to_numpy()]
        origin = {
            SOURCE: pa.repeat(pa.scalar(delivery.source), len(rows)),
            PARTITION: delivery.partitions[message],
            OFFSET: delivery.offsets[message],
            TICK: np.full(len(rows), tick.number),
        }
        table = rows.drop_columns([_ROW])
        for name, values in origin.items():
            table = table.append_column(ORIGIN.field(name), pa.array(values, ORIGIN.field(name).type))
        return table

    def _applied(self, canonical: pa.Table) -> None:
        self.recent.add(keys_of(canonical, self.contract.dedup_id is not None))
        self._youngest_us = max(self._youngest_us, _latest(canonical))


def histories_left_by_stream(
    log: BehaviorLog, view: str, unfinished: Sequence[int], ids: Ids, ends_us: Int64s, length: int
) -> HistoryBatch:
    """Histories [n] as a stream's ticks left them in Redis: of all that was applied, but for ticks that are unfinished.

    ``ends_us``, int64 [n], is the end of each entity's last tick: nothing of it came later.
    """
    wanted = pa.array(unfinished, pa.int64())
    folder = parts_folder(log.path) or Path(log.path)
    raw = raw_rows(folder, view, log.contract, lambda ticks: pc.invert(pc.is_in(ticks, wanted)))
    behaviors = prepare(log.living(raw), log.contract, log.rules, now_us()).behaviors
    return Histories(behaviors).as_of(ids, ends_us, length)


def keys_of(table: pa.Table, named: bool) -> list[str]:
    """One text per canonical row by which deliveries of one behavior are recognized: its dedup id, or all it holds."""
    columns = [
        table[name].cast(pa.int64() if name == "event_time" else pa.string()).cast(pa.string()) for name in _CONTENT
    ]
    content = pc.binary_join_element_wise(*columns, "\x1f", null_handling="replace", null_replacement="")
    if not named:
        return cast(list[str], content.to_pylist())
    return cast(
        list[str], pc.coalesce(pc.binary_join_element_wise("id", table["dedup_id"], "\x1f"), content).to_pylist()
    )


_CONTENT: Final = ("entity", "item", "behavior_type", "event_time", "value")


def _times(table: pa.Table) -> Int64s:
    return np.asarray(table["event_time"].cast(pa.int64()).to_numpy(), np.int64)


def _latest(table: pa.Table) -> int:
    return int(_times(table).max(initial=0))


def _canonical(ids: Ids, batch: HistoryBatch, schema: pa.Schema) -> pa.Table:
    """Stored histories as canonical rows."""
    owner = np.repeat(np.arange(len(ids)), batch.lengths)
    values = np.asarray(batch.values, np.float64)
    columns = {
        "entity": pa.array(ids[owner], schema.field("entity").type),
        "item": pa.array(batch.items, schema.field("item").type),
        "behavior_type": pa.array(batch.behavior_types, pa.int32()),
        "event_time": pa.array(batch.times, pa.int64()).cast(schema.field("event_time").type),
        "value": pa.array(values, pa.float64(), mask=np.isnan(values)),
    }
    rest = {each.name: pa.nulls(len(owner), each.type) for each in schema if each.name not in columns}
    return pa.table({**columns, **rest}).select(schema.names).cast(schema)


def _poison(delivery: Delivery, decoded: Decoded) -> pa.Table:
    rows = np.array(list(decoded.poison), np.int64)
    columns = [
        pa.array(delivery.partitions[rows], pa.int32()),
        pa.array(delivery.offsets[rows], pa.int64()),
        pa.array([delivery.payloads[row] for row in rows.tolist()], pa.binary()),
        pa.array(list(decoded.poison.values()), pa.string()),
    ]
    return pa.table(columns, schema=POISON)


def _counts(
    rows: int, erased: int, applied: int, repeated: int, reasons: list[str], poison: pa.Table, late: int
) -> dict[str, int]:
    quarantined = {f"quarantined: {reason}": count for reason, count in sorted(Counter(reasons).items())}
    if len(poison):
        quarantined["quarantined: poison message"] = len(poison)
    counts = {"read": rows + len(poison), "applied": applied, "deduplicated": repeated}
    return {**counts, **({"erased": erased} if erased else {}), **quarantined, **({"late": late} if late else {})}

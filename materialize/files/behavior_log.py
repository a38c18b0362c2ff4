"""The behaviors of a tick: read from the behavior log by the recorded membership, validated, cleaned, digested."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from feast import FeatureView

from feast_embeddings.materialize.clock import now_us
from feast_embeddings.materialize.declare import source_of
from feast_embeddings.materialize.files.appended import TICK, part_pattern, part_range, parts_folder, rows_of_ticks
from feast_embeddings.materialize.ledger import NEVER, Ledger, Tick, Tombstones
from feast_embeddings.models.types import Ids, Int64s
from feast_embeddings.transformations import (
    BehaviorContract,
    Behaviors,
    CleaningRules,
    Counts,
    Prepared,
    contract_of,
    prepare,
    read_behaviors,
    rules_of,
)
from feast_embeddings.transformations.behaviors import Times, entities_of, raw_schema, read_times, schema_of, validate
from feast_embeddings.transformations.sources import Files, scan_behaviors, scan_entities

_DAY_US = 86_400_000_000


@dataclass(frozen=True)
class BehaviorLog:
    """The behaviors of one entity's view: the only input of ticks, refreshes and training.

    What an erasure covers is not read: every behavior of an erased entity that happened or was written up to the
    erasure. One that happened, and was written, after it begins a new life.
    """

    path: str
    contract: BehaviorContract
    rules: CleaningRules
    tombstones: Tombstones | None = None
    until_tick: tuple[str, int] | None = None
    """View and number of a tick: what its stream's later micro-batches appended is not read."""

    @classmethod
    def of(cls, view: FeatureView, root: Path, ledger: Ledger) -> BehaviorLog:
        """The log behind a behaviors view; relative paths start at ``root``, and ``ledger`` knows who was erased."""
        contract = contract_of(view)
        path = str(root / source_of(view).path)
        return cls(path, contract, rules_of(view), Tombstones(ledger, contract.join_key))

    def before(self, refresh: Tick) -> BehaviorLog:
        """The same log without what the view's stream has appended since a refresh was recorded."""
        return replace(self, until_tick=(refresh.view, refresh.number))

    @property
    def _files(self) -> Files:
        if self.until_tick is None or (folder := parts_folder(self.path)) is None:
            return Files(self.path)
        view, number = self.until_tick
        name = part_pattern(view)

        def later(path: Path) -> bool:
            return path.parent == folder and bool(name.fullmatch(path.name)) and part_range(path, view)[0] > number

        return Files(self.path, later)

    def living(self, raw: pa.Table) -> pa.Table:
        """Raw rows without those that an erasure covers; a row that no time can place is covered."""
        if self.tombstones is None or not raw.num_rows or not self.tombstones.marks().num_rows:
            return raw
        erased_us = self.tombstones.erased_us(entities_of(raw, self.contract))
        doomed = erased_us != NEVER
        if not doomed.any():
            return raw
        times = self._times(raw)
        after = np.logical_or.reduce([each.usable for each in times])
        for each in times:
            after &= ~each.usable | (each.us > erased_us)
        return raw.filter(pa.array(~doomed | after))

    def until(self, end_us: int, created_until_us: int, entities: Ids | None = None) -> Behaviors:
        """Every clean behavior with event time before ``end_us`` that was there at ``created_until_us``.

        With ``entities`` [n], only theirs.
        """
        bounds = {"event_us": (None, end_us), "created_us": (None, self._created(created_until_us))}
        raw = read_behaviors(self._files, self.contract, **bounds, entities=entities, undated=entities is None)
        return self.judged(raw, max(end_us, created_until_us)).behaviors

    def happened(self, start_us: int, end_us: int) -> Prepared:
        """Every behavior with ``start_us <= event time < end_us``, whatever the cleaning rules say."""
        raw = self._read(start_us, end_us, None, None, undated=True)
        return replace(self, rules=CleaningRules(cancellations=False)).judged(raw, max(end_us, now_us()))

    def parts_until(self, end_us: int, created_until_us: int) -> Iterator[pa.Table]:
        """Raw rows of :meth:`until`, a part in memory at a time."""
        created = self._created(created_until_us)
        yield from scan_behaviors(self._files, self.contract, event_until_us=end_us, created_until_us=created)

    def entities_until(self, end_us: int) -> Iterator[pa.Array]:
        """The entity column of about the behaviors before a time, in parts: a day more or less."""
        return scan_entities(self._files, self.contract, event_until_us=end_us)

    def judged(self, raw: pa.Table, now_us: int, context: pa.Table | None = None) -> Prepared:
        """Raw rows as behaviors, without those of the erased, who are counted."""
        living = self.living(raw)
        prepared = prepare(living, self.contract, self.rules, now_us, context=context)
        counts = replace(prepared.counts, read=raw.num_rows, erased=raw.num_rows - living.num_rows)
        return replace(prepared, counts=counts)

    def members(self, tick: Tick) -> Prepared:
        """The behaviors of a tick: event time in [start, end), and late ones that came since the last tick.

        Earlier rows of the same UTC day inform the cleaning rules; they are neither counted nor returned. Rows that
        an erasure covers are counted as read and as erased, and nothing else becomes of them.
        """
        until = self._created(tick.created_until_us)
        by_created = bool(self.contract.created_time) and tick.created_from_us is not None
        # Without any time that tells when it came, a row would come again in every tick: refreshes refuse it.
        raw = self._read(tick.start_us, tick.end_us, None, until, undated=tick.kind == "full" and not by_created)
        context = None
        if tick.start_us is not None:
            first = tick.start_us
            if by_created:
                late = self._read(None, tick.start_us, tick.created_from_us, until, undated=True)
                late = late if tick.kind == "full" else late.filter(pa.array(self._placed(late)))
                first = self._first_us(late, first)
                raw = pa.concat_tables([raw, late])
            day = first // _DAY_US * _DAY_US
            context = self._read(day, tick.start_us, None, self._created(tick.created_from_us), undated=False)
            context = self.living(context)
        return self.judged(raw, max(tick.end_us, tick.created_until_us), context)

    def members_of(self, ticks: Sequence[Tick]) -> tuple[pa.Table, Int64s]:
        """The accepted behaviors of ticks, canonical rows [N], and the number of each one's tick, int64 [N].

        Those of micro-batches are what they appended to the log, less the erased.
        """
        parts = [self._appended([tick for tick in ticks if tick.streamed])]
        for tick in ticks:
            if not tick.streamed:
                table = self.members(tick).behaviors.table
                parts.append((table, np.full(len(table), tick.number, np.int64)))
        schema = schema_of(self.contract)
        tables = [table.select(schema.names).cast(schema) for table, _ in parts]
        return pa.concat_tables(tables), np.concatenate([numbers for _, numbers in parts])

    def _appended(self, ticks: Sequence[Tick]) -> tuple[pa.Table, Int64s]:
        folder = parts_folder(self.path)
        rows = rows_of_ticks(folder, ticks[0].view, [tick.number for tick in ticks]) if ticks and folder else None
        if rows is None:
            return schema_of(self.contract).empty_table(), np.empty(0, np.int64)
        rows = self.living(rows)
        judged = validate(rows.select(raw_schema(self.contract).names), self.contract, np.iinfo(np.int64).max)
        return judged.table, np.asarray(rows[TICK].to_numpy(), np.int64)[judged.rows]

    def _read(
        self, start: int | None, end: int, created_from: int | None, created_until: int | None, *, undated: bool
    ) -> pa.Table:
        return read_behaviors(
            self._files,
            self.contract,
            event_us=(start, end),
            created_us=(created_from, created_until),
            undated=undated,
        )

    def _placed(self, raw: pa.Table) -> npt.NDArray[np.bool_]:
        """Rows that have an event time or a created time, bool [N]."""
        return np.asarray(np.logical_or.reduce([times.usable for times in self._times(raw)]), np.bool_)

    def _times(self, raw: pa.Table) -> list[Times]:
        """Event times, and created times where the source has them."""
        columns = filter(None, (self.contract.event_time, self.contract.created_time))
        return [read_times(raw[column], self.contract.naive_time_zone) for column in columns]

    def _first_us(self, raw: pa.Table, default: int) -> int:
        """The earliest event time, at most ``default``, in microseconds."""
        times = read_times(raw[self.contract.event_time], self.contract.naive_time_zone)
        return int(times.us[times.usable].min(initial=default))

    def _created(self, us: int | None) -> int | None:
        return us if self.contract.created_time else None


class Digest:
    """A digest of behaviors' content, for telling whether a tick's members are what they were.

    Parts of it may be added one after the other, in ascending order of entities: the same as all at once.
    """

    def __init__(self) -> None:
        self.behaviors = 0
        self._columns = [hashlib.blake2b(digest_size=16) for _ in range(6)]

    def add(self, behaviors: Behaviors) -> None:
        """Add the behaviors of more entities."""
        self.behaviors += len(behaviors)
        lengths = np.diff(behaviors.offsets)
        numbers = (lengths, behaviors.times_us, behaviors.behavior_types, behaviors.values)
        for state, column in zip(self._columns, (behaviors.entities, behaviors.items, *numbers), strict=True):
            text = column.dtype == object
            state.update("".join(f"{each}\0" for each in column).encode() if text else column.tobytes())

    def hexdigest(self) -> str:
        """The digest of everything added."""
        whole = hashlib.blake2b(b"".join(state.digest() for state in self._columns), digest_size=16)
        return whole.hexdigest()


def digest(behaviors: Behaviors) -> str:
    """A digest of behaviors' content."""
    state = Digest()
    state.add(behaviors)
    return state.hexdigest()


def counts_of(prepared: Prepared) -> Mapping[str, int]:
    """What became of a tick's behaviors, in the ledger's words; read is the sum of all the others."""
    return in_words(prepared.counts)


def in_words(counts: Counts) -> Mapping[str, int]:
    """Counts in the ledger's words."""
    quarantined = {f"quarantined: {reason}": number for reason, number in counts.quarantined.items()}
    return {
        "read": counts.read,
        "applied": counts.accepted,
        "deduplicated": counts.deduplicated,
        **({"erased": counts.erased} if counts.erased else {}),
        **quarantined,
    }

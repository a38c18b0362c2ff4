"""Ticks in the ledger: recorded before anything is computed, published once, numbered in one series per view.

Batch ticks and refreshes are known by bounds of time; a stream's micro-batches by lane and offsets.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from feast_embeddings.materialize.clock import now_us
from feast_embeddings.materialize.ledger.database import Database
from feast_embeddings.materialize.ledger.leases import is_held
from feast_embeddings.materialize.ledger.records import RECEIVING, Fill, Ranges, Tick, fill_name, ranges_to_json
from feast_embeddings.materialize.ledger.schema import FOLDED, fills, marks, positions, tick_counts, ticks
from feast_embeddings.models.errors import HeldError, OvertakenError, TickError

_APPLIED = ("written", "published")
_OF_A_JOB, _OF_A_STREAM = ticks.c.lane.is_(None), ticks.c.lane.is_not(None)


@dataclass(frozen=True)
class MembersFound:
    """What a tick's membership turned out to hold: how many behaviors are applied, their digest, and all counts."""

    members: int
    digest: str
    counts: Mapping[str, int]


class Ticks(Database):
    """Reads and writes ticks; every method is one transaction."""

    # ── recording ────────────────────────────────────────────────────────────────────────────────────────

    def record_tick(
        self,
        view: str,
        *,
        start_us: int | None,
        end_us: int,
        created_from_us: int | None,
        targets: Sequence[str],
        created_until_us: int | None = None,
        after: int | None = None,
    ) -> Tick:
        """Record a new incremental tick of ``view``, numbered after its last one, that writes the fills ``targets``.

        Without ``created_until_us`` its members are created before now.

        Raises:
            OvertakenError: ``after`` is given, and is not the number of the view's newest tick any more.
        """
        bounds = {"start_us": start_us, "end_us": end_us, "created_from_us": created_from_us}
        with self.transaction() as connection:
            until = now_us() if created_until_us is None else created_until_us
            number = next_number(connection, view, after)
            insert_tick(connection, view, number, targets, **bounds, created_until_us=until)
        return self.tick(view, number)

    def record_refresh(
        self,
        view: str,
        encoder: str,
        space: str,
        *,
        start_us: int | None,
        end_us: int,
        created_from_us: int | None,
        after: int | None = None,
    ) -> Tick:
        """Record a full refresh of ``view`` and the new, empty fill in ``space`` that it writes.

        Raises:
            OvertakenError: As :meth:`record_tick`.
        """
        bounds = {"start_us": start_us, "end_us": end_us, "created_from_us": created_from_us}
        with self.transaction() as connection:
            number, now = next_number(connection, view, after), now_us()
            name = fill_name(view, number, space)
            insert_tick(connection, view, number, [name], kind="full", **bounds, created_until_us=now)
            values = {"fill": name, "view": view, "encoder": encoder, "space": space, "tick": number}
            connection.execute(sa.insert(fills).values(**values, state="building", rows=0, made_us=now))
        return self.tick(view, number)

    def record_micro_batch(
        self,
        view: str,
        lane: str,
        source: str,
        ranges: Ranges,
        kept_of: Callable[[Sequence[str]], int],
        unless_held: str | None = None,
    ) -> Tick:
        """Record a micro-batch, which ends now, and the positions that it takes its partitions to.

        Args:
            view: The embedding view.
            lane: Name of the lane.
            source: Name of the stream.
            ranges: The membership.
            kept_of: Behaviors to keep of each history, given the spaces of all fills in use or being made.
            unless_held: Name of a lease during which no micro-batch is recorded.

        Raises:
            LeaseError: Another worker took the lane over; nothing is recorded.
            HeldError: The lease ``unless_held`` is held.
            TickError: The view has no live generation.
        """
        with self.transaction() as connection:
            if unless_held is not None and is_held(connection, unless_held):
                raise HeldError(f"Micro-batches of view {view!r} wait for {unless_held}: record it a moment later.")
            found = _receiving(connection, view)
            if not found:
                raise TickError(f"View {view!r} has never been live: run `feast materialize` once, then its stream.")
            number, now = next_number(connection, view), now_us()
            # ends never fall along the numbers, and grow within a lane
            end_us = max(now, _last_end_us(connection, view), _last_end_us(connection, view, lane) + 1)
            insert_tick(
                connection, view, number, [fill for fill, _ in found], lane=lane, source=source,
                ranges=ranges_to_json(ranges), end_us=end_us, created_until_us=end_us,
                kept=kept_of(_spaces_in_use(connection, view)),
            )  # fmt: skip
            for partition, (_, position) in ranges.items():
                _advance(connection, view, source, partition, position)
        return self.tick(view, number)

    # ── what was recorded ────────────────────────────────────────────────────────────────────────────────

    def tick(self, view: str, number: int) -> Tick:
        """The tick of that number."""
        (tick,) = self._ticks(ticks.c.view == view, ticks.c.tick == number)
        return tick

    def open_tick(self, view: str, kind: str | None = None) -> Tick | None:
        """The tick of a job that is at work or was left unfinished, if any: one of each kind at most."""
        only = [] if kind is None else [ticks.c.kind == kind]
        found = self._ticks(ticks.c.view == view, ticks.c.state == "recorded", _OF_A_JOB, *only)
        return found[0] if found else None

    def open_micro_batches(self, view: str, lane: str | None = None) -> list[Tick]:
        """Micro-batches of a view, or of one lane, that are at work or were left unfinished, oldest first."""
        only = [_OF_A_STREAM if lane is None else ticks.c.lane == lane]
        return self._ticks(ticks.c.view == view, ticks.c.state == "recorded", *only)

    def newest(self, view: str) -> tuple[int, Tick | None]:
        """The largest number given in ``view``, 0 before the first, and its jobs' last tick that was not voided."""
        with self.reading() as connection:
            number = _largest(connection, view)
        valid = self._ticks(ticks.c.view == view, ticks.c.state != "abandoned", _OF_A_JOB)
        return number, (valid[-1] if valid else None)

    def last_tick(self, view: str, kind: str | None = None) -> Tick | None:
        """The last tick of a job whose rows reached the online store, of any kind or of one."""
        only = [] if kind is None else [ticks.c.kind == kind]
        found = self._ticks(ticks.c.view == view, ticks.c.state.in_(_APPLIED), _OF_A_JOB, *only)
        return found[-1] if found else None

    def applied_ticks(self, view: str) -> list[Tick]:
        """Ticks of jobs whose rows reached the online store, oldest first."""
        return self._ticks(ticks.c.view == view, ticks.c.state.in_(_APPLIED), _OF_A_JOB)

    def published_ticks(self, view: str, *, end_after_us: int = 0, after: int = 0) -> list[Tick]:
        """Published ticks of jobs that end after a time, and have numbers after ``after``, oldest first."""
        later = (ticks.c.end_us > end_after_us, ticks.c.tick > after)
        return self._ticks(ticks.c.view == view, ticks.c.state == "published", _OF_A_JOB, *later)

    def micro_batches(self, view: str, after: int = 0) -> list[Tick]:
        """Published micro-batches that have numbers after ``after`` and were not forgotten, oldest first."""
        return self._ticks(ticks.c.view == view, ticks.c.state == "published", _OF_A_STREAM, ticks.c.tick > after)

    def ticks_after(self, view: str, refresh: int) -> list[Tick]:
        """Published ticks, a stream's too, that were recorded after the refresh of that number, oldest first."""
        published = (ticks.c.state == "published", ticks.c.kind == "incremental")
        return self._ticks(ticks.c.view == view, ticks.c.tick > refresh, *published)

    def published_numbers(self, view: str, first: int) -> set[int]:
        """Numbers of the published micro-batches from ``first`` on."""
        mine = (ticks.c.view == view, ticks.c.state == "published", _OF_A_STREAM, ticks.c.tick >= first)
        with self.reading() as connection:
            return {int(number) for number in connection.scalars(sa.select(ticks.c.tick).where(*mine))}

    def stream_end_us(self, view: str) -> int | None:
        """End of the view's last micro-batch; None where it never had one, that is: no stream feeds it."""
        query = sa.select(ticks.c.end_us).where(ticks.c.view == view, _OF_A_STREAM).order_by(ticks.c.tick.desc())
        with self.reading() as connection:
            found = connection.scalar(query.limit(1))
        return None if found is None else int(found)

    def last_published_us(self, view: str) -> int:
        """When the last publication of a tick of ``view`` was, of any kind; 0 before the first."""
        with self.reading() as connection:
            return _last_published_us(connection, view)

    def counts(self, view: str, number: int | None = None) -> dict[str, int]:
        """Behaviors by what became of them, of one tick or of all of a view's ticks."""
        return self._counts(tick_counts.c.view == view, *([] if number is None else [tick_counts.c.tick == number]))

    def stream_counts(self, view: str) -> dict[str, int]:
        """Behaviors by what became of them, of all of a view's micro-batches, forgotten ones too."""
        return self._counts(tick_counts.c.view == view, sa.or_(tick_counts.c.tick == FOLDED, _counted_by(_OF_A_STREAM)))

    # ── progress ─────────────────────────────────────────────────────────────────────────────────────────

    def set_members(self, tick: Tick, members: int, digest: str, counts: Mapping[str, int]) -> Tick:
        """Record what a tick's membership turned out to hold."""
        with self.transaction() as connection:
            _update(connection, tick, members=members, digest=digest)
            _set_counts(connection, tick, counts)
        return self.tick(tick.view, tick.number)

    def update_tick(self, tick: Tick, **values: Any) -> Tick:
        """Set columns of a tick."""
        with self.transaction() as connection:
            _update(connection, tick, **values)
        return self.tick(tick.view, tick.number)

    def publish(
        self, tick: Tick, published_us: int, rows: int, logged: Sequence[Fill], found: MembersFound | None = None
    ) -> bool:
        """Commit a tick, with what it held where that stands nowhere yet; again, it changes nothing.

        Returns:
            False where another tick of the view was published at that time or later, or one of the fills ``logged``
            has changed its state: nothing is committed, and the log must be written again, with a later time. So
            published times grow within a view, whoever publishes.
        """
        with self.transaction() as connection:
            names = [fill.fill for fill in logged]
            found_now = connection.execute(sa.select(fills.c.fill, fills.c.state).where(fills.c.fill.in_(names)))
            unchanged = {(fill.fill, fill.state) for fill in logged} == {tuple(row) for row in found_now}
            last_us = _last_published_us(connection, tick.view, but=tick.number)
            if last_us >= published_us or not unchanged:
                return False
            values: dict[str, Any] = {"state": "published", "published_us": published_us, "rows": rows}
            if found is not None:
                values |= {"members": found.members, "digest": found.digest}
            recorded = sa.update(ticks).where(*_key(ticks, tick), ticks.c.state == "recorded").values(**values)
            if connection.execute(recorded).rowcount and found is not None:
                _set_counts(connection, tick, found.counts)
            _mark(connection, tick)
        return True

    def abandon(self, tick: Tick) -> None:
        """Void a tick that had no effect, what it counted, and the fill that it was to make.

        A refresh that was recorded after an incremental one takes over its members, until they are recorded anew.
        """
        with self.transaction() as connection:
            _set_counts(connection, tick, {})
            _update(connection, tick, state="abandoned")
            if tick.kind == "full":
                connection.execute(sa.update(fills).where(fills.c.fill.in_(tick.fills)).values(state="retired"))
                return
            later = (ticks.c.view == tick.view, ticks.c.tick > tick.number)
            started = {"start_us": tick.start_us, "created_from_us": tick.created_from_us}
            waiting = sa.update(ticks).where(*later, ticks.c.kind == "full", ticks.c.state == "recorded")
            connection.execute(waiting.values(**started, members=None, digest=None))

    def void_counts(self, tick: Tick) -> None:
        """Forget what a tick counted: another one counts the same behaviors."""
        with self.transaction() as connection:
            _set_counts(connection, tick, {})

    def make_ready(self, tick: Tick, rows: int) -> Tick:
        """A refresh is done: its fill receives ticks, and waits for its cutover."""
        with self.transaction() as connection:
            connection.execute(sa.update(fills).where(fills.c.fill == tick.fills[0]).values(state="ready", rows=rows))
            _update(connection, tick, state="written", rows=rows)
            _mark(connection, tick)
        return self.tick(tick.view, tick.number)

    def prune(self, view: str, before_us: int, counts_before_us: int | None = None) -> int:
        """Forget published micro-batches that ended before a time, but for each lane's last; how many.

        What those that ended before ``counts_before_us`` counted (by default the same time) is kept together under
        the number ``FOLDED``.
        """
        until = before_us if counts_before_us is None else counts_before_us
        done = (_OF_A_STREAM, ticks.c.state == "published")
        with self.transaction() as connection:
            going = (tick_counts.c.view == view, _counted_by(*done, ticks.c.end_us < until))
            counted = sa.select(tick_counts.c.what, sa.func.sum(tick_counts.c.behaviors)).where(*going)
            for what, count in connection.execute(counted.group_by(tick_counts.c.what)).all():
                _add_folded(connection, view, what, int(count))
            connection.execute(sa.delete(tick_counts).where(*going))
            of_view = ticks.c.view == view
            last = sa.select(sa.func.max(ticks.c.tick)).where(of_view, _OF_A_STREAM).group_by(ticks.c.lane)
            old = (of_view, *done, ticks.c.end_us < before_us, ticks.c.tick.not_in(list(connection.scalars(last))))
            return int(connection.execute(sa.delete(ticks).where(*old)).rowcount)

    def _ticks(self, *where: Any) -> list[Tick]:
        with self.reading() as connection:
            query = sa.select(ticks).where(*where).order_by(ticks.c.tick)
            return [Tick.of(row) for row in connection.execute(query).mappings()]

    def _counts(self, *where: Any) -> dict[str, int]:
        query = sa.select(tick_counts.c.what, sa.func.sum(tick_counts.c.behaviors)).where(*where)
        with self.reading() as connection:
            rows = connection.execute(query.group_by(tick_counts.c.what).order_by(tick_counts.c.what))
            return {what: int(count) for what, count in rows}


def next_number(connection: Connection, view: str, after: int | None = None) -> int:
    """The number of the next tick of a view; raises OvertakenError where ``after`` is not the newest any more."""
    newest = _largest(connection, view)
    if after is not None and newest != after:
        raise OvertakenError(
            f"View {view!r}: tick {newest} was recorded meanwhile, after tick {after}: look again at what is due."
        )
    return newest + 1


def insert_tick(connection: Connection, view: str, number: int, targets: Sequence[str], **values: Any) -> None:
    """Insert a recorded tick that writes the fills ``targets``; incremental unless ``kind`` says otherwise."""
    row = {"kind": "incremental", "state": "recorded", "fills": json.dumps(list(targets)), "recorded_us": now_us()}
    connection.execute(sa.insert(ticks).values(view=view, tick=number, **row | values))


def _largest(connection: Connection, view: str) -> int:
    return int(connection.scalar(sa.select(sa.func.max(ticks.c.tick)).where(ticks.c.view == view)) or 0)


def _receiving(connection: Connection, view: str) -> Sequence[tuple[str, str]]:
    """Fills that receive ticks, with their spaces, oldest first."""
    query = sa.select(fills.c.fill, fills.c.space).where(fills.c.view == view, fills.c.state.in_(RECEIVING))
    return [(fill, space) for fill, space in connection.execute(query.order_by(fills.c.made_us))]


def _spaces_in_use(connection: Connection, view: str) -> list[str]:
    """Spaces of the fills that receive ticks, or will."""
    mine = (fills.c.view == view, fills.c.state.in_((*RECEIVING, "building")))
    return sorted(set(connection.scalars(sa.select(fills.c.space).where(*mine))))


def _last_end_us(connection: Connection, view: str, lane: str | None = None) -> int:
    """End of the newest tick of a view, or of one lane; 0 before the first."""
    mine = ticks.c.view == view if lane is None else sa.and_(ticks.c.view == view, ticks.c.lane == lane)
    query = sa.select(ticks.c.end_us).where(mine).order_by(ticks.c.tick.desc()).limit(1)
    return int(connection.scalar(query) or 0)


def _last_published_us(connection: Connection, view: str, but: int = 0) -> int:
    published = (ticks.c.view == view, ticks.c.published_us.is_not(None), ticks.c.tick != but)
    query = sa.select(ticks.c.published_us).where(*published).order_by(ticks.c.published_us.desc()).limit(1)
    return int(connection.scalar(query) or 0)


def _counted_by(*of_ticks: Any) -> Any:
    """Whether the tick of a row of counts is so."""
    own = (ticks.c.view == tick_counts.c.view, ticks.c.tick == tick_counts.c.tick)
    return sa.select(ticks.c.tick).where(*own, *of_ticks).correlate(tick_counts).exists()


def _advance(connection: Connection, view: str, source: str, partition: int, position: int) -> None:
    key = (positions.c.view == view, positions.c.source == source, positions.c.partition == partition)
    if not connection.execute(sa.update(positions).where(*key).values(position=position)).rowcount:
        values = {"view": view, "source": source, "partition": partition, "position": position}
        connection.execute(sa.insert(positions).values(**values))


def _add_folded(connection: Connection, view: str, what: str, count: int) -> None:
    key = (tick_counts.c.view == view, tick_counts.c.tick == FOLDED, tick_counts.c.what == what)
    more = sa.update(tick_counts).where(*key).values(behaviors=tick_counts.c.behaviors + count)
    if not connection.execute(more).rowcount:
        connection.execute(sa.insert(tick_counts).values(view=view, tick=FOLDED, what=what, behaviors=count))


def _mark(connection: Connection, tick: Tick) -> None:
    key = (marks.c.view == tick.view, marks.c.series == tick.series)
    if not connection.execute(sa.update(marks).where(*key).values(tick=tick.number)).rowcount:
        connection.execute(sa.insert(marks).values(view=tick.view, series=tick.series, tick=tick.number))


def _set_counts(connection: Connection, tick: Tick, counts: Mapping[str, int]) -> None:
    connection.execute(sa.delete(tick_counts).where(*_key(tick_counts, tick)))
    rows = [{"view": tick.view, "tick": tick.number, "what": what, "behaviors": n} for what, n in counts.items()]
    if rows:
        connection.execute(sa.insert(tick_counts), rows)


def _update(connection: Connection, tick: Tick, **values: Any) -> None:
    connection.execute(sa.update(ticks).where(*_key(ticks, tick)).values(**values))


def _key(table: sa.Table, tick: Tick) -> tuple[Any, Any]:
    return table.c.view == tick.view, table.c.tick == tick.number

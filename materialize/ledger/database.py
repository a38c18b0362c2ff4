"""The ledger: what was done, in SQL. Every state a job may be found in after a crash stands here.

Membership of a tick is recorded before anything is computed; a tick, a fill or a cutover counts only
once its row says so. SQLite by default; any database SQLAlchemy speaks to.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from feast_embeddings.materialize.clock import now_us
from feast_embeddings.materialize.ledger import schema as schema
from feast_embeddings.materialize.ledger.records import Fill, Generation, Serving, Space, Tick
from feast_embeddings.materialize.ledger.schema import fills, generations, open_engine, spaces, tick_counts, ticks
from feast_embeddings.models.errors import LedgerError, OvertakenError, SpaceError

_APPLIED = ("written", "published")
Guard = Callable[[Connection], None]
"""Runs first in a transaction; what it raises undoes that transaction."""


class Ledger:
    """Reads and writes the ledger tables; every method is one transaction."""

    def __init__(self, url: str) -> None:
        try:
            self.url = sa.engine.make_url(url)
            self._engine = open_engine(self.url)
        except (sa.exc.ArgumentError, ImportError) as error:
            raise LedgerError(
                f"The ledger's URL names no database that can be opened ({error}). Check batch_engine.ledger in "
                "feature_store.yaml: an SQLAlchemy URL, whose driver is installed; or leave it out, for SQLite."
            ) from error
        self._guards: list[Guard] = []
        self._check_schema()

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """One transaction; commits at the end, rolls back on an error. Writers wait for each other."""
        with self.unguarded() as connection:
            for guard in self._guards:
                guard(connection)
            yield connection

    @contextmanager
    def unguarded(self) -> Iterator[Connection]:
        """A transaction that no guard of :meth:`guarded` stops."""
        with self._within(self._engine) as connection:
            yield connection

    @contextmanager
    def guarded(self, guard: Guard) -> Iterator[None]:
        """Inside the block, every write of this ledger runs ``guard`` first, in the transaction of that write."""
        self._guards.append(guard)
        try:
            yield
        finally:
            self._guards.remove(guard)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """One transaction that only reads, and waits for no writer."""
        with self._within(self._engine.execution_options(reads=True)) as connection:
            yield connection

    @contextmanager
    def _within(self, engine: Engine) -> Iterator[Connection]:
        try:
            with engine.begin() as connection:
                yield connection
        except sa.exc.DBAPIError as error:
            raise LedgerError(
                f"Ledger {self.url.render_as_string()}: {error.orig}. Check that it can be reached and written."
            ) from error

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    # ── ticks ────────────────────────────────────────────────────────────────────────────────────────────

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
        with self.transaction() as connection:
            number = _next_tick(connection, view, after)
            membership = {"start_us": start_us, "end_us": end_us, "created_from_us": created_from_us}
            _insert_tick(connection, view, number, "incremental", targets, membership, created_until_us)
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
        with self.transaction() as connection:
            number = _next_tick(connection, view, after)
            name = f"{view}-{number}-{space[:8]}"
            membership = {"start_us": start_us, "end_us": end_us, "created_from_us": created_from_us}
            _insert_tick(connection, view, number, "full", [name], membership)
            values = {"fill": name, "view": view, "encoder": encoder, "space": space, "tick": number}
            connection.execute(sa.insert(fills).values(**values, state="building", rows=0, made_us=now_us()))
        return self.tick(view, number)

    def tick(self, view: str, number: int) -> Tick:
        """The tick of that number."""
        (tick,) = self._ticks(ticks.c.view == view, ticks.c.tick == number)
        return tick

    def open_tick(self, view: str, kind: str | None = None) -> Tick | None:
        """The tick that is at work or was left unfinished, if any: one of each kind at most."""
        only = [] if kind is None else [ticks.c.kind == kind]
        found = self._ticks(ticks.c.view == view, ticks.c.state == "recorded", *only)
        return found[0] if found else None

    def newest(self, view: str) -> tuple[int, Tick | None]:
        """The largest number given in ``view``, 0 before the first, and its last tick that was not voided."""
        with self.reading() as connection:
            number = _largest(connection, view)
        valid = self._ticks(ticks.c.view == view, ticks.c.state != "abandoned")
        return number, (valid[-1] if valid else None)

    def last_tick(self, view: str, kind: str | None = None) -> Tick | None:
        """The last tick whose rows reached the online store, of any kind or of one."""
        only = [] if kind is None else [ticks.c.kind == kind]
        found = self._ticks(ticks.c.view == view, ticks.c.state.in_(_APPLIED), *only)
        return found[-1] if found else None

    def applied_ticks(self, view: str) -> list[Tick]:
        """Ticks whose rows reached the online store, oldest first."""
        return self._ticks(ticks.c.view == view, ticks.c.state.in_(_APPLIED))

    def published_ticks(self, view: str, *, end_after_us: int = 0, after: int = 0) -> list[Tick]:
        """Published ticks that end after a time, and have numbers after ``after``, oldest first."""
        later = (ticks.c.end_us > end_after_us, ticks.c.tick > after)
        return self._ticks(ticks.c.view == view, ticks.c.state == "published", *later)

    def set_members(self, tick: Tick, members: int, digest: str, counts: Mapping[str, int]) -> Tick:
        """Record what a tick's membership turned out to hold."""
        rows = [
            {"view": tick.view, "tick": tick.number, "what": what, "behaviors": count} for what, count in counts.items()
        ]
        with self.transaction() as connection:
            self._update_tick(connection, tick, members=members, digest=digest)
            connection.execute(sa.delete(tick_counts).where(*_key(tick_counts, tick)))
            if rows:
                connection.execute(sa.insert(tick_counts), rows)
        return self.tick(tick.view, tick.number)

    def counts(self, view: str, number: int | None = None) -> dict[str, int]:
        """Behaviors by what became of them, of one tick or of all of a view's ticks."""
        query = sa.select(tick_counts.c.what, sa.func.sum(tick_counts.c.behaviors)).where(tick_counts.c.view == view)
        if number is not None:
            query = query.where(tick_counts.c.tick == number)
        with self.reading() as connection:
            return {what: int(count) for what, count in connection.execute(query.group_by(tick_counts.c.what))}

    def update_tick(self, tick: Tick, **values: Any) -> Tick:
        """Set columns of a tick."""
        with self.transaction() as connection:
            self._update_tick(connection, tick, **values)
        return self.tick(tick.view, tick.number)

    def last_published_us(self, view: str) -> int:
        """When the last publication of a tick of ``view`` was, of any kind; 0 before the first."""
        query = sa.select(sa.func.max(ticks.c.published_us)).where(ticks.c.view == view)
        with self.reading() as connection:
            return int(connection.scalar(query) or 0)

    def abandon(self, tick: Tick) -> None:
        """Void a tick that had no effect, what it counted, and the fill that it was to make.

        A refresh that was recorded after an incremental one takes over its members, until they are recorded anew.
        """
        with self.transaction() as connection:
            connection.execute(sa.delete(tick_counts).where(*_key(tick_counts, tick)))
            self._update_tick(connection, tick, state="abandoned")
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
            connection.execute(sa.delete(tick_counts).where(*_key(tick_counts, tick)))

    def make_ready(self, tick: Tick, rows: int) -> Tick:
        """A refresh is done: its fill receives ticks, and waits for its cutover."""
        with self.transaction() as connection:
            connection.execute(sa.update(fills).where(fills.c.fill == tick.fills[0]).values(state="ready", rows=rows))
            self._update_tick(connection, tick, state="written", rows=rows)
        return self.tick(tick.view, tick.number)

    # ── spaces and fills ─────────────────────────────────────────────────────────────────────────────────

    def register_space(self, space: str, encoder: str, dim: int, numeric_path: str) -> None:
        """Record a space and the numeric path it is computed on; a space belongs to one encoder name."""
        with self.transaction() as connection:
            owner = connection.scalar(sa.select(spaces.c.encoder).where(spaces.c.space == space))
            if owner is None:
                values = {"space": space, "encoder": encoder, "dim": dim, "numeric_path": numeric_path}
                connection.execute(sa.insert(spaces).values(**values, registered_us=now_us()))
        if owner not in (None, encoder):
            raise SpaceError(
                f"Space {space} already belongs to encoder {owner!r}, and cannot be {encoder!r}'s too: "
                "give both views the same encoder name, or train another encoder."
            )

    def spaces(self, encoder: str) -> list[Space]:
        """Spaces that an encoder name has been served in, oldest first."""
        query = sa.select(spaces).where(spaces.c.encoder == encoder).order_by(spaces.c.registered_us)
        with self.reading() as connection:
            return [Space(**row) for row in connection.execute(query).mappings()]

    def fill(self, name: str) -> Fill:
        """The fill of that name."""
        return self.fills(name=name)[0]

    def fills(
        self,
        *,
        name: str | None = None,
        view: str | None = None,
        encoder: str | None = None,
        states: Sequence[str] | None = None,
    ) -> list[Fill]:
        """Fills, oldest first, filtered by what is given."""
        wanted = {fills.c.fill: name, fills.c.view: view, fills.c.encoder: encoder}
        query = sa.select(fills).where(*(column == value for column, value in wanted.items() if value is not None))
        if states is not None:
            query = query.where(fills.c.state.in_(states))
        with self.reading() as connection:
            rows = connection.execute(query.order_by(fills.c.made_us, fills.c.tick)).mappings().all()
        return [Fill(**row) for row in rows]

    def update_fill(self, name: str, **values: Any) -> None:
        """Set columns of a fill."""
        with self.transaction() as connection:
            connection.execute(sa.update(fills).where(fills.c.fill == name).values(**values))

    # ── generations ──────────────────────────────────────────────────────────────────────────────────────

    def record_generation(self, encoder: str, manifest: Mapping[str, str], *, rollback: bool = False) -> Generation:
        """Record a cutover that is about to happen; a pending one of the same fills is taken up again."""
        pending = [g for g in self.generations(encoder) if g.cutover_us is None]
        if pending and dict(pending[-1].fills) == dict(manifest):
            return pending[-1]
        with self.transaction() as connection:
            last = sa.select(sa.func.max(generations.c.generation)).where(generations.c.encoder == encoder)
            number = (connection.scalar(last) or 0) + 1
            row = {
                "encoder": encoder,
                "generation": number,
                "fills": json.dumps(dict(manifest)),
                "rollback": rollback,
            }
            connection.execute(sa.insert(generations).values(**row, window_start_us=now_us()))
        return self.generations(encoder)[-1]

    def generations(self, encoder: str) -> list[Generation]:
        """Generations of an encoder, oldest first."""
        query = sa.select(generations).where(generations.c.encoder == encoder).order_by(generations.c.generation)
        with self.reading() as connection:
            rows = connection.execute(query).mappings().all()
        return [Generation(**{**row, "fills": json.loads(row["fills"])}) for row in rows]

    def live_generation(self, encoder: str) -> Generation | None:
        """The generation that the last finished cutover made live."""
        done = [g for g in self.generations(encoder) if g.cutover_us is not None]
        return done[-1] if done else None

    def finish_cutover(self, generation: Generation, cutover_us: int, states: Mapping[str, str]) -> None:
        """Commit a cutover: its time, the states of fills (name → state), and the full ticks it publishes."""
        live = [name for name, state in states.items() if state == "live"]
        with self.transaction() as connection:
            key = (
                generations.c.encoder == generation.encoder,
                generations.c.generation == generation.generation,
            )
            connection.execute(sa.update(generations).where(*key).values(cutover_us=cutover_us))
            for name, state in states.items():
                connection.execute(sa.update(fills).where(fills.c.fill == name).values(state=state))
            owners = connection.execute(sa.select(fills.c.view, fills.c.tick).where(fills.c.fill.in_(live))).all()
            for view, number in owners:
                published = {"state": "published", "published_us": cutover_us}
                written = (ticks.c.view == view, ticks.c.tick == number, ticks.c.state == "written")
                connection.execute(sa.update(ticks).where(*written).values(**published))

    def serving(self, view: str, encoder: str) -> list[Serving]:
        """Which fill of ``view`` every cutover made live, oldest first."""
        space_of = {fill.fill: fill.space for fill in self.fills(view=view)}
        return [
            Serving(g.cutover_us, g.window_start_us or g.cutover_us, g.fills[view], space_of[g.fills[view]])
            for g in self.generations(encoder)
            if g.cutover_us is not None and view in g.fills
        ]

    # ── private ──────────────────────────────────────────────────────────────────────────────────────────

    def _ticks(self, *where: Any) -> list[Tick]:
        with self.reading() as connection:
            query = sa.select(ticks).where(*where).order_by(ticks.c.tick)
            return [Tick.of(row) for row in connection.execute(query).mappings()]

    def _update_tick(self, connection: Connection, tick: Tick, **values: Any) -> None:
        connection.execute(sa.update(ticks).where(*_key(ticks, tick)).values(**values))

    def _check_schema(self) -> None:
        with self.transaction() as connection:
            schema.metadata.create_all(connection)
            found = connection.scalar(sa.select(sa.func.max(schema.versions.c.version)))
            if found is None or found < schema.SCHEMA_VERSION:
                connection.execute(sa.insert(schema.versions).values(version=schema.SCHEMA_VERSION))
        if found is not None and found > schema.SCHEMA_VERSION:
            raise LedgerError(
                f"Ledger {self.url.render_as_string()} has schema version {found}, and this feast-embeddings knows "
                f"{schema.SCHEMA_VERSION}: upgrade the package."
            )


def _next_tick(connection: Connection, view: str, after: int | None) -> int:
    newest = _largest(connection, view)
    if after is not None and newest != after:
        raise OvertakenError(
            f"View {view!r}: tick {newest} was recorded meanwhile, after tick {after}: look again at what is due."
        )
    return newest + 1


def _largest(connection: Connection, view: str) -> int:
    """The largest number given in a view: its ticks and the micro-batches of its stream share one series."""
    tables: list[Any] = [ticks]
    if sa.inspect(connection).has_table(schema.STREAM_TICKS):
        tables.append(sa.table(schema.STREAM_TICKS, sa.column("view"), sa.column("tick")))
    found = [connection.scalar(sa.select(sa.func.max(each.c.tick)).where(each.c.view == view)) for each in tables]
    return max(int(number or 0) for number in found)


def _insert_tick(
    connection: Connection,
    view: str,
    number: int,
    kind: str,
    targets: Sequence[str],
    membership: Mapping[str, int | None],
    created_until_us: int | None = None,
) -> None:
    now = now_us()
    until = now if created_until_us is None else created_until_us
    row = {
        "view": view,
        "tick": number,
        "kind": kind,
        "state": "recorded",
        "fills": json.dumps(list(targets)),
    }
    connection.execute(sa.insert(ticks).values(**row, **membership, created_until_us=until, recorded_us=now))


def _key(table: sa.Table, tick: Tick) -> tuple[Any, Any]:
    return table.c.view == tick.view, table.c.tick == tick.number

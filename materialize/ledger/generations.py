"""Spaces, fills and generations in the ledger: what is made, what is live, what is retained."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from feast_embeddings.materialize.clock import now_us
from feast_embeddings.materialize.ledger.database import Database
from feast_embeddings.materialize.ledger.records import Fill, Generation, Serving, Space, Tick
from feast_embeddings.materialize.ledger.schema import fills, generations, marks, spaces, ticks
from feast_embeddings.models.errors import SpaceError


class Generations(Database):
    """Reads and writes spaces, fills and generations; every method is one transaction."""

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

    def begin_cutover(self, generation: Generation) -> int:
        """The time of a cutover, later than any publication in its views; what is published from now on is later."""
        views = list(generation.fills)
        mine = (ticks.c.view.in_(views), ticks.c.state == "published")
        made = sa.select(fills.c.tick).where(fills.c.fill.in_(generation.fills.values()), fills.c.view == ticks.c.view)
        with self.transaction() as connection:
            last_us = connection.scalar(sa.select(sa.func.max(ticks.c.published_us)).where(*mine))
            cutover_us = max(now_us(), int(last_us or 0) + 1)
            waiting = (ticks.c.view.in_(views), ticks.c.state == "written", ticks.c.tick.in_(made))
            connection.execute(sa.update(ticks).where(*waiting).values(published_us=cutover_us))
        return cutover_us

    def finish_cutover(
        self,
        generation: Generation,
        cutover_us: int,
        states: Mapping[str, str],
        logged: Mapping[str, Collection[int]] | None = None,
    ) -> bool:
        """Commit a cutover: its time, the states of fills (name → state), and the full ticks it publishes.

        Returns:
            False where a tick was published into a fill that becomes live, after those that are ``logged`` for it
            (fill → numbers): nothing is committed.
        """
        live = [name for name, state in states.items() if state == "live"]
        with self.transaction() as connection:
            for name, known in (logged or {}).items():
                if _ticks_of(connection, name) - set(known):
                    return False
            key = (
                generations.c.encoder == generation.encoder,
                generations.c.generation == generation.generation,
            )
            connection.execute(sa.update(generations).where(*key).values(cutover_us=cutover_us))
            for name, state in states.items():
                connection.execute(sa.update(fills).where(fills.c.fill == name).values(state=state))
            owners = connection.execute(sa.select(fills.c.view, fills.c.tick).where(fills.c.fill.in_(live))).all()
            for view, number in owners:
                # what came before it is of no account any more: a refresh is how an emptied server is filled again
                earlier = (marks.c.view == view, marks.c.series != "refreshes", marks.c.tick < number)
                connection.execute(sa.delete(marks).where(*earlier))
                published = {"state": "published", "published_us": cutover_us}
                written = (ticks.c.view == view, ticks.c.tick == number, ticks.c.state == "written")
                connection.execute(sa.update(ticks).where(*written).values(**published))
        return True

    def reopen(self, tick: Tick) -> None:
        """A refresh that was ready, before anything was live, is to be written again: Redis has lost it."""
        with self.transaction() as connection:
            encoder = sa.select(fills.c.encoder).where(fills.c.fill == tick.fills[0]).scalar_subquery()
            pending = (generations.c.encoder == encoder, generations.c.cutover_us.is_(None))
            connection.execute(sa.delete(generations).where(*pending))
            mine = (ticks.c.view == tick.view, ticks.c.tick == tick.number)
            connection.execute(sa.update(ticks).where(*mine).values(state="recorded", published_us=None))
            connection.execute(sa.update(fills).where(fills.c.fill == tick.fills[0]).values(state="building"))

    def serving(self, view: str, encoder: str) -> list[Serving]:
        """Which fill of ``view`` every cutover made live, oldest first."""
        space_of = {fill.fill: fill.space for fill in self.fills(view=view)}
        return [
            Serving(g.cutover_us, g.window_start_us or g.cutover_us, g.fills[view], space_of[g.fills[view]])
            for g in self.generations(encoder)
            if g.cutover_us is not None and view in g.fills
        ]


def _ticks_of(connection: Connection, fill: str) -> set[int]:
    """Published ticks that were recorded after the refresh that a fill was made by."""
    made = sa.select(fills.c.view, fills.c.tick).where(fills.c.fill == fill)
    view, refresh = connection.execute(made).one()
    later = (ticks.c.view == view, ticks.c.tick > refresh, ticks.c.state == "published", ticks.c.kind == "incremental")
    return {int(number) for number in connection.scalars(sa.select(ticks.c.tick).where(*later))}

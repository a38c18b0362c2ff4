"""Which ticks of a user view each tick of an item view follows, in the ledger: each is followed once.

An item tick's membership is the list of those ticks. It is recorded together with the tick, before anything is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Final

import sqlalchemy as sa

from feast_embeddings.materialize.clock import now_us
from feast_embeddings.materialize.ledger.ledger import Ledger
from feast_embeddings.materialize.ledger.records import RECEIVING, Tick
from feast_embeddings.materialize.ledger.schema import fills, followed_ticks, ticks
from feast_embeddings.materialize.ledger.ticks import insert_tick, next_number

MOST_MICRO_BATCHES: Final = 256
"""Micro-batches of a stream that one item tick follows at most; of ticks of batch jobs it follows one."""


class Follows:
    """Reads and writes what an item view follows.

    Args:
        ledger: The ledger.
        view: The item view.
        users: The user view that it follows.
    """

    def __init__(self, ledger: Ledger, view: str, users: str) -> None:
        self.ledger, self.view, self.users = ledger, view, users

    def waiting(self, end_us: int) -> list[Tick]:
        """What the next item tick is to follow: published ticks up to a time that none has followed, oldest first.

        Nothing that was published before the oldest fill in use was begun: that fill's means start after it.
        """
        using = self.ledger.fills(view=self.view, states=RECEIVING)
        if not using:
            return []
        since, done = min(fill.made_us for fill in using), self._followed()
        found = [
            tick
            for tick in self._published()
            if (tick.published_us or 0) > since and tick.end_us <= end_us and tick.number not in done
        ]
        if found and not found[0].streamed:
            return found[:1]
        return list(takewhile(lambda tick: tick.streamed, found))[:MOST_MICRO_BATCHES]

    def record(self, following: Sequence[Tick]) -> Tick:
        """Record an item tick that follows these ticks, into every fill in use."""
        receiving = (fills.c.view == self.view, fills.c.state.in_(RECEIVING))
        with self.ledger.transaction() as connection:
            last_us = connection.scalar(sa.select(sa.func.max(ticks.c.end_us)).where(ticks.c.view == self.view))
            number, now = next_number(connection, self.view), now_us()
            targets = connection.scalars(sa.select(fills.c.fill).where(*receiving).order_by(fills.c.made_us)).all()
            end_us = max(int(last_us or 0), *(tick.end_us for tick in following))
            insert_tick(connection, self.view, number, targets, end_us=end_us, created_until_us=now)
            followed = [{"view": self.view, "tick": number, "followed": tick.number} for tick in following]
            connection.execute(sa.insert(followed_ticks), followed)
        return self.ledger.tick(self.view, number)

    def followed_by(self, tick: Tick) -> list[Tick]:
        """The ticks that an item tick follows, oldest first."""
        numbers = self._followed(tick.number)
        return [each for each in self._published() if each.number in numbers]

    def _followed(self, number: int | None = None) -> set[int]:
        """Numbers of the ticks that one item tick follows, or that any does which was not voided."""
        mine = followed_ticks.c.view == self.view, ticks.c.view == self.view, ticks.c.tick == followed_ticks.c.tick
        query = sa.select(followed_ticks.c.followed).where(*mine)
        query = query.where(ticks.c.state != "abandoned" if number is None else ticks.c.tick == number)
        with self.ledger.reading() as connection:
            return {int(each) for each in connection.scalars(query)}

    def _published(self) -> list[Tick]:
        """Published ticks of the user view that brought behaviors of their own, each behavior once, by number."""
        batch, micro_batches = self.ledger.published_ticks(self.users), self.ledger.micro_batches(self.users)
        streamed = self.ledger.stream_end_us(self.users) is not None
        found = [tick for tick in batch if (tick.kind == "incremental" or not streamed) and _brings(tick, batch)]
        return sorted([*found, *micro_batches], key=lambda tick: tick.number)


def _brings(tick: Tick, others: Sequence[Tick]) -> bool:
    """Whether a tick has members that no other one counts: the first refresh holds the past, a bridged one nothing."""
    if tick.kind == "incremental":
        return True
    return tick.start_us is not None and not any(other.bridges(tick) for other in others)

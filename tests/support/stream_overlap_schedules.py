"""Schedules in which a stream's micro-batches run beside a refresh, drawn from a seed: either may be stopped anywhere.

However they overlap, they end as the refresh first and the micro-batches afterwards.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from fault_schedules import DivergedError
from overlap_schedules import POLICIES, check, check_served, quick
from repo_fixture import MakeRepo, SmallRepo, StoppedError, at, batch_bytes, day, tiny_encoder
from stream_fixture import SINCE, by_hand, clicks, send, streamed

from feast_embeddings.materialize.ledger import holder
from feast_embeddings.materialize.ticks import beside, listening
from feast_embeddings.models.errors import LeaseError, StreamError

CASES = [(policy, context) for policy in POLICIES for context in (10, 14)]
"""Policies, each with an encoder to refresh to whose context is that of the live one, or longer."""
_USER = "user_embedding"
_BATCHES = 6


@dataclass
class StreamOverlapWorld:
    """A live repo that a stream feeds, with another encoder declared, and what it should come to."""

    repo: SmallRepo
    start: Any
    undisturbed: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def made(cls, make_repo: MakeRepo, policy: str, context: int) -> StreamOverlapWorld:
        """Live as of ``SINCE``, with one micro-batch behind it; the items of the new encoder wait."""
        repo = streamed(make_repo, policy)
        with at(day(SINCE + 0.2)), by_hand(repo) as lane:
            send(repo, clicks(8, 99, SINCE, SINCE + 0.1))
            lane.tick()
        repo.encode_with(tiny_encoder(3, context=context))
        with at(day(SINCE + 0.2)):
            repo.run(day(SINCE), "item_embedding", refresh=True)
        world = cls(repo, repo.freeze())
        StreamOverlapSchedule(world, None).run()
        world.undisturbed = compared(repo)
        return world


@dataclass
class StreamOverlapSchedule:
    """One run of a :class:`StreamOverlapWorld`; without ``chance``, one after the other."""

    world: StreamOverlapWorld
    chance: random.Random | None
    kills: bool = False
    faults: Counter[str] = field(default_factory=Counter)
    _applied: int = 0

    def run(self) -> None:
        """Refresh, and apply the micro-batches; compare.

        Raises:
            DivergedError: The end is another one, or what was served is not what history says.
        """
        repo = self.world.repo
        os.chdir(repo.folder)
        repo.thaw(self.world.start)
        with quick(), alone_at_once(), at(day(7)):
            while not self._refreshed():
                self._micro_batches(0)  # what a stopped worker left must be finished by one
            self._micro_batches(_BATCHES)
        repo.retire()
        if self.world.undisturbed:
            check(self.world.undisturbed, compared(repo))
            check_served(repo)

    def _refreshed(self) -> bool:
        plain = SmallRepo(self.world.repo.folder, self.world.repo.connection, self.world.repo.project)
        last = plain.workspace.ledger.last_tick(_USER, "full")
        refreshing = last is None or last.number < 3
        with listening(self._listener()):
            try:
                plain.run(day(6.5), _USER, refresh=refreshing)
            except StoppedError:
                self.faults["refresh stopped"] += 1
                return False
            except StreamError:
                self.faults["refresh waited for a stopped worker"] += 1
                return False
        return True

    def _listener(self) -> Any:
        """At some steps of the refresh, micro-batches; at another one, maybe, a stop."""
        count, inside = 0, False
        chance = self.chance
        if chance is None:
            return lambda _: None
        beside = {chance.randint(1, 40) for _ in range(chance.randint(1, 3))}
        stop = chance.randint(1, 45) if chance.random() < 0.4 else 0

        def listener(step: str) -> None:
            nonlocal count, inside
            if inside:
                return
            count += 1
            if count in beside:
                inside = True
                self._micro_batches(chance.randint(1, 2), chance.randint(1, 12) if chance.random() < 0.4 else 0)
                inside = False
            if count == stop:
                raise StoppedError(step)

        return listener

    def _micro_batches(self, most: int, stop: int = 0) -> None:
        """A worker that applies some micro-batches, always of the same messages, and may be stopped at a step."""
        left = stop

        def listener(step: str) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise StoppedError(step)

        plain = SmallRepo(self.world.repo.folder, self.world.repo.connection, self.world.repo.project)
        if holder(plain.workspace.ledger, beside.hold_resource(plain.project, _USER)) is not None:
            self.faults["held back by the last round"] += 1  # a lane keeps its messages, and waits
            return
        with listening(listener):
            try:
                with by_hand(plain) as lane:
                    for _ in range(min(most, _BATCHES - self._applied)):
                        send(plain, clicks(8, self._applied, SINCE + 0.2, SINCE + 2.5))
                        self._applied += 1
                        lane.tick()
                        self.faults["micro-batches"] += 1
            except StoppedError:
                self.faults["worker stopped"] += 1
            except LeaseError:
                self.faults["worker fenced off"] += 1


@contextmanager
def alone_at_once() -> Iterator[None]:
    """No waiting for a worker that stands still in this thread."""
    before = beside.ALONE_S
    beside.ALONE_S = 0.0  # type: ignore[misc]
    try:
        yield
    finally:
        beside.ALONE_S = before  # type: ignore[misc]


def compared(repo: SmallRepo) -> dict[str, Any]:
    """What must not depend on the overlap: both fills, reads, histories, and every behavior counted once."""
    found: dict[str, Any] = {"history": batch_bytes(repo.histories())}
    found["read"] = (repo.vectors().space, repo.vectors().values.tobytes())
    for fill in repo.fills("live", "retained"):
        rows = repo.rows_of(fill.fill)
        found[f"{fill.state} fill"] = (rows.vectors.tobytes(), rows.tick_end_us.tolist(), rows.tick.tolist())
    ledger = repo.workspace.ledger
    found["counts"] = {what: n for what, n in ledger.stream_counts(_USER).items() if what != "late"}
    ticks = ledger.micro_batches(_USER)
    found["ticks"] = [(tick.number, tick.end_us, tick.members, tick.digest, tick.kept, tick.rows) for tick in ticks]
    found["staged"] = sorted(path.name for path in (repo.folder / "data/embeddings/log").rglob("*.arrow"))
    return found


__all__ = ["CASES", "DivergedError", "StreamOverlapSchedule", "StreamOverlapWorld"]

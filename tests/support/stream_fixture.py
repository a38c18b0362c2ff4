"""A small repo whose behaviors come from Redis Streams, and its micro-batches run by hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from repo_fixture import SmallRepo, day, rows, shop
from ticks_fixture import started

from feast_embeddings.materialize.ledger import Lease, Tick
from feast_embeddings.materialize.stream import (
    MicroBatches,
    RedisStreams,
    agreed_partitions,
    append_behaviors,
    decode,
    to_json_payloads,
)
from feast_embeddings.materialize.ticks import ViewWork

PARTITIONS = 2
LANE = "0/1"
SINCE = 4.0
"""Day up to which the refresh goes; the stream goes on from there."""


def streamed(make_repo: Any, policy: str = "Incremental()", **options: str) -> SmallRepo:
    """A repo that is live, and whose later behaviors are to come as a stream."""
    repo = started(make_repo, policy, days=SINCE, **options)
    past = shop(8)
    repo.deliver(past.filter(pc.less(past["at"].cast(pa.int64()), day(SINCE))), "shop")
    with repo.redis() as client:
        agreed_partitions(client, repo.project, "behaviors", PARTITIONS)
    return repo


def behavior(user: int, item: int, days: float, **more: Any) -> dict[str, Any]:
    """One behavior as a message has it."""
    at = day(days)
    return {"user": user, "item": item, "event": "view", "at": at, "id": f"{user}-{item}-{at}", **more}


def clicks(count: int, seed: int, start: float, end: float) -> list[dict[str, Any]]:
    """Behaviors of random users at random times."""
    rng = np.random.default_rng(seed)
    users, items = rng.integers(1, 13, count), rng.integers(101, 131, count)
    return [
        behavior(int(user), int(item), float(days))
        for user, item, days in zip(users, items, rng.uniform(start, end, count), strict=True)
    ]


def send(repo: SmallRepo, behaviors: Sequence[dict[str, Any]]) -> None:
    """Append messages to the repo's streams."""
    with repo.redis() as client:
        users = [each["user"] for each in behaviors]
        append_behaviors(client, repo.project, "behaviors", PARTITIONS, users, to_json_payloads(behaviors))


class ByHand:
    """A lane of everything, micro-batch by micro-batch."""

    def __init__(self, repo: SmallRepo, lateness_us: int | None = None) -> None:
        self.repo, self.workspace = repo, repo.workspace
        self.ledger = self.workspace.ledger
        self.lease = Lease(self.workspace.ledger, f"lane {LANE} by hand", 60)
        self.lease.acquire()
        spec = repo.spec()
        log = self.workspace.behavior_log(repo.store.registry, repo.project, spec)
        work = ViewWork(self.workspace, repo.server, spec, log, self.lease)
        work.ledger = self.workspace.ledger.under(self.lease.renew)
        self.ticks = MicroBatches(work, repo.project, LANE, lateness_us)
        self.source = RedisStreams(
            repo.redis,
            repo.project,
            "behaviors",
            spec.view,
            range(PARTITIONS),
            self.ledger.positions(spec.view, "behaviors"),
        )
        try:
            self.taken_up = self.ticks.take_up(self.source)
        except BaseException:
            self.lease.release()
            raise

    def tick(self, most: int = 1000) -> Tick | None:
        """One micro-batch from the source to the ledger; None where nothing waits."""
        delivery = self.source.next_batch(most, 0.01)
        if delivery is None:
            return None
        tick = self.ticks.record(delivery)
        applied = self.ticks.apply(tick, delivery, decode(delivery.payloads, self.ticks.contract))
        self.ticks.publish(applied)
        self.source.commit(delivery.positions)
        return applied.tick


@contextmanager
def by_hand(repo: SmallRepo, lateness_us: int | None = None) -> Iterator[ByHand]:
    """A lane, opened and let go. Where the block raises, only its lease is: a dead process holds none."""
    lane = ByHand(repo, lateness_us)
    try:
        yield lane
        lane.source.close()
    finally:
        lane.lease.release()


def as_rows(behaviors: Sequence[dict[str, Any]]) -> pa.Table:
    """Messages as raw rows of the behavior table."""
    return rows(**{name: [each[name] for each in behaviors] for name in ("user", "item", "event", "at", "id")})

"""How the streamed repo was made: its lanes are worked on by hand, so that each micro-batch is what was meant."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from earlier_head import at, click, day
from small_repo import Repo, deliver, lived, ranked, stopping_at

from feast_embeddings.materialize.erasure import forget
from feast_embeddings.materialize.leases import Lease
from feast_embeddings.materialize.members import BehaviorLog
from feast_embeddings.materialize.stores import online_store_of
from feast_embeddings.materialize.stream.compaction import Compaction
from feast_embeddings.materialize.stream.contract import lane_partitions, partition_of
from feast_embeddings.materialize.stream.lanes import lane_name, lane_resource
from feast_embeddings.materialize.stream.payloads import decode, to_json_payloads
from feast_embeddings.materialize.stream.redis_streams import RedisStreams, agreed_partitions, stream_key
from feast_embeddings.materialize.stream.stream_ledger import StreamLedger
from feast_embeddings.materialize.stream.stream_ticks import StreamTicks
from feast_embeddings.materialize.workspace import Workspace, behaviors_of

PARTITIONS, LANES = 4, 2


def make_stream(repo: Repo) -> None:
    """Ticks of two lanes before and after a second refresh, merged files among theirs; messages wait at the end."""
    for number in range(4):
        deliver(f"day-{number}", lived(number, number + 1, 40 + number, 30))
    repo.encode_with(ranked(4))
    repo.materialize(4)
    with online_store_of(repo.store).redis(repo.store.config) as client:
        agreed_partitions(client, repo.name, "behaviors", PARTITIONS)
    sent = lived(4, 4.5, 50, 40, unseen=6)
    refused = [(4, b"\x00\xffno behavior"), *messages([click(2, 101, day(9))])]
    send(repo, 4.5, [*messages(sent), *messages(sent[:2]), *refused])
    ticks(repo, 4.5)
    with at(4.8):
        forget(repo.store, "user", 5)
    repo.encode_with(ranked(5))
    repo.materialize(5)
    late, erased, living = click(3, 110, day(4.2)), click(5, 111, day(4.7)), click(5, 112, day(5.1))
    send(repo, 5.2, messages([*lived(5, 5.2, 51, 30, unseen=4), late, erased, living]))
    ticks(repo, 5.25)
    compact(repo, 5.3)
    repo.incremental(5.35, "item_embedding")
    send(repo, 5.4, messages(lived(5.2, 5.4, 52, 20, unseen=4)))
    ticks(repo, 5.5)
    with stopping_at("staged"):
        repo.incremental(5.6, "item_embedding")
    some = [each for each in lived(5.4, 5.7, 53, 30, unseen=4) if partition_of(each["user"], PARTITIONS) != 2]
    send(repo, 5.7, messages(some))  # so no open tick tells where partition 2 stands
    for lane, step in enumerate(("staged", "recorded")):
        with stopping_at(step):
            ticks(repo, 5.75 + lane / 100, [lane])
    send(repo, 5.8, messages(lived(5.7, 5.8, 54, 8)))


def messages(behaviors: Sequence[dict[str, Any]]) -> list[tuple[int, bytes]]:
    """Behaviors as messages, each with its user."""
    return list(zip([each["user"] for each in behaviors], to_json_payloads(behaviors), strict=True))


def send(repo: Repo, days: float, payloads: Sequence[tuple[int, bytes]]) -> None:
    """Append messages of users, as if they came at a day."""
    with online_store_of(repo.store).redis(repo.store.config) as client:
        for number, (user, payload) in enumerate(payloads):
            key = stream_key(repo.name, "behaviors", partition_of(user, PARTITIONS))
            client.xadd(key, {"behavior": payload}, id=f"{day(days) // 1000}-{number}")


def ticks(repo: Repo, days: float, lanes: Sequence[int] = range(LANES)) -> None:
    """A micro-batch of each lane, of all that waits for it, at a day and a second after one another."""
    with at(days) as clock:
        for number in lanes:
            _tick(repo, lane_name(number, LANES), lane_partitions(number, LANES, PARTITIONS))
            clock.advance(1_000_000)


def _tick(repo: Repo, lane: str, partitions: Sequence[int]) -> None:
    config, online, view = repo.store.config, online_store_of(repo.store), repo.users.view
    workspace = Workspace.of(config)
    log = BehaviorLog.of(behaviors_of(repo.store.registry, repo.name, repo.users), workspace.root, workspace.ledger)
    lease = Lease(workspace.ledger, lane_resource(repo.name, view, lane), 60)
    lease.acquire()
    try:
        work = StreamTicks(workspace, online, config, repo.users, log, lease, lane)
        after = StreamLedger(workspace.ledger).positions(view, "behaviors")
        source = RedisStreams(lambda: online.redis(config), repo.name, "behaviors", view, partitions, after)
        work.take_up(source)
        delivery = source.next_batch(1000, 0.01)
        assert delivery is not None, f"nothing waits for lane {lane}"
        tick = work.record(delivery)
        work.publish(work.apply(tick, delivery, decode(delivery.payloads, work.contract)))
        source.commit(delivery.positions)
        source.close()
    finally:
        lease.release()


def compact(repo: Repo, days: float) -> None:
    """Merge the small files that there are."""
    workspace = Workspace.of(repo.store.config)
    where = (workspace.log(repo.users), Path("data/behaviors"))
    with at(days):
        done = Compaction(StreamLedger(workspace.ledger), repo.name, repo.users.view, *where, fewest=2, grace_s=0).run()
    assert done.made, "nothing was merged"

"""One small world per kind of source: something to publish to, and a way to open lanes of it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import confluent_kafka
import pyarrow as pa
import pyarrow.parquet as pq
import redis

from feast_embeddings.materialize.stream import (
    Delivery,
    Kafka,
    ParquetReplay,
    RedisStreams,
    Source,
    append_behaviors,
    partition_of,
    partitions_of,
)
from feast_embeddings.transformations import BehaviorContract, BehaviorType

PARTITIONS = 4
USERS = 7
T0 = 1_709_251_200_000_000
CONTRACT = BehaviorContract(
    join_key="user_id",
    entity="user",
    item="item",
    event_time="at",
    dedup_id="id",
    types=(BehaviorType("view"),),
    default_type="view",
)


class World:
    """What can be published to, and opened as lanes."""

    def __init__(self) -> None:
        self.published = 0

    def publish(self, count: int) -> None:
        """Publish ``count`` behaviors of a few users."""
        rows = [(number % USERS, number) for number in range(self.published, self.published + count)]
        self.published += count
        self.send([user for user, _ in rows], [{"user": user, "item": 1, "at": n, "id": str(n)} for user, n in rows])

    def send(self, users: Sequence[int], behaviors: Sequence[dict[str, Any]]) -> None:
        """Hand behaviors over to the broker."""
        raise NotImplementedError

    def open(self, after: dict[int, int] | None = None, partitions: Sequence[int] = range(PARTITIONS)) -> Source:
        """A lane, as a worker opens it."""
        raise NotImplementedError


class RedisWorld(World):
    """Streams on an embedded Valkey."""

    def __init__(self, client: redis.Redis) -> None:
        super().__init__()
        self.client, self.project = client, uuid.uuid4().hex

    def send(self, users: Sequence[int], behaviors: Sequence[dict[str, Any]]) -> None:
        payloads = [json.dumps(each).encode() for each in behaviors]
        append_behaviors(self.client, self.project, "behaviors", PARTITIONS, users, payloads)

    def open(self, after: dict[int, int] | None = None, partitions: Sequence[int] = range(PARTITIONS)) -> Source:
        consumer = uuid.uuid4().hex
        return RedisStreams(self._borrow, self.project, "behaviors", "view", partitions, after, consumer)

    @contextmanager
    def _borrow(self) -> Iterator[redis.Redis]:
        yield self.client


class KafkaWorld(World):
    """A topic on librdkafka's mock cluster, which lives in a producer."""

    def __init__(self) -> None:
        super().__init__()
        self.producer = confluent_kafka.Producer({"test.mock.num.brokers": 1})
        self.brokers = ",".join(f"{b.host}:{b.port}" for b in self.producer.list_topics(timeout=10).brokers.values())
        self.topic, self.group = f"behaviors-{uuid.uuid4().hex}", uuid.uuid4().hex
        assert partitions_of(self.brokers, self.topic) == PARTITIONS  # the mock makes a topic when it is asked for

    def send(self, users: Sequence[int], behaviors: Sequence[dict[str, Any]]) -> None:
        for user, behavior in zip(users, behaviors, strict=True):
            where = partition_of(user, PARTITIONS)
            self.producer.produce(self.topic, json.dumps(behavior).encode(), str(user).encode(), where)
        assert self.producer.flush(10) == 0

    def open(self, after: dict[int, int] | None = None, partitions: Sequence[int] = range(PARTITIONS)) -> Source:
        return Kafka(self.brokers, self.topic, self.group, partitions, after)


class ParquetWorld(World):
    """A file; what is published is appended, later than everything before."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.path, self.rows = folder / "behaviors.parquet", list[dict[str, Any]]()

    def send(self, users: Sequence[int], behaviors: Sequence[dict[str, Any]]) -> None:
        self.rows += behaviors
        times = pa.array([T0 + row["at"] for row in self.rows]).cast(pa.timestamp("us", tz="UTC"))
        table = pa.Table.from_pylist(self.rows)
        pq.write_table(table.set_column(table.column_names.index("at"), "at", times), self.path)

    def open(self, after: dict[int, int] | None = None, partitions: Sequence[int] = range(PARTITIONS)) -> Source:
        return ParquetReplay(self.path, CONTRACT, "view", partitions, PARTITIONS, after)


Drain = Callable[..., list[Delivery]]


def drain(source: Source, count: int, most: int = 10_000, wait_s: float = 5.0) -> list[Delivery]:
    """Deliveries until ``count`` messages have come; fails where they do not."""
    found: list[Delivery] = []
    while sum(map(len, found)) < count:
        delivery = source.next_batch(most, wait_s)
        assert delivery is not None, f"{sum(map(len, found))} of {count} messages came"
        found.append(delivery)
    return found


def numbers(deliveries: Sequence[Delivery]) -> list[int]:
    """The numbers of the behaviors delivered."""
    return [int(json.loads(payload)["id"]) for each in deliveries for payload in each.payloads]

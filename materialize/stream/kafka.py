"""Behaviors from a Kafka topic, with confluent-kafka (extra ``kafka``).

A lane's partitions are assigned by its lease, not by the group's coordinator: no rebalance can take a partition away
in the middle of a micro-batch. The consumer group holds the committed offsets, for lag monitors and for a first start.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from feast_embeddings.materialize.clock import now_us
from feast_embeddings.materialize.ledger import Ranges
from feast_embeddings.materialize.stream.source import Delivery, Positions, joined
from feast_embeddings.models.errors import StreamError

_TIMEOUT_S: Final = 10.0
_TURN_S: Final = 0.02
_LOOK_S: Final = 0.5
_ONE_MESSAGE: Final = {"queued.min.messages": 1, "fetch.message.max.bytes": 1, "fetch.queue.backoff.ms": 10}
_EXTRA: Final = "Kafka needs confluent-kafka: install feast-embeddings[kafka]."


class Kafka:
    """A lane of one topic; see :class:`~source.Source` for the guarantee.

    At least once: offsets are committed by hand, after the ledger; a lane is opened behind the recorded positions,
    or else behind the committed ones, or else at the start. A refused commit loses nothing: the ledger knows better.

    Args:
        brokers: ``bootstrap.servers``.
        topic: The topic.
        group: Consumer group: the embedding view.
        partitions: The lane's partitions.
        after: Recorded positions.
        options: More of librdkafka's options (security, timeouts).
    """

    def __init__(
        self,
        brokers: str,
        topic: str,
        group: str,
        partitions: Sequence[int],
        after: Positions | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.name, self.partitions = topic, tuple(partitions)
        self._kafka = _library()
        self._settings = {
            "bootstrap.servers": brokers,
            "group.id": group,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "earliest",
            "enable.partition.eof": False,
            "fetch.wait.max.ms": 20,
            **(options or {}),
        }
        self._after = dict(after or {})
        self._delivered: dict[int, int] = {}
        self._next: dict[int, int] = {}
        self._waiting: dict[int, int] = {}
        self._seen: dict[int, tuple[int, int]] = {}
        self._ends: dict[int, int] = {}
        self._lock = threading.Lock()
        self._consumer = self._kafka.Consumer(self._settings)
        self._looking: Any = None
        self._start()

    def next_batch(self, max_events: int, max_wait_s: float) -> Delivery | None:
        """As the contract says."""
        deadline = time.monotonic() + max_wait_s
        while not (messages := self._take(max_events)):
            if time.monotonic() >= deadline:
                return None
        delivery = self._delivery(messages).after(self._after)
        if not len(delivery):
            return None
        self._delivered |= delivery.positions
        self._next |= {partition: last + 1 for partition, last in delivery.positions.items()}
        return delivery

    def _take(self, most: int) -> list[Any]:
        """What is there, after a short wait for the first message: threads that commit or look take their turns."""
        with self._lock:
            first = self._consumer.poll(_TURN_S)
            if first is None:
                return []
            return [first, *(self._consumer.consume(most - 1, 0) if most > 1 else [])]

    def snapshot(self) -> dict[int, int]:
        """As the contract says."""
        return dict(self._delivered)

    def replay(self, ranges: Ranges) -> Delivery:
        """As the contract says; read by a consumer of its own, so that the lane's place does not move."""
        consumer = self._kafka.Consumer(self._settings)
        try:
            parts = [self._replay_one(consumer, partition, *bounds) for partition, bounds in ranges.items()]
        finally:
            consumer.close()
        return joined(self.name, parts)

    def commit(self, positions: Positions) -> None:
        """As the contract says; sent without waiting for the answer."""
        self._after |= {partition: max(last, self._after.get(partition, -1)) for partition, last in positions.items()}
        offsets = [self._kafka.TopicPartition(self.name, partition, last + 1) for partition, last in positions.items()]
        if not offsets:
            return
        self._waiting |= {each.partition: max(each.offset, self._waiting[each.partition]) for each in offsets}
        with self._lock:
            self._consumer.commit(offsets=offsets, asynchronous=True)

    def lag(self) -> dict[int, int]:
        """As the contract says."""
        return self._behind(self._next)

    def oldest_us(self) -> int | None:
        """As the contract says: the message's own time, read anew where another one has become the oldest."""
        waiting = {each: self._waiting[each] for each, behind in self._behind(self._waiting).items() if behind}
        seen = {each: found for each, found in self._seen.items() if waiting.get(each) == found[0]}
        self._seen = seen | self._look({each: first for each, first in waiting.items() if each not in seen})
        return min((us for _, us in self._seen.values()), default=None)

    def close(self) -> None:
        """As the contract says; waits for commits on their way."""
        self._consumer.close()
        if self._looking is not None:
            self._looking.close()

    # ── private ──────────────────────────────────────────────────────────────────────────────────────────

    def _start(self) -> None:
        places = [self._kafka.TopicPartition(self.name, partition) for partition in self.partitions]
        try:
            committed = {place.partition: place.offset for place in self._consumer.committed(places, _TIMEOUT_S)}
        except self._kafka.KafkaException as error:
            raise self._error(error) from error
        starts = []
        for place in places:
            partition = place.partition
            low, self._ends[partition] = self._consumer.get_watermark_offsets(place, timeout=_TIMEOUT_S)
            first = max(committed.get(partition, -1), self._after.get(partition, -1) + 1)
            start = first if first > 0 else self._kafka.OFFSET_BEGINNING
            self._next[partition] = self._waiting[partition] = max(first, low)
            starts.append(self._kafka.TopicPartition(self.name, partition, start))
        self._consumer.assign(starts)

    def _behind(self, places: Mapping[int, int]) -> dict[int, int]:
        """How many messages lie from these offsets on, as of the last fetch: no round trip."""
        asked = [self._kafka.TopicPartition(self.name, partition) for partition in places]
        with self._lock:
            highs = [self._consumer.get_watermark_offsets(each, cached=True)[1] for each in asked]
        ends = (max(high, self._ends[partition]) for high, partition in zip(highs, places, strict=True))
        return {partition: max(end - first, 0) for end, (partition, first) in zip(ends, places.items(), strict=True)}

    def _look(self, firsts: Mapping[int, int]) -> dict[int, tuple[int, int]]:
        """Partition → an offset and when the message there came, by a consumer of its own: the lane's does not move.

        A message without a time came, for all that is known, when it was first seen. One that does not come within
        half a second (a transaction's end is none) is left to the next look.
        """
        if not firsts:
            return {}
        if self._looking is None:
            self._looking = self._kafka.Consumer({**self._settings, **_ONE_MESSAGE})
        self._looking.assign([self._kafka.TopicPartition(self.name, *each) for each in firsts.items()])
        found: dict[int, tuple[int, int]] = {}
        deadline = time.monotonic() + _LOOK_S
        while len(found) < len(firsts) and time.monotonic() < deadline:
            for each in self._looking.consume(1000, _TURN_S):
                if each.error() is None:
                    arrived_us = each.timestamp()[1] * 1000
                    place = each.partition(), (firsts[each.partition()], arrived_us if arrived_us > 0 else now_us())
                    found.setdefault(*place)
        self._looking.unassign()
        return found

    def _delivery(self, messages: list[Any]) -> Delivery:
        good = []
        for message in messages:
            if message.error() is None:
                good.append(message)
            elif message.error().code() != self._kafka.KafkaError._PARTITION_EOF:
                raise self._error(message.error())
        places = np.array(
            [(message.partition(), message.offset(), message.timestamp()[1]) for message in good], np.int64
        )
        places = places.reshape(-1, 3)
        payloads = [message.value() or b"" for message in good]
        return Delivery(self.name, places[:, 0], places[:, 1], payloads, np.maximum(places[:, 2], 0) * 1000)

    def _replay_one(self, consumer: Any, partition: int, first: int, last: int) -> Delivery:
        consumer.assign([self._kafka.TopicPartition(self.name, partition, first)])
        messages: list[Any] = []
        deadline = time.monotonic() + _TIMEOUT_S
        while not messages or messages[-1].offset() < last:
            messages += [each for each in consumer.consume(1000, 0.2) if each.error() is None]
            if time.monotonic() > deadline:
                raise StreamError(
                    f"Topic {self.name!r}, partition {partition}: the recorded offsets {first} to {last} did not come "
                    f"within {_TIMEOUT_S:.0f} s. They may have been deleted: raise the topic's retention."
                )
        delivery = self._delivery([each for each in messages if each.offset() <= last])
        if delivery.offsets[0] != first:
            raise StreamError(
                f"Topic {self.name!r}, partition {partition}: offset {first} is recorded, and the oldest there is "
                f"{delivery.offsets[0]}: raise the topic's retention, and run `feast materialize`."
            )
        return delivery

    def _error(self, error: Any) -> StreamError:
        return StreamError(
            f"Topic {self.name!r} on {self._settings['bootstrap.servers']}: {error}. Check that the brokers can be "
            "reached and that the topic exists; nothing was lost: what is not committed is delivered again."
        )


def partitions_of(brokers: str, topic: str, options: Mapping[str, Any] | None = None) -> int:
    """How many partitions a topic has; raises StreamError where there is no such topic."""
    admin = _library("admin").AdminClient({"bootstrap.servers": brokers, **(options or {})})
    found = admin.list_topics(topic, timeout=_TIMEOUT_S).topics[topic]
    if found.error is not None:
        raise StreamError(f"Topic {topic!r} on {brokers}: {found.error}. Create it first, with its partitions.")
    return len(found.partitions)


def _library(module: str = "") -> Any:
    try:
        import confluent_kafka
        import confluent_kafka.admin
    except ImportError as error:
        raise StreamError(_EXTRA) from error
    return confluent_kafka.admin if module else confluent_kafka

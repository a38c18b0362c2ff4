"""What every source of behaviors promises, so that a micro-batch can be recorded, read again, and applied once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol
from zlib import crc32

import numpy as np

from feast_embeddings.materialize.ledger import Ranges
from feast_embeddings.models.types import Int64s

Positions = Mapping[int, int]
"""Partition → offset of the last message."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """Messages as a source delivered them, N of them; offsets strictly grow within a partition.

    Attributes:
        source: Name of the topic, stream or file.
        partitions: int64 [N].
        offsets: int64 [N].
        payloads: The messages' bytes, untouched.
        arrived_us: int64 [N], when each message reached the source, microseconds; 0 where it is not known.
    """

    source: str
    partitions: Int64s
    offsets: Int64s
    payloads: Sequence[bytes]
    arrived_us: Int64s

    def __len__(self) -> int:
        return len(self.payloads)

    @property
    def ranges(self) -> dict[int, tuple[int, int]]:
        """First and last offset of each partition."""
        found = {}
        for partition in np.unique(self.partitions).tolist():
            offsets = self.offsets[self.partitions == partition]
            found[int(partition)] = (int(offsets.min()), int(offsets.max()))
        return found

    @property
    def positions(self) -> dict[int, int]:
        """Last offset of each partition."""
        return {partition: last for partition, (_, last) in self.ranges.items()}

    def after(self, positions: Positions) -> Delivery:
        """The messages that lie behind ``positions``."""
        last = np.array([positions.get(partition, -1) for partition in self.partitions.tolist()], np.int64)
        kept = np.flatnonzero(self.offsets > last)
        if len(kept) == len(self):
            return self
        payloads = [self.payloads[row] for row in kept.tolist()]
        return Delivery(self.source, self.partitions[kept], self.offsets[kept], payloads, self.arrived_us[kept])


class Source(Protocol):
    """A lane of a stream of behaviors: some of its partitions, read by one worker at a time.

    Delivery guarantee: **at least once**, in the order of each partition. What was delivered and not committed comes
    again, to this worker or to the one that takes its lane over; what was committed may come again too, after a
    broker lost a commit. ``replay`` reads any offsets again, with the same bytes, as long as they are not committed.
    A worker records the offsets of a micro-batch in the ledger before it computes anything, drops what lies at or
    before a recorded position, and commits after the ledger did: in effect, every message is applied **exactly once**.

    All messages of one entity must be in one partition: between partitions there is no order.
    """

    name: str
    """Name of the topic, stream or file, as the ledger records it."""
    partitions: tuple[int, ...]
    """The lane's."""

    def next_batch(self, max_events: int, max_wait_s: float) -> Delivery | None:
        """The next messages, at most ``max_events`` (or one per partition); None where none came in time.

        It waits for the first message only: what is there is delivered at once.

        Raises:
            StreamError: The source cannot be reached, or lost messages that were not delivered yet.
        """

    def snapshot(self) -> dict[int, int]:
        """The last delivered offset of every partition from which something was delivered."""

    def replay(self, ranges: Ranges) -> Delivery:
        """The messages of recorded ranges again, byte for byte.

        Raises:
            StreamError: Some of them are gone.
        """

    def commit(self, positions: Positions) -> None:
        """Tell the source that everything up to ``positions`` is done; a smaller position than before is no error."""

    def lag(self) -> dict[int, int]:
        """Messages of each partition that were not delivered yet."""

    def oldest_us(self) -> int | None:
        """When the oldest message that was not committed came to the source, microseconds; None where none waits.

        Whether it was delivered makes no difference. However much waits, this asks for one message per partition.
        """

    def close(self) -> None:
        """Give the connections back. What was not committed will be delivered again."""


def partition_of(entity_id: int | str, partitions: int) -> int:
    """The partition of an entity: CRC-32 of its id as text, modulo the number of partitions."""
    return crc32(str(entity_id).encode()) % partitions


def lane_partitions(lane: int, lanes: int, partitions: int) -> tuple[int, ...]:
    """The partitions of lane ``lane`` of ``lanes``."""
    return tuple(range(lane, partitions, lanes))


def joined(source: str, parts: Sequence[Delivery]) -> Delivery:
    """Deliveries end to end; an empty one where there is none."""
    payloads = [payload for part in parts for payload in part.payloads]
    nothing = np.empty(0, np.int64)
    partitions, offsets, arrived_us = (
        np.concatenate([nothing, *(getattr(part, name) for part in parts)])
        for name in ("partitions", "offsets", "arrived_us")
    )
    return Delivery(source, partitions, offsets, payloads, arrived_us)

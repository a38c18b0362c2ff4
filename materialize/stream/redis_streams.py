"""Behaviors from Redis Streams, the default source: one stream per partition, a consumer group per view.

An entry holds one payload in its field ``behavior``. Its id, ``<ms>-<sequence>``, is the offset
``ms · 2^20 + sequence``: int64, growing, and reversible.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, TypeVar

import numpy as np
import redis

from feast_embeddings.materialize.ledger import Ranges
from feast_embeddings.materialize.online import call_script, partitions_key, readers_key, stream_key
from feast_embeddings.materialize.stream.source import Delivery, Positions, joined
from feast_embeddings.models.errors import LeaseError, StreamError
from feast_embeddings.models.types import Int64s

FIELD: Final = b"behavior"
PARTITIONS: Final = 8
SEQUENCE_BITS: Final = 20
_CLAIM: Final = 1000
_TRIM_EVERY: Final = 50  # commits
_T = TypeVar("_T")

Client = Callable[[], AbstractContextManager[Any]]
"""Gives a redis-py client for the length of a ``with`` block, as an OnlineServer does."""


def agreed_partitions(client: Any, project: str, behaviors: str, wanted: int = PARTITIONS) -> int:
    """Into how many partitions these behaviors are dealt: what the first producer or worker wanted, for good."""
    key = partitions_key(project, behaviors)
    client.set(key, wanted, nx=True)
    return int(client.get(key))


class RedisStreams:
    """A lane of the streams of one behaviors view; see :class:`~source.Source` for the guarantee.

    At least once: entries are delivered to a consumer group, stay pending until they are committed (``XACK``), and
    what a dead worker left pending is claimed when its lane is opened anew (``XAUTOCLAIM``), in order, before
    anything new. Whoever opens a partition is from then on its only reader: a worker that lost the lane without
    knowing it would take entries that nobody else is given any more, and is refused instead (LeaseError).

    Args:
        client: Gives a redis-py client.
        project: Feast project.
        behaviors: Name of the behaviors view.
        group: Name of the consumer group: the embedding view.
        partitions: The lane's partitions.
        after: Recorded positions; entries at or before them are acknowledged, not delivered.
        consumer: This worker.
    """

    def __init__(
        self,
        client: Client,
        project: str,
        behaviors: str,
        group: str,
        partitions: Sequence[int],
        after: Positions | None = None,
        consumer: str = "worker",
    ) -> None:
        self.name, self.partitions = behaviors, tuple(partitions)
        self._client = client
        self._group, self._consumer = group, consumer
        self._readers = readers_key(project, behaviors, group)
        self._token = f"{consumer} {uuid.uuid4().hex}"
        self._keys = {partition: stream_key(project, behaviors, partition) for partition in partitions}
        self._partition_of = {key.encode(): partition for partition, key in self._keys.items()}
        self._after = dict(after or {})
        self._delivered: dict[int, int] = {}
        self._last, self._done = dict.fromkeys(partitions, -1), dict.fromkeys(partitions, -1)
        self._unacked: dict[int, list[tuple[Int64s, list[bytes]]]] = {partition: [] for partition in partitions}
        self._claimed: list[Delivery] = []
        self._commits = 0
        self._call(self._open)

    def next_batch(self, max_events: int, max_wait_s: float) -> Delivery | None:
        """As the contract says; a count is per partition in Redis, so each gets its share of ``max_events``."""
        if self._claimed:
            return self._remember(self._claimed.pop(0))
        share = max(max_events // len(self._keys), 1)
        answer = self._call(lambda client: self._read(client, share, max_wait_s))
        delivery = joined(self.name, [self._delivery(key, entries) for key, entries in answer])
        return self._remember(delivery) if len(delivery) else None

    def snapshot(self) -> dict[int, int]:
        """As the contract says."""
        return dict(self._delivered)

    def replay(self, ranges: Ranges) -> Delivery:
        """As the contract says."""
        keys = [(self._keys[partition], tuple(map(entry_id, bounds))) for partition, bounds in ranges.items()]
        answer = self._call(lambda client: [(key.encode(), client.xrange(key, *ids)) for key, ids in keys])
        found = [self._delivery(key, entries) for key, entries in answer]
        for delivery, (partition, (first, last)) in zip(found, ranges.items(), strict=True):
            if not len(delivery) or (delivery.offsets[0], delivery.offsets[-1]) != (first, last):
                raise StreamError(
                    f"Stream {self._keys[partition]} no longer holds the recorded entries {entry_id(first).decode()} "
                    f"to {entry_id(last).decode()}: something trimmed it. Restore the stream, or raise how many "
                    "entries it keeps."
                )
        return joined(self.name, found)

    def commit(self, positions: Positions) -> None:
        """As the contract says; now and then, entries that every group is done with are dropped from the stream."""
        self._after |= {partition: max(last, self._after.get(partition, -1)) for partition, last in positions.items()}
        done = {partition: self._take_unacked(partition, last) for partition, last in positions.items()}
        self._call(lambda client: self._acknowledge(client, done))
        self._done |= {partition: max(last, self._done[partition]) for partition, last in positions.items()}
        self._commits += 1
        if self._commits % _TRIM_EVERY == 0:
            self._call(self._trim)

    def lag(self) -> dict[int, int]:
        """As the contract says."""
        return self._call(lambda client: {p: self._lag_of(client, key) for p, key in self._keys.items()})

    def oldest_us(self) -> int | None:
        """As the contract says: the server's own time of the first entry behind what is acknowledged."""
        behind = {self._keys[partition]: last for partition, last in self._done.items()}
        return self._call(lambda client: _first_us(client, behind))

    def close(self) -> None:
        """Drop what every group is done with; the client is the store's. What is pending stays, for the next worker."""
        with contextlib.suppress(StreamError):  # the next worker drops it
            self._call(self._trim)

    # ── private ──────────────────────────────────────────────────────────────────────────────────────────

    def _call(self, work: Callable[[Any], _T]) -> _T:
        return _asked(self._client, self.name, work)

    def _open(self, client: Any) -> None:
        client.hset(self._readers, mapping=dict.fromkeys(self._keys.values(), self._token))  # before the claims
        for partition, key in self._keys.items():
            try:
                client.xgroup_create(key, self._group, id="0", mkstream=True)
            except redis.ResponseError as error:
                if not str(error).startswith("BUSYGROUP"):
                    raise
            cursor = b""
            while cursor != b"0-0":
                claimed = (key, self._group, self._consumer, 0, cursor or b"0-0", "COUNT", _CLAIM)
                cursor, entries, *_ = client.execute_command("XAUTOCLAIM", *claimed)
                self._claim(partition, entries)
            groups = {group["name"]: group for group in client.xinfo_groups(key)}
            self._last[partition] = _offset_of(groups[self._group.encode()]["last-delivered-id"])
            pending = client.xpending(key, self._group)["min"]
            done = max(self._last[partition], self._after.get(partition, -1))
            self._done[partition] = done if pending is None else _offset_of(pending) - 1

    def _claim(self, partition: int, entries: list[Any]) -> None:
        """Keep claimed entries for delivery, but those at or before a recorded position for the next commit alone.

        Whoever died has recorded them, and maybe no more: until that tick is finished, nobody may trim them.
        """
        delivery = self._delivery(self._keys[partition].encode(), [entry for entry in entries if entry[1]])
        if not len(delivery):
            return
        done = delivery.offsets <= self._after.get(partition, -1)
        if done.any():
            self._await_commit(partition, delivery.offsets[done])
        rest = delivery.after(self._after)
        if len(rest):
            self._claimed.append(rest)

    def _read(self, client: Any, count: int, wait_s: float) -> list[Any]:
        found = self._take(client, count)
        if not found and wait_s > 0:
            wait_ms = max(round(wait_s * 1000), 1)
            last = map(entry_id, self._last.values())
            client.execute_command("XREAD", "COUNT", 1, "BLOCK", wait_ms, "STREAMS", *self._keys.values(), *last)
            found = self._take(client, count)
        return found

    def _take(self, client: Any, count: int) -> list[Any]:
        """What is there now, if this is still the partitions' reader; a script does not wait for more."""
        reader = [self._token, self._group, self._consumer, count]
        answer = call_script(client, "read_partitions.lua", [self._readers, *self._keys.values()], reader)
        if answer == b"taken over":
            raise LeaseError(
                f"Partitions {sorted(self._keys)} of behaviors {self.name!r} were taken over by another worker of "
                f"group {self._group!r}: this one reads nothing more."
            )
        return [
            (key, [(each, dict(zip(flat[::2], flat[1::2], strict=True))) for each, flat in entries])
            for key, entries in answer or []
        ]

    def _delivery(self, key: bytes, entries: list[Any]) -> Delivery:
        ids = [entry[0] for entry in entries]
        offsets = offsets_of(ids)
        payloads = [entry[1].get(FIELD, b"") for entry in entries]
        partitions = np.full(len(ids), self._partition_of[key], np.int64)
        return Delivery(self.name, partitions, offsets, payloads, (offsets >> SEQUENCE_BITS) * 1000)

    def _remember(self, delivery: Delivery) -> Delivery | None:
        for partition, last in delivery.positions.items():
            self._await_commit(partition, delivery.offsets[delivery.partitions == partition])
            self._delivered[partition] = last
            self._last[partition] = max(last, self._last[partition])
        rest = delivery.after(self._after)  # a group that was reset delivers what is done already
        return rest if len(rest) else None

    def _await_commit(self, partition: int, offsets: Int64s) -> None:
        self._unacked[partition].append((offsets, list(map(entry_id, offsets.tolist()))))

    def _take_unacked(self, partition: int, last: int) -> list[bytes]:
        waiting, taken = self._unacked.get(partition, []), []
        while waiting and waiting[0][0][0] <= last:
            offsets, ids = waiting.pop(0)
            count = int(np.searchsorted(offsets, last, side="right"))
            taken += ids[:count]
            if count < len(ids):
                waiting.insert(0, (offsets[count:], ids[count:]))
        return taken

    def _acknowledge(self, client: Any, done: dict[int, list[bytes]]) -> None:
        pipe = client.pipeline(transaction=False)
        for partition, ids in done.items():
            if ids:
                pipe.execute_command("XACK", self._keys[partition], self._group, *ids)
        pipe.execute()

    def _trim(self, client: Any) -> None:
        for key in self._keys.values():
            oldest = []
            for group in client.xinfo_groups(key):
                pending = client.xpending(key, group["name"])
                oldest.append(pending["min"] or group["last-delivered-id"])
            if oldest:
                first = min(oldest, key=_offset_of)
                client.execute_command("XTRIM", key, "MINID", "=", first)

    def _lag_of(self, client: Any, key: str) -> int:
        found = {group["name"]: group for group in client.xinfo_groups(key)}
        group = found.get(self._group.encode(), {})
        if group.get("lag") is not None:
            return int(group["lag"])
        return len(client.xrange(key, b"(" + group.get("last-delivered-id", b"0-0"), b"+", count=100_000))


def waiting_since_us(client: Client, project: str, behaviors: str, after: Positions) -> int | None:
    """When the oldest entry behind ``after`` came, microseconds, whoever reads the stream; None where none waits.

    Raises:
        StreamError: Redis cannot be reached.
    """

    def look(asked: Any) -> int | None:
        partitions = range(int(asked.get(partitions_key(project, behaviors)) or 0))
        return _first_us(asked, {stream_key(project, behaviors, each): after.get(each, -1) for each in partitions})

    return _asked(client, behaviors, look)


def _asked(client: Client, behaviors: str, work: Callable[[Any], _T]) -> _T:
    try:
        with client() as asked:
            return work(asked)
    except redis.RedisError as error:
        raise StreamError(
            f"Streams of behaviors {behaviors!r} in Redis: {error}. Check that the server of online_store can be "
            "reached; nothing was lost: what is not committed is delivered again."
        ) from error


def _first_us(client: Any, behind: Mapping[str, int]) -> int | None:
    """When the oldest of the first entries behind these offsets came, by stream; one round trip."""
    pipe = client.pipeline(transaction=False)
    for key, offset in behind.items():
        pipe.xrange(key, entry_id(offset + 1), b"+", count=1)
    found = [_offset_of(entries[0][0]) for entries in pipe.execute() if entries]
    return (min(found) >> SEQUENCE_BITS) * 1000 if found else None


def _offset_of(entry: bytes) -> int:
    return int(offsets_of([entry])[0])


def offsets_of(ids: Sequence[bytes]) -> Int64s:
    """Entry ids as offsets, int64 [N]."""
    if not ids:
        return np.empty(0, np.int64)
    numbers = np.fromstring(b",".join(ids).replace(b"-", b",").decode(), np.int64, sep=",").reshape(-1, 2)
    return (numbers[:, 0] << SEQUENCE_BITS) + numbers[:, 1]


def entry_id(offset: int) -> bytes:
    """The entry id of an offset."""
    return b"%d-%d" % (offset >> SEQUENCE_BITS, offset & ((1 << SEQUENCE_BITS) - 1))

"""One lane at work: three threads in a row, so that reading, computing and logging overlap.

::

    read: source → payloads decoded      at most two batches wait: back-pressure reaches the source
    apply: record → compute → Redis      the next micro-batch is all that came meanwhile
    publish: log → ledger → commit       a tick is written to Redis only after the one before is published
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from feast_embeddings.materialize.clock import now_us
from feast_embeddings.materialize.ledger import Tick
from feast_embeddings.materialize.stream.metrics import StreamMetrics
from feast_embeddings.materialize.stream.micro_batch import Applied, MicroBatches
from feast_embeddings.materialize.stream.payloads import Decoded, decode
from feast_embeddings.materialize.stream.source import Delivery, Source, joined
from feast_embeddings.models.errors import HeldError

OnTick = Callable[[Applied, int], None]
_QUEUED = 2
_IDLE_S = 0.2
_HELD_S = 0.02


@dataclass
class Batch:
    """A delivery, decoded."""

    delivery: Delivery
    decoded: Decoded


@dataclass
class LaneStats:
    """What a lane did since it was opened."""

    ticks: int = 0
    behaviors: int = 0
    counts: dict[str, int] = field(default_factory=dict)


class LaneWork:
    """Runs one lane until it is stopped, its lease is lost, or something fails.

    Args:
        ticks: Applies the lane's micro-batches.
        source: The lane's messages.
        metrics: What is measured.
        max_events: Most messages of one micro-batch.
        every_s: Shortest time between the starts of two micro-batches: longer ones are cheaper per behavior.
        on_tick: Called once a tick's rows are served, with it and the time in microseconds.
    """

    def __init__(
        self,
        ticks: MicroBatches,
        source: Source,
        metrics: StreamMetrics,
        max_events: int = 2000,
        every_s: float = 0.02,
        on_tick: OnTick | None = None,
    ) -> None:
        self.ticks, self.source, self.metrics = ticks, source, metrics
        self.max_events, self.every_s, self.on_tick = max_events, every_s, on_tick
        self.stats = LaneStats()
        self.error: BaseException | None = None
        self.beat_s = time.monotonic()
        self._taken = self._published = 0
        self._stop = threading.Event()
        self._queue: queue.Queue[Batch] = queue.Queue(_QUEUED)
        self._publisher = ThreadPoolExecutor(1, thread_name_prefix="publish")
        self._threads = [
            threading.Thread(target=self._guarded, args=(work,), daemon=True) for work in (self._read, self._apply)
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ask it to end: the micro-batch at work is finished, what was read and not recorded is delivered again."""
        self._stop.set()

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait for the end; whether it came. The source is closed then, and the lane's lease is the caller's again."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(None if deadline is None else max(deadline - time.monotonic(), 0))
        return not self.alive

    @property
    def alive(self) -> bool:
        """Whether it still works."""
        return any(thread.is_alive() for thread in self._threads)

    @property
    def waiting(self) -> int:
        """Messages that were taken from the source, and are in no published tick yet."""
        return self._taken - self._published

    # ── the threads ──────────────────────────────────────────────────────────────────────────────────────

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self.error = self.error or error
        finally:
            self._stop.set()

    def _read(self) -> None:
        while not self._stop.is_set():
            delivery = self.source.next_batch(self.max_events, _IDLE_S)
            if delivery is None:
                continue
            self._taken += len(delivery)
            batch = Batch(delivery, decode(delivery.payloads, self.ticks.contract))
            while not self._stop.is_set():
                try:
                    self._queue.put(batch, timeout=_IDLE_S)
                    break
                except queue.Full:
                    continue

    def _apply(self) -> None:
        published: Future[None] | None = None
        try:
            while not self._stop.is_set():
                began = time.monotonic()
                batch = self._next()
                self.beat_s = time.monotonic()
                if batch is None:
                    self.ticks.lease.check()
                    if published is not None and published.done():
                        published.result()
                    continue
                published = self._tick(batch, published)
                self._stop.wait(max(self.every_s - (time.monotonic() - began), 0))
        finally:
            try:
                if published is not None:
                    published.result()
            finally:
                self._publisher.shutdown()

    def _tick(self, batch: Batch, before: Future[None] | None) -> Future[None] | None:
        tick = self._recorded(batch)
        if tick is None:
            return before
        applied = self.ticks.compute(tick, batch.delivery, batch.decoded)
        if before is not None:
            before.result()
        self.ticks.write(applied)
        self._measure(batch, applied)
        return self._publisher.submit(self._publish, batch.delivery, applied)

    def _recorded(self, batch: Batch) -> Tick | None:
        """The micro-batch, once no refresh holds the stream back; None where the lane was stopped meanwhile."""
        while not self._stop.is_set():
            try:
                return self.ticks.record(batch.delivery)
            except HeldError:
                self.beat_s = time.monotonic()
                self.ticks.lease.check()
                self._stop.wait(_HELD_S)
        return None

    def _publish(self, delivery: Delivery, applied: Applied) -> None:
        self.ticks.publish(applied)
        self.source.commit(delivery.positions)
        self._published += len(delivery)
        self.metrics.published(applied.tick.view, applied.tick.number)
        self.stats.ticks += 1
        self.stats.behaviors += applied.found.counts["read"]
        for what, count in applied.found.counts.items():
            self.stats.counts[what] = self.stats.counts.get(what, 0) + count

    def _next(self) -> Batch | None:
        """Everything that waits in the queue, as one micro-batch."""
        try:
            batches = [self._queue.get(timeout=_IDLE_S)]
        except queue.Empty:
            return None
        while sum(len(each.delivery) for each in batches) < self.max_events:
            try:
                batches.append(self._queue.get_nowait())
            except queue.Empty:
                break
        return batches[0] if len(batches) == 1 else _merged(batches)

    def _measure(self, batch: Batch, applied: Applied) -> None:
        view, done_us = applied.tick.view, now_us()
        if self.on_tick is not None:
            self.on_tick(applied, done_us)
        arrived = batch.delivery.arrived_us[batch.delivery.arrived_us > 0]
        if len(arrived):
            self.metrics.stage(view, "wait", np.maximum(applied.tick.end_us - arrived, 0) / 1e6)
            self.metrics.stage(view, "total", np.maximum(done_us - arrived, 0) / 1e6)
        for stage, seconds in applied.seconds.items():
            self.metrics.stage(view, stage, seconds, len(batch.delivery))  # type: ignore[arg-type]
        counts = dict(applied.found.counts)
        self.metrics.late(view, counts.pop("late", 0))
        self.metrics.counted(view, counts)
        self.metrics.unknown(view, applied.unknown)


def _merged(batches: list[Batch]) -> Batch:
    delivery = joined(batches[0].delivery.source, [batch.delivery for batch in batches])
    starts = np.cumsum([0, *(len(batch.delivery) for batch in batches)]).tolist()
    raw = pa.concat_tables([batch.decoded.raw for batch in batches]).combine_chunks()
    message = np.concatenate([batch.decoded.message + start for batch, start in zip(batches, starts, strict=False)])
    poison = {
        row + start: reason
        for batch, start in zip(batches, starts, strict=False)
        for row, reason in batch.decoded.poison.items()
    }
    return Batch(delivery, Decoded(raw, message, poison))

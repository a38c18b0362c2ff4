"""A stream worker: takes its fair share of the lanes, works on them, and lets them go.

Workers share the lanes by leases: each says that it is there, takes free lanes up to its share, and gives surplus
lanes back when another worker comes. A dead worker's lanes are free when its lease has run out, or at once where it
was a process of the same machine. Each lane is first taken up where it was left.
"""

from __future__ import annotations

import math
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from feast_embeddings.materialize.ledger import (
    Lease,
    Ledger,
    held,
    holder,
    is_paused,
    lane_resource,
    lanes_held,
    left_resource,
    presence,
    workers_there,
)
from feast_embeddings.materialize.stream.lane import LaneStats, LaneWork, OnTick
from feast_embeddings.materialize.stream.metrics import StreamMetrics
from feast_embeddings.materialize.stream.micro_batch import MicroBatches
from feast_embeddings.materialize.stream.source import Source, lane_partitions
from feast_embeddings.models.errors import DeclarationError, LeaseError

_STOP_S = 5.0


@dataclass(frozen=True)
class StreamOptions:
    """How a worker works.

    Attributes:
        lanes: Into how many lanes the partitions are dealt: the most workers that can share them.
        partitions: Partitions of the source in all.
        max_events: Most messages of one micro-batch.
        every_s: Shortest time between the starts of two micro-batches of a lane.
        lateness_us: Behaviors that happened longer ago are refused; None: none is.
        lease_s: How long a worker that is not heard of keeps its lanes.
        until_idle_s: End once nothing has come for so many seconds; None: work until stopped.
    """

    lanes: int = 2
    partitions: int = 8
    max_events: int = 2000
    every_s: float = 0.02
    lateness_us: int | None = None
    lease_s: float = 10.0
    until_idle_s: float | None = None


@dataclass(frozen=True)
class ViewStream:
    """The stream of one embedding view, as a worker works on it.

    Attributes:
        ledger, project, view: Whose it is.
        source: Name of the source.
        open: Opens partitions of the source behind recorded positions, as a named worker.
        ticks: What applies the micro-batches of a lane, given its lease and name.
        tidy: Called at each look at the lanes, for what is done beside them.
    """

    ledger: Ledger
    project: str
    view: str
    source: str
    open: Callable[[tuple[int, ...], dict[int, int], str], Source]
    ticks: Callable[[Lease, str], MicroBatches]
    tidy: Callable[[], None]


class StreamWorker:
    """One worker process of a view's stream.

    Delivery guarantee: at least once from the source, exactly once in effect; see ``source.Source``.
    """

    def __init__(
        self, stream: ViewStream, options: StreamOptions, metrics: StreamMetrics | None, on_tick: OnTick | None
    ) -> None:
        if options.lanes > options.partitions:
            raise DeclarationError(
                f"The stream of view {stream.view!r} has {options.partitions} partitions, which cannot make "
                f"{options.lanes} lanes: use at most one lane per partition."
            )
        self.ledger, self.project, self.view = stream.ledger, stream.project, stream.view
        self.source_name = stream.source
        self.options, self.metrics = options, metrics or StreamMetrics()
        self.name = uuid.uuid4().hex[:12]
        self.taken_up = 0
        self._stream, self._on_tick = stream, on_tick
        self._open: dict[str, LaneWork] = {}
        self._resting: list[LaneWork] = []
        self._paused = False
        self._done = LaneStats()
        self._stop = threading.Event()
        self._busy_at = time.monotonic()

    def run(self) -> LaneStats:
        """Work until stopped; what was done.

        Raises:
            FeastEmbeddingsError: A lane failed; the others were stopped in good order.
        """
        poll_s = min(self.options.lease_s / 4, 0.5)
        with presence(self.ledger, self.project, self.view, self.name, self.options.lease_s) as there:
            try:
                while not self._stop.is_set():
                    there.check()
                    self._reap()
                    self._share()
                    self._observe()
                    if self._idle():
                        break
                    self._stream.tidy()
                    self._stop.wait(poll_s)
            finally:
                self._wake()
                self._let_go(list(self._open))
        return self._done

    def stop(self) -> None:
        """End soon: micro-batches at work are finished."""
        self._stop.set()

    @contextmanager
    def stopping_on_signals(self) -> Iterator[None]:
        """Inside the block, SIGTERM and SIGINT stop the worker in good order."""

        def stop(_signal: int, _frame: FrameType | None) -> None:
            self.stop()

        before = {each: signal.signal(each, stop) for each in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    @property
    def stats(self) -> LaneStats:
        """What was done so far, in lanes open and let go."""
        total = LaneStats()
        for each in (self._done, *(lane.stats for lane in self._open.values())):
            _add(total, each)
        return total

    # ── lanes ────────────────────────────────────────────────────────────────────────────────────────────

    def _share(self) -> None:
        """Take lanes up to the fair share, or give surplus ones back."""
        self._paused = is_paused(self.ledger, self.project, self.view)
        if self._paused:
            self._let_go(list(self._open), rest=True)
            return
        self._wake()
        if not self._open and not self._finished_left():
            return
        workers = max(workers_there(self.ledger, self.project, self.view), 1)
        share = math.ceil(self.options.lanes / workers)
        if len(self._open) > share:
            self._let_go(list(self._open)[share:])
        for number in range(self.options.lanes):
            if len(self._open) >= share or self._stop.is_set():
                return
            name = f"{number}/{self.options.lanes}"
            if name not in self._open:
                self._take(name, lane_partitions(number, self.options.lanes, self.options.partitions))

    def _finished_left(self) -> bool:
        """Finish ticks that dead workers began in another number of lanes; whether none is left, so lanes may begin."""
        lanes_left = {tick.lane or "" for tick in self.ledger.open_micro_batches(self.view)}
        left = [name for name in sorted(lanes_left) if not self._is_mine(name)]
        resource = left_resource(self.project, self.view)
        if not left:
            return holder(self.ledger, resource) is None
        try:
            with held(self.ledger, resource, self.options.lease_s):
                self._refuse_other_lanes()
                for name in left:
                    lane, lanes = map(int, name.split("/"))
                    partitions = lane_partitions(lane, lanes, self.options.partitions)
                    if (opened := self._opened(name, partitions)) is None:
                        return False
                    ticks, source = opened
                    source.close()
                    ticks.lease.release()
        except LeaseError:
            return False
        return True

    def _take(self, name: str, partitions: tuple[int, ...]) -> None:
        self._refuse_other_lanes()
        if (opened := self._opened(name, partitions)) is not None:
            lane = LaneWork(*opened, self.metrics, self.options.max_events, self.options.every_s, self._on_tick)
            self._open[name] = lane
            lane.start()

    def _refuse_other_lanes(self) -> None:
        names = [each.rpartition(" ")[2] for each in lanes_held(self.ledger, self.project, self.view)]
        others = [each for each in names if "/" in each and not self._is_mine(each)]
        if others:
            raise DeclarationError(
                f"The stream of view {self.view!r} is being worked on in another number of lanes (lane {others[0]}): "
                "give all workers the same --lanes, or stop the others first."
            )

    def _is_mine(self, lane: str) -> bool:
        return lane.endswith(f"/{self.options.lanes}")

    def _opened(self, name: str, partitions: tuple[int, ...]) -> tuple[MicroBatches, Source] | None:
        """A lane under its lease, with what was left of it finished; None where another worker has it."""
        lease = Lease(self.ledger, lane_resource(self.project, self.view, name), self.options.lease_s)
        source = None
        try:
            lease.acquire()
            if is_paused(self.ledger, self.project, self.view):  # it may have begun before the lease was there
                lease.release()
                return None
            source = self._stream.open(partitions, self.ledger.positions(self.view, self.source_name), self.name)
            ticks = self._stream.ticks(lease, name)
            self.taken_up += len(ticks.take_up(source))
        except BaseException as error:
            if source is not None:
                source.close()
            lease.release()
            if isinstance(error, LeaseError):
                return None  # or loading and finishing took longer than the lease: the lane is another worker's gain
            raise
        return ticks, source

    def _wake(self) -> None:
        """The pause is over: the lanes that it emptied are opened anew by whoever takes them."""
        while self._resting:
            self._resting.pop().source.close()

    def _let_go(self, names: list[str], rest: bool = False) -> None:
        """Let lanes go; those that rest until a pause ends are looked at meanwhile, for what waits there."""
        going = {name: self._open.pop(name) for name in names}
        for lane in going.values():
            lane.stop()
        for lane in going.values():
            ended = lane.join(_STOP_S - 1)
            _add(self._done, lane.stats)
            if rest:
                self._resting.append(lane)
            else:
                lane.source.close()
            if ended:
                lane.ticks.lease.release()
            if lane.error is not None and not isinstance(lane.error, LeaseError):
                raise lane.error

    def _reap(self) -> None:
        """Let lanes go that ended by themselves: what failed is raised, a lost lease is another worker's gain."""
        self._let_go([name for name, lane in self._open.items() if not lane.alive])

    # ── looking ──────────────────────────────────────────────────────────────────────────────────────────

    def _observe(self) -> None:
        lanes = [*self._open.values(), *self._resting]
        self.metrics.beat(min([time.monotonic(), *(lane.beat_s for lane in self._open.values())]))
        if self._paused and not lanes:
            return  # who began during a pause has no lane to look at
        queued = sum(lane.waiting for lane in lanes)
        lag = queued + sum(sum(lane.source.lag().values()) for lane in lanes)
        oldest = [us for lane in lanes if (us := lane.source.oldest_us()) is not None]
        self.metrics.lag(self.source_name, lag, queued, min(oldest, default=None))
        if lag:
            self._busy_at = time.monotonic()

    def _idle(self) -> bool:
        done = self.stats.ticks
        if done != getattr(self, "_seen", None):
            self._seen, self._busy_at = done, time.monotonic()
        limit = self.options.until_idle_s
        return limit is not None and time.monotonic() - self._busy_at > limit


def _add(total: LaneStats, more: LaneStats) -> None:
    total.ticks += more.ticks
    total.behaviors += more.behaviors
    for what, count in more.counts.items():
        total.counts[what] = total.counts.get(what, 0) + count

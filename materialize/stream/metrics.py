"""What a stream worker measures, as Prometheus metrics in a registry of its own.

A behavior is followed from its arrival in the source to the moment from which reads return what it changed. Its time
is told by stage: ``wait`` (arrival to the tick's record), ``encode`` (reading state, encoding, blending), ``stage``
(the exclusive file), ``write`` (Redis, log and ledger), and ``total``. All behaviors of a tick share its last three.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Final, Literal, get_args

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from feast_embeddings.materialize.clock import now_us

Stage = Literal["wait", "encode", "stage", "write", "total"]
STAGES: Final[tuple[Stage, ...]] = get_args(Stage)

FRESHNESS: Final = "feast_embeddings_freshness_seconds"
BOUNDS: Final = tuple(float(bound) for bound in np.round(0.001 * 2 ** (np.arange(38) / 2), 6))
"""Upper bounds of the freshness buckets in seconds: two for each doubling from 1 ms on, up to 6 minutes."""

COUNTERS: Final = {
    "feast_embeddings_stream_behaviors": ("Behaviors by what became of them", ("view", "outcome")),
    "feast_embeddings_stream_quarantined": ("Behaviors in quarantine by reason", ("view", "reason")),
    "feast_embeddings_stream_late": ("Behaviors older than what an earlier tick had applied", ("view",)),
    "feast_embeddings_stream_ticks": ("Ticks published", ("view",)),
    "feast_embeddings_stream_unknown_items": ("Behaviors with an item the encoder does not know", ("view",)),
}
GAUGES: Final = {
    "feast_embeddings_stream_lag_behaviors": ("Behaviors in the source that no tick has published yet", ("source",)),
    "feast_embeddings_stream_lag_seconds": ("Age of the oldest of them", ("source",)),
    "feast_embeddings_stream_queued_behaviors": ("Those of them that are in the worker", ("source",)),
    "feast_embeddings_stream_last_tick": ("Number of the last published tick", ("view",)),
    "feast_embeddings_live_generation": ("Live generation", ("encoder",)),
}
_Key = tuple[str, tuple[str, ...]]


class StreamMetrics(Collector):
    """Counts and times of one worker; threads may share it.

    Attributes:
        registry: Where these metrics, and nothing else, are registered.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._lock = threading.Lock()
        self._counters: defaultdict[_Key, float] = defaultdict(float)
        self._gauges: dict[_Key, float] = {}
        self._oldest_us: dict[str, int | None] = {}
        self._buckets: defaultdict[tuple[str, Stage], npt.NDArray[np.int64]] = defaultdict(
            lambda: np.zeros(len(BOUNDS) + 1, np.int64)
        )
        self._sums: defaultdict[tuple[str, Stage], float] = defaultdict(float)
        self._beat = time.monotonic()
        self.registry.register(self)

    def counted(self, view: str, counts: Mapping[str, int]) -> None:
        """What became of a tick's behaviors, in the ledger's words: read, applied, …, ``quarantined: <reason>``."""
        for what, number in counts.items():
            outcome, _, reason = what.partition(": ")
            self._add("stream_behaviors", number, view, outcome)
            if reason:
                self._add("stream_quarantined", number, view, reason)

    def late(self, view: str, behaviors: int) -> None:
        """Behaviors that came after younger ones had been applied."""
        self._add("stream_late", behaviors, view)

    def unknown(self, view: str, behaviors: int) -> None:
        """Behaviors whose item the encoder does not know."""
        self._add("stream_unknown_items", behaviors, view)

    def published(self, view: str, tick: int) -> None:
        """A tick is published."""
        self._add("stream_ticks", 1, view)
        self._set("stream_last_tick", tick, view)

    def stage(self, view: str, stage: Stage, seconds: float | npt.NDArray[np.float64], behaviors: int = 1) -> None:
        """How long a stage took: for each of [n] behaviors its own seconds, or one time that ``behaviors`` share."""
        times = np.atleast_1d(np.asarray(seconds, np.float64))
        found = np.bincount(np.searchsorted(BOUNDS, times), minlength=len(BOUNDS) + 1).astype(np.int64)
        with self._lock:
            self._buckets[view, stage] += found * behaviors
            self._sums[view, stage] += float(times.sum()) * behaviors

    def lag(self, source: str, behaviors: int, queued: int, oldest_us: int | None) -> None:
        """What no tick has published yet: behaviors, how many of them the worker has, and when the oldest one came.

        Its age goes on growing until this is called again, whatever keeps the worker from doing so.
        """
        self._set("stream_lag_behaviors", behaviors, source)
        self._set("stream_queued_behaviors", queued, source)
        with self._lock:
            self._oldest_us[source] = oldest_us

    def generation(self, encoder: str, number: int) -> None:
        """The encoder's live generation."""
        self._set("live_generation", number, encoder)

    def beat(self, at_s: float) -> None:
        """The slowest of the worker's loops came round at this time of the monotonic clock."""
        self._beat = at_s

    @property
    def silent_s(self) -> float:
        """Seconds since the slowest of the worker's loops last came round."""
        return time.monotonic() - self._beat

    @property
    def lag_s(self) -> float | None:
        """Age of the oldest behavior that waits, seconds; 0 where none does, None before the first look."""
        return max(self._ages_s().values(), default=None)

    def collect(self) -> Iterator[Metric]:
        """Every metric as Prometheus has it; called at each scrape."""
        with self._lock:
            counters, gauges = dict(self._counters), dict(self._gauges)
            buckets = {key: np.cumsum(counts) for key, counts in self._buckets.items()}
            sums = dict(self._sums)
        gauges |= {("feast_embeddings_stream_lag_seconds", (name,)): age for name, age in self._ages_s().items()}
        for name, (text, labels) in COUNTERS.items():
            counter = CounterMetricFamily(name, text, labels=labels)
            for key in [key for key in counters if key[0] == name]:
                counter.add_metric(key[1], counters[key])
            yield counter
        for name, (text, labels) in GAUGES.items():
            gauge = GaugeMetricFamily(name, text, labels=labels)
            for key in [key for key in gauges if key[0] == name]:
                gauge.add_metric(key[1], gauges[key])
            yield gauge
        freshness = HistogramMetricFamily(FRESHNESS, "Behavior to servable, by stage", labels=("view", "stage"))
        for (view, stage), counts in buckets.items():
            bounds = [*(repr(bound) for bound in BOUNDS), "+Inf"]
            shown = [(bound, float(count)) for bound, count in zip(bounds, counts, strict=True)]
            freshness.add_metric((view, stage), shown, sums[view, stage])
        yield freshness

    def _ages_s(self) -> dict[str, float]:
        now = now_us()
        with self._lock:
            return {source: 0.0 if us is None else max(now - us, 0) / 1e6 for source, us in self._oldest_us.items()}

    def _add(self, name: str, number: float, *labels: str) -> None:
        with self._lock:
            self._counters[f"feast_embeddings_{name}", labels] += number

    def _set(self, name: str, number: float, *labels: str) -> None:
        with self._lock:
            self._gauges[f"feast_embeddings_{name}", labels] = float(number)


def quantile(bounds: npt.NDArray[np.float64], counts: npt.NDArray[np.float64], q: float) -> float:
    """The q-quantile of a histogram, linear within a bucket, as Prometheus' ``histogram_quantile``.

    Args:
        bounds: Upper bounds [n], ascending, the last one infinite.
        counts: Observations up to each bound [n].
        q: In [0, 1].

    Returns:
        Seconds; NaN without observations, and the last finite bound where the quantile lies above it.
    """
    if not len(counts) or counts[-1] == 0:
        return float("nan")
    rank = q * counts[-1]
    at = min(int(np.searchsorted(counts, rank)), len(counts) - 1)
    if at == len(counts) - 1:
        return float(bounds[-2])
    low, before = (bounds[at - 1], counts[at - 1]) if at else (0.0, 0.0)
    return float(low + (bounds[at] - low) * (rank - before) / max(counts[at] - before, 1e-300))

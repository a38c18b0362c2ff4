"""A stream worker for what a feature repo declares: view, behavior log, encoder, and the source that is named."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from feast import FeatureStore

from feast_embeddings.materialize.declare import EmbeddingSpec, user_spec
from feast_embeddings.materialize.files import Compaction, Workspace, behavior_log_of
from feast_embeddings.materialize.ledger import Lease
from feast_embeddings.materialize.online import OnlineServer
from feast_embeddings.materialize.stream.kafka import Kafka, partitions_of
from feast_embeddings.materialize.stream.lane import OnTick
from feast_embeddings.materialize.stream.metrics import StreamMetrics
from feast_embeddings.materialize.stream.micro_batch import MicroBatches
from feast_embeddings.materialize.stream.recorded import ParquetReplay
from feast_embeddings.materialize.stream.redis_streams import RedisStreams, agreed_partitions
from feast_embeddings.materialize.stream.source import Source
from feast_embeddings.materialize.stream.worker import StreamOptions, StreamWorker, ViewStream
from feast_embeddings.materialize.ticks import ViewWork

Kind = Literal["redis", "kafka", "parquet"]


@dataclass(frozen=True)
class SourceOptions:
    """Where behaviors come from.

    Attributes:
        kind: ``"redis"`` (the streams of the repo's own Redis), ``"kafka"`` or ``"parquet"``.
        brokers, topic: Of Kafka.
        client: More of librdkafka's options.
        path, speed: Of a file that is replayed; speed 1 is its own pace, infinity all at once.
    """

    kind: Kind = "redis"
    brokers: str = ""
    topic: str = ""
    client: dict[str, Any] = field(default_factory=dict)
    path: str = ""
    speed: float = float("inf")


def make_worker(
    store: FeatureStore,
    view: str | None = None,
    source: SourceOptions | None = None,
    options: StreamOptions | None = None,
    metrics: StreamMetrics | None = None,
    compact_every_s: float = 30.0,
    on_tick: OnTick | None = None,
) -> StreamWorker:
    """A worker of one embedding view; its ``run()`` works until it is stopped.

    Raises:
        DeclarationError: There is no such view, or its behaviors cannot be appended to.
        StreamError: The source cannot be reached.
    """
    source, options = source or SourceOptions(), options or StreamOptions()
    workspace, spec = Workspace.of(store.config), user_spec(store, view)
    log = behavior_log_of(store, workspace, spec)
    workspace.declared_space(spec)
    server, project = OnlineServer.of(store.config), store.project
    partitions = _partitions(source, spec, project, server.client, options)
    options = replace(options, partitions=partitions, lanes=min(options.lanes, partitions))

    def open_source(own: tuple[int, ...], after: dict[int, int], worker: str) -> Source:
        if source.kind == "kafka":
            return Kafka(source.brokers, source.topic, f"{project}.{spec.view}", own, after, source.client)
        if source.kind == "parquet":
            return ParquetReplay(source.path, log.contract, spec.view, own, partitions, after, source.speed)
        return RedisStreams(server.client, project, spec.behaviors, spec.view, own, after, worker)

    def make_ticks(lease: Lease, lane: str) -> MicroBatches:
        work = ViewWork(workspace, server, spec, log, lease)
        work.ledger = workspace.ledger.under(lease.renew)  # several lanes write to it, each under its own lease
        return MicroBatches(work, project, lane, options.lateness_us)

    tidy = InBackground(Compaction.of(store, workspace, spec).run, compact_every_s)
    name = {"redis": spec.behaviors, "kafka": source.topic, "parquet": Path(source.path).name}[source.kind]
    stream = ViewStream(workspace.ledger, project, spec.view, name, open_source, make_ticks, tidy)
    return StreamWorker(stream, options, metrics, on_tick)


class InBackground:
    """Runs something now and then in a thread of its own, never twice at once; what it raises is raised here later."""

    def __init__(self, work: Callable[[], object], every_s: float) -> None:
        self._work, self._every_s = work, every_s
        self._next = time.monotonic() + every_s
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def __call__(self) -> None:
        """To be called often."""
        if self._error is not None:
            raise self._error
        if time.monotonic() < self._next or (self._thread is not None and self._thread.is_alive()):
            return
        self._next = time.monotonic() + self._every_s
        self._thread = threading.Thread(target=self._guarded, daemon=True)
        self._thread.start()

    def _guarded(self) -> None:
        try:
            self._work()
        except Exception as error:
            self._error = error


def _partitions(
    source: SourceOptions,
    spec: EmbeddingSpec,
    project: str,
    client: Callable[[], AbstractContextManager[Any]],
    options: StreamOptions,
) -> int:
    if source.kind == "kafka":
        return partitions_of(source.brokers, source.topic, source.client)
    if source.kind == "parquet":
        return options.partitions
    with client() as redis:
        return agreed_partitions(redis, project, spec.behaviors, options.partitions)

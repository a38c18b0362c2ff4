"""A worker at work, and what it answers over HTTP; and a way to hold it up."""

from __future__ import annotations

import io
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from feast import FeatureStore
from prometheus_client.parser import text_string_to_metric_families
from repo_fixture import SmallRepo
from rich.console import Console
from stream_fixture import PARTITIONS

from feast_embeddings.materialize.cli import watch
from feast_embeddings.materialize.stream import (
    SILENT_S,
    SourceOptions,
    StreamOptions,
    StreamWorker,
    health_of,
    make_worker,
)
from feast_embeddings.materialize.ticks import listening

OPTIONS = StreamOptions(partitions=PARTITIONS, lanes=2, lease_s=2)


def ask(port: int, path: str) -> tuple[int, str]:
    """Status and body of what is answered."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def problems(port: int, path: str) -> tuple[int, dict[str, Any]]:
    """Status, and what stands in the way by check."""
    status, body = ask(port, path)
    return status, json.loads(body)["problems"]


def until(condition: Callable[[], bool], within_s: float = 30) -> None:
    """Wait for something; fails where it does not come."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@dataclass
class Watched:
    """A worker, and where it answers."""

    worker: StreamWorker
    port: int
    thread: threading.Thread

    @property
    def url(self) -> str:
        """Of its metrics."""
        return f"http://127.0.0.1:{self.port}/metrics"

    def samples(self, name: str) -> dict[tuple[str, ...], float]:
        """Values of ``feast_embeddings_<name>`` by the values of its labels, in the order of their names."""
        families = text_string_to_metric_families(ask(self.port, "/metrics")[1])
        found = [each for family in families for each in family.samples if each.name == f"feast_embeddings_{name}"]
        return {tuple(each.labels.values()): each.value for each in found}

    def value(self, name: str) -> float:
        """The only value of a metric; NaN where it has none yet."""
        return next(iter(self.samples(name).values()), float("nan"))

    def screen(self) -> str:
        """What `status --watch` shows of it."""
        shown = io.StringIO()
        watch([self.url], times=1, console=Console(file=shown, width=160))
        return shown.getvalue()

    def stop(self) -> None:
        """End the worker; its last words go on being answered."""
        self.worker.stop()
        self.thread.join(20)
        assert not self.thread.is_alive()


@contextmanager
def watched(
    repo: SmallRepo,
    source: SourceOptions | None = None,
    options: StreamOptions = OPTIONS,
    max_lag_s: float = 60,
    silent_s: float = SILENT_S,
) -> Iterator[Watched]:
    """A worker of the present folder's repo, in a thread."""
    worker = make_worker(FeatureStore("."), source=source, options=options)
    health = health_of(repo.store, repo.spec(), worker.metrics, max_lag_s, silent_s)
    thread = threading.Thread(target=worker.run)
    with health.serving(port=0) as port:
        found = Watched(worker, port, thread)
        thread.start()
        try:
            yield found
        finally:
            found.stop()


@dataclass
class HeldUp:
    """A lane that stands still: ``there`` is set when it does, and setting ``free`` lets it go on."""

    there: threading.Event
    free: threading.Event


@contextmanager
def held_up(step: str = "members") -> Iterator[HeldUp]:
    """The first lane that comes to ``step`` inside the block stands still there until it is let go."""
    first, held = threading.Lock(), HeldUp(threading.Event(), threading.Event())

    def listener(name: str) -> None:
        if name == step and first.acquire(blocking=False):
            held.there.set()
            assert held.free.wait(60)

    with listening(listener):
        try:
            yield held
        finally:
            held.free.set()

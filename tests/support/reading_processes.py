"""Processes that read while generations change, each through one door, and what they found."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from feast import FeatureStore
from online_fixture import cut_over, fill, place_of, server_of
from servers_fixture import free_port

from feast_embeddings.materialize.online import remove_fill
from feast_embeddings.materialize.serving import read_vectors

FEATURES = ["users:embedding", "items:embedding"]
DOORS = ("sync", "async", "matrix", "http")


def publish(store: FeatureStore, generation: int, *, last: bool = False) -> None:
    """Both views of one more generation, whose vectors are its number; the one before it is removed at once."""
    views = ("users", "items")
    for view in views:
        fill(store, view, f"g{generation}", float(generation))
    cut_over(store, generation, **dict.fromkeys(views, f"g{generation}"))
    if generation > 1:
        for view in views:
            remove_fill(server_of(store), place_of(view, f"g{generation - 1}"))


class Readers:
    """Reader processes, started and stopped together."""

    def __init__(self, folder: Path, doors: Sequence[str], port: int = 0) -> None:
        context = multiprocessing.get_context("spawn")
        self._done, self._ready, self._found = context.Event(), context.Semaphore(0), context.Queue()
        arguments = (folder, port, self._done, self._ready, self._found)
        self.processes = [context.Process(target=_read, args=(door, *arguments), daemon=True) for door in doors]
        for process in self.processes:
            process.start()
        for _ in self.processes:
            assert self._ready.acquire(timeout=120), "a reader did not start"

    def stop(self) -> dict[str, dict[str, Any]]:
        """What every reader found: answers, generations seen, and what was wrong."""
        self._done.set()
        found = [self._found.get(timeout=60) for _ in self.processes]
        for process in self.processes:
            process.join(30)
        return {f"{number} {door}": result for number, (door, result) in enumerate(sorted(found, key=str))}


def _read(door: str, folder: Path, port: int, done: Any, ready: Any, found: Any) -> None:
    store = FeatureStore(str(folder))
    wrong: list[str] = []
    seen: set[float] = set()
    answers = 0
    ask = {"sync": _sync, "async": _async, "matrix": _matrix, "http": _http}[door]
    with asyncio.Runner() as runner:
        ask(store, runner, port)
        ready.release()
        while not done.is_set():
            try:
                numbers = ask(store, runner, port)
            except Exception as error:
                wrong.append(repr(error)[:300])
            else:
                seen.update(numbers)
                if len(set(numbers)) != 1:
                    wrong.append(f"mixed: {numbers}")
            answers += 1
    found.put((door, {"answers": answers, "generations seen": len(seen), "wrong": wrong[:5], "errors": len(wrong)}))


def _numbers(answer: dict[str, Any]) -> list[float]:
    return [row[0] if row else -1.0 for view in ("users", "items") for row in answer[f"{view}__embedding"]]


def _entities() -> list[dict[str, Any]]:
    return [{"user_id": 1}, {"user_id": 2}]


def _sync(store: FeatureStore, _runner: asyncio.Runner, _port: int) -> list[float]:
    return _numbers(store.get_online_features(FEATURES, _entities(), full_feature_names=True).to_dict())


def _async(store: FeatureStore, runner: asyncio.Runner, _port: int) -> list[float]:
    asked = store.get_online_features_async(FEATURES, _entities(), full_feature_names=True)
    return _numbers(runner.run(asked).to_dict())


def _matrix(store: FeatureStore, _runner: asyncio.Runner, _port: int) -> list[float]:
    vectors = read_vectors(store, FEATURES[0], [1, 2])
    return [*vectors.values[:, 0].tolist(), float(vectors.generation)]


def _http(_store: FeatureStore, _runner: asyncio.Runner, port: int) -> list[float]:
    asked = {"features": FEATURES, "entities": {"user_id": [1, 2]}, "full_feature_names": True}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/get-online-features",
        json.dumps(asked).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310
        body = json.load(response)
    names = body["metadata"]["feature_names"]
    columns = dict(zip(names, (result["values"] for result in body["results"]), strict=True))
    return _numbers(columns)


@contextmanager
def served(folder: Path) -> Iterator[int]:
    """`feast serve` on loopback; its port."""
    port = free_port()
    command = [
        str(Path(sys.executable).with_name("feast")),
        "-c",
        str(folder),
        "serve",
        "-h",
        "127.0.0.1",
        "-p",
        str(port),
    ]
    with (folder / "serve.log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            _await_server(port, folder / "serve.log")
            yield port
        finally:
            process.terminate()


def _await_server(port: int, log: Path) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"feast serve did not answer:\n{log.read_text()[-2000:]}")

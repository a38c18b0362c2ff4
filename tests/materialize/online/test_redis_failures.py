"""Redis fails in the middle of a tick: a clear error or a delay, and after it is well again the undisturbed end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fault_schedules import small_chunks, state_of
from repo_fixture import Frozen, SmallRepo, at, day, shop, tiny_encoder
from servers_fixture import BINARIES, Server, running

from feast_embeddings.materialize.ticks import listening
from feast_embeddings.models.errors import OnlineStoreError


@dataclass
class Shop:
    """A live repo on a server of its own, before a tick, and what is there after it."""

    server: Server
    repo: SmallRepo
    before: Frozen
    after: dict[str, Any]


@pytest.fixture(scope="module", params=BINARIES)
def shop_on_redis(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    folder, here = tmp_path_factory.mktemp(request.param), Path.cwd()
    (folder / "repo").mkdir()
    os.chdir(folder / "repo")
    options = ("--appendonly", "yes", "--appendfsync", "always")
    with running(BINARIES[request.param], folder / "server", *options) as server:
        repo = SmallRepo(folder / "repo", server.url, "shop", policy="Hybrid(alpha=0.5)").write()
        repo.deliver(shop(8), "shop")
        repo.encode_with(tiny_encoder(1))
        with at(day(4)):
            repo.materialize(day(4))
        before = repo.freeze()
        _tick(repo)
        yield Shop(server, repo, before, state_of(repo))
    os.chdir(here)


@pytest.fixture
def ready(shop_on_redis: Shop, monkeypatch: pytest.MonkeyPatch) -> Shop:
    monkeypatch.chdir(shop_on_redis.repo.folder)
    shop_on_redis.repo.thaw(shop_on_redis.before)
    return shop_on_redis


def _tick(repo: SmallRepo) -> None:
    with at(day(5)), small_chunks(3):
        repo.incremental(day(5), ["user_embedding"])


class After:
    """Does something to the server once, after the tick's second chunk."""

    def __init__(self, server: Server, *command: Any) -> None:
        self.server, self.command, self.chunks = server, command, 0

    def __call__(self, step: str) -> None:
        self.chunks += step == "chunk"
        if step == "chunk" and self.chunks == 2:
            self.act()

    def act(self) -> None:
        with self.server.client() as client:
            command = [part(client) if callable(part) else part for part in self.command]
            client.execute_command(*command)


class Crash(After):
    """The server dies."""

    def act(self) -> None:
        self.server.kill()


class Restart(After):
    """The server dies, and is back before anybody asks."""

    def act(self) -> None:
        self.server.kill()
        self.server.start()


def _used(client: Any) -> int:
    return int(client.info("memory")["used_memory"])


REFUSALS = {
    "full": (("CONFIG", "SET", "maxmemory", _used), ("CONFIG", "SET", "maxmemory", 0), "maxmemory"),
    "no replica left": (
        ("CONFIG", "SET", "min-replicas-to-write", 1),
        ("CONFIG", "SET", "min-replicas-to-write", 0),
        "NOREPLICAS|Not enough good replicas",
    ),
    "demoted": (("REPLICAOF", "127.0.0.1", 1), ("REPLICAOF", "NO", "ONE"), "READONLY|read only replica"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_server_that_refuses_writes_midway_is_named_and_nothing_is_lost(ready: Shop, case: str) -> None:
    breaks, heals, said = REFUSALS[case]
    with listening(After(ready.server, *breaks)), pytest.raises(OnlineStoreError, match=f"refused a command.*({said})"):
        _tick(ready.repo)
    After(ready.server, *heals).act()
    _ends_alike(ready)


def test_a_server_that_dies_midway_is_named_and_nothing_is_lost(ready: Shop) -> None:
    with listening(Crash(ready.server)), pytest.raises(OnlineStoreError, match=r"cannot be reached.*Start it"):
        _tick(ready.repo)
    ready.server.start()
    _ends_alike(ready)


def test_a_server_that_is_restarted_midway_is_reached_again(ready: Shop) -> None:
    with listening(Restart(ready.server)):
        _tick(ready.repo)
    _check(ready)


@pytest.mark.parametrize("command", [("CLIENT", "KILL", "TYPE", "normal"), ("CLIENT", "PAUSE", 400, "ALL")])
def test_a_dropped_connection_or_a_pause_only_costs_time(ready: Shop, command: tuple[Any, ...]) -> None:
    with listening(After(ready.server, *command)):
        _tick(ready.repo)
    _check(ready)


def _ends_alike(ready: Shop) -> None:
    assert ready.repo.last_tick().end_us == day(4)
    assert ready.repo.feast_watermark().timestamp() * 1_000_000 == day(4)
    _tick(ready.repo)
    _check(ready)


def _check(ready: Shop) -> None:
    found = state_of(ready.repo)
    for name, wanted in ready.after.items():
        assert found[name] == wanted, name

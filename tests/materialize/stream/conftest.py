"""Worlds of every kind of source, and what they need."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from servers_fixture import BINARIES, running
from sources_fixture import KafkaWorld, ParquetWorld, RedisWorld, World


@pytest.fixture(scope="session")
def stream_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a Valkey on loopback for all tests of streams."""
    with running(BINARIES["valkey"], tmp_path_factory.mktemp("stream-valkey")) as server:
        yield server.url


@pytest.fixture(params=["redis", "kafka", "parquet"])
def world(request: pytest.FixtureRequest, stream_server: str, tmp_path: Path) -> Iterator[World]:
    """A world of one kind."""
    if request.param == "kafka":
        yield KafkaWorld()
    elif request.param == "parquet":
        yield ParquetWorld(tmp_path)
    else:
        import redis

        with redis.Redis.from_url(stream_server) as client:
            yield RedisWorld(client)

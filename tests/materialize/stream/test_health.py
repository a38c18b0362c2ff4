"""A worker's health as an orchestrator asks for it: alive, ready, and what is wrong where it is not."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import threading
import time
import urllib.error
import urllib.request
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from repo_fixture import MakeRepo
from servers_fixture import BINARIES, free_port, running
from ticks_fixture import started
from typer.testing import CliRunner

from feast_embeddings.materialize.cli import app
from feast_embeddings.materialize.clock import now_us
from feast_embeddings.materialize.stream.health import Health, health_of
from feast_embeddings.materialize.stream.metrics import StreamMetrics
from feast_embeddings.models.errors import DeclarationError, OnlineStoreError


def ask(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def problems(port: int, path: str) -> tuple[int, dict[str, Any]]:
    status, body = ask(port, path)
    return status, json.loads(body)["problems"]


def test_a_worker_that_works_is_alive_and_ready(make_repo: MakeRepo) -> None:
    repo, metrics = started(make_repo), StreamMetrics()
    with health_of(repo.store, repo.spec(), metrics, max_lag_s=5).serving(port=0) as port:
        assert problems(port, "/healthz") == (200, {})
        assert problems(port, "/readyz") == (200, {})
        _, text = ask(port, "/metrics")
    generation = [f for f in text_string_to_metric_families(text) if f.name == "feast_embeddings_live_generation"]
    assert [(sample.labels, sample.value) for sample in generation[0].samples] == [({"encoder": "main"}, 1.0)]


def test_before_the_first_generation_it_is_alive_and_says_what_to_run(make_repo: MakeRepo) -> None:
    repo = make_repo()
    repo.apply()
    with health_of(repo.store, repo.spec(), StreamMetrics(), max_lag_s=5).serving(port=0) as port:
        assert problems(port, "/healthz") == (200, {})
        status, found = problems(port, "/readyz")
    assert (status, list(found)) == (503, ["encoder"])
    assert "run `feast materialize`" in found["encoder"]


def test_a_missing_encoder_a_long_lag_and_a_lost_ledger_are_each_told(make_repo: MakeRepo) -> None:
    repo, metrics = started(make_repo), StreamMetrics()
    health = health_of(repo.store, repo.spec(), metrics, max_lag_s=5)
    shutil.rmtree(repo.folder / "data" / "embeddings" / "encoders")
    metrics.lag("clicks", 100, 7.5)
    found = health.ready()
    assert set(found) == {"encoder", "lag"}
    assert found["lag"] == "7.5 s behind, more than 5 s"


def test_a_redis_that_is_gone_is_told(make_repo: MakeRepo, tmp_path: Any) -> None:
    repo = started(make_repo)
    with running(BINARIES["valkey"], tmp_path / "gone") as server:
        text = (repo.folder / "feature_store.yaml").read_text().replace(repo.connection, server.url)
        (repo.folder / "feature_store.yaml").write_text(text)
        repo._store = None
        health = health_of(repo.store, repo.spec(), StreamMetrics(), max_lag_s=5)
        assert "redis" not in health.ready()
    assert "redis" in health.ready()


def test_a_loop_that_stands_still_is_unhealthy() -> None:
    metrics = StreamMetrics()
    with Health(metrics, {}, silent_s=-1).serving(port=0) as port:
        assert problems(port, "/healthz")[0] == 503
        assert "restart the worker" in problems(port, "/readyz")[1]["loop"]
    metrics.beat()
    assert Health(metrics, {}, silent_s=60).alive() == {}


def test_a_check_that_fails_is_an_answer_and_no_crash() -> None:
    def unreachable() -> str | None:
        raise OnlineStoreError("Redis is not there.")

    with Health(StreamMetrics(), {"redis": unreachable}, refresh=unreachable).serving(port=0) as port:
        assert problems(port, "/readyz") == (503, {"redis": "Redis is not there."})
        assert ask(port, "/metrics")[0] == 200
        assert ask(port, "/elsewhere")[0] == 404


def test_it_listens_on_loopback_alone_and_a_taken_port_is_told() -> None:
    health = Health(StreamMetrics(), {})
    with health.serving(port=0) as port:
        with pytest.raises(DeclarationError, match="choose another --metrics-port"), health.serving(port=port):
            pass
        addresses = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), port, socket.AF_INET)}
        for address in addresses - {"127.0.0.1", "127.0.1.1"}:
            with pytest.raises(OSError, match=r"refused|timed out|unreachable"):
                socket.create_connection((address, port), timeout=2)


def test_the_stream_command_serves_them_while_it_works(make_repo: MakeRepo) -> None:
    repo, port, found = started(make_repo), free_port(), dict[str, tuple[int, str]]()

    def look() -> None:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and found.get("/readyz", (0, ""))[0] != 200:
            with contextlib.suppress(OSError):
                found.update({path: ask(port, path) for path in ("/metrics", "/healthz", "/readyz")})
            time.sleep(0.05)

    looking = threading.Thread(target=look)
    looking.start()
    append = ["append", json.dumps({"user": 1, "item": 101, "event": "view", "at": now_us() - 1000})]
    done = [
        CliRunner().invoke(app, arguments, catch_exceptions=False)
        for arguments in (append, ["stream", "--until-idle-s", "2", "--metrics-port", str(port)])
    ]
    looking.join()
    assert [each.exit_code for each in done] == [0, 0], done[-1].output
    assert {path: status for path, (status, _) in found.items()} == dict.fromkeys(found, 200)
    assert len(found) == 3
    assert "applied 1" in done[1].output
    with pytest.raises(urllib.error.URLError):
        ask(port, "/healthz")
    assert repo.vectors().found[0]

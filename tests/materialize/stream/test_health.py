"""A worker's health as an orchestrator asks for it: alive, ready, and what is wrong where it is not."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import socket
import sqlite3
import threading
import time
import urllib.error
from dataclasses import replace
from pathlib import Path

import pytest
from repo_fixture import MakeRepo, tiny_encoder
from rich.console import Console
from servers_fixture import BINARIES, free_port, running
from stream_fixture import SINCE, clicks, send, streamed
from ticks_fixture import started
from typer.testing import CliRunner
from watched_fixture import OPTIONS, Watched, ask, held_up, problems, until, watched

from feast_embeddings.materialize.cli.main import app
from feast_embeddings.materialize.cli.watch import scrape, watch
from feast_embeddings.materialize.clock import now_us
from feast_embeddings.materialize.stream.health import Health, health_of
from feast_embeddings.materialize.stream.metrics import StreamMetrics
from feast_embeddings.models.errors import DeclarationError


def test_a_worker_that_works_is_alive_and_ready(make_repo: MakeRepo) -> None:
    with watched(streamed(make_repo)) as seen:
        until(lambda: problems(seen.port, "/readyz") == (200, {}))
        assert problems(seen.port, "/healthz") == (200, {})
        assert seen.samples("live_generation") == {("main",): 1}


def test_before_the_first_generation_it_is_alive_and_says_what_to_run(make_repo: MakeRepo) -> None:
    repo = make_repo()
    repo.encode_with(tiny_encoder(1))
    with watched(repo) as seen:
        until(lambda: "lag" not in problems(seen.port, "/readyz")[1])
        assert problems(seen.port, "/healthz") == (200, {})
        status, found = problems(seen.port, "/readyz")
    assert (status, list(found)) == (503, ["encoder"])
    assert "run `feast materialize`" in found["encoder"]


def test_a_missing_encoder_is_told(make_repo: MakeRepo) -> None:
    repo = streamed(make_repo)
    with watched(repo) as seen:
        until(lambda: problems(seen.port, "/readyz") == (200, {}))
        shutil.rmtree(repo.folder / "data" / "embeddings" / "encoders")
        status, found = problems(seen.port, "/readyz")
    assert (status, list(found)) == (503, ["encoder"])


def test_a_lost_ledger_is_told(make_repo: MakeRepo) -> None:
    repo = started(make_repo)
    with health_of(repo.store, repo.spec(), StreamMetrics(), max_lag_s=5).serving(port=0) as port:
        assert "ledger" not in problems(port, "/readyz")[1]
        with contextlib.closing(sqlite3.connect(repo.folder / "data" / "embeddings" / "ledger.db")) as connection:
            connection.execute("DROP TABLE feast_embeddings_generations")
        status, found = problems(port, "/readyz")
        assert status == 503
        assert "Check that it can be reached" in found["ledger"]
        assert [ask(port, path)[0] for path in ("/metrics", "/elsewhere")] == [200, 404]


def test_a_redis_that_is_gone_is_told(make_repo: MakeRepo, tmp_path: Path) -> None:
    repo = started(make_repo)
    with running(BINARIES["valkey"], tmp_path / "gone") as server:
        text = (repo.folder / "feature_store.yaml").read_text().replace(repo.connection, server.url)
        (repo.folder / "feature_store.yaml").write_text(text)
        repo._store = None
        with health_of(repo.store, repo.spec(), StreamMetrics(), max_lag_s=5).serving(port=0) as port:
            assert "redis" not in problems(port, "/readyz")[1]
            server.kill()
            status, found = problems(port, "/readyz")
    assert status == 503
    assert "redis" in found


def test_a_lane_that_stands_still_is_unhealthy_though_another_goes_on(make_repo: MakeRepo) -> None:
    repo = streamed(make_repo)
    send(repo, clicks(30, 1, SINCE, SINCE + 0.5))
    with held_up() as held, watched(repo, silent_s=2) as seen:
        assert held.there.wait(30)
        until(lambda: seen.value("stream_ticks_total") == 1)
        until(lambda: problems(seen.port, "/healthz")[0] == 503)
        assert "restart the worker" in problems(seen.port, "/healthz")[1]["loop"]
        assert "loop" in problems(seen.port, "/readyz")[1]
        held.free.set()
        until(lambda: problems(seen.port, "/readyz") == (200, {}))
        assert problems(seen.port, "/healthz") == (200, {})


def test_a_worker_that_waits_for_a_lane_is_healthy_and_ready(make_repo: MakeRepo) -> None:
    repo = streamed(make_repo)
    with watched(repo, options=replace(OPTIONS, lanes=1)) as first:
        until(lambda: problems(first.port, "/readyz") == (200, {}))
        with watched(repo, options=replace(OPTIONS, lanes=1), silent_s=2) as second:
            time.sleep(3)
            assert [problems(second.port, path) for path in ("/healthz", "/readyz")] == [(200, {}), (200, {})]
            assert seen_lanes(first, second) == [1, 0]


def seen_lanes(*workers: Watched) -> list[int]:
    return [len(each.worker._open) for each in workers]


def test_it_listens_on_loopback_alone_and_a_taken_port_is_told() -> None:
    health = Health(StreamMetrics(), {})
    with health.serving(port=0) as port:
        with pytest.raises(DeclarationError, match="choose another --metrics-port"), health.serving(port=port):
            pass
        addresses = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), port, socket.AF_INET)}
        for address in addresses - {"127.0.0.1", "127.0.1.1"}:
            with pytest.raises(OSError, match=r"refused|timed out|unreachable"):
                socket.create_connection((address, port), timeout=2)


def test_watching_shows_what_several_workers_say_together(make_repo: MakeRepo) -> None:
    repo, screen = streamed(make_repo), io.StringIO()
    with watched(repo) as one, watched(repo) as other:
        until(lambda: seen_lanes(one, other) == [1, 1])
        send(repo, clicks(60, 1, SINCE, SINCE + 0.5))
        until(lambda: sum(each.worker.stats.behaviors for each in (one, other)) == 60)
        applied = [each.samples("stream_behaviors_total")["applied", "user_embedding"] for each in (one, other)]
        last = max(each.value("stream_last_tick") for each in (one, other))
        both = scrape([one.url, other.url])
        urls = [one.url, other.url, "http://127.0.0.1:1/metrics"]
        watch(urls, every_s=0, times=2, console=Console(file=screen, width=160))
    assert min(applied) > 0
    assert sum(applied) == 60
    assert both.values("stream_behaviors_total", "outcome", view="user_embedding")["applied"] == 60
    assert both.values("stream_last_tick", "view") == {"user_embedding": last}
    for piece in ("user_embedding", "60", "main: 1", "http://127.0.0.1:1/metrics does not answer"):
        assert piece in screen.getvalue()


def test_an_address_that_is_none_is_told() -> None:
    with pytest.raises(DeclarationError, match="is no address of a worker's metrics"):
        scrape(["localhost:9464"])


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


def test_status_watches_from_anywhere(
    make_repo: MakeRepo, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = streamed(make_repo)
    with watched(repo) as seen:
        send(repo, clicks(20, 1, SINCE, SINCE + 0.5))
        until(lambda: seen.worker.stats.behaviors == 20)
        seen.stop()  # what it said last is answered still, and it is not in its folder any more
        monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
        done = CliRunner().invoke(app, ["status", "--watch", "--url", seen.url, "--times", "1"])
    assert done.exit_code == 0
    assert "user_embedding" in done.output

"""``status --watch``: what stream workers measure, live."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from feast_embeddings.materialize.cli.main import app
from feast_embeddings.materialize.cli.watch import scrape, watch
from feast_embeddings.materialize.stream import Health, StreamMetrics
from feast_embeddings.models.errors import DeclarationError


def test_watching_shows_what_the_workers_say() -> None:
    one, other = StreamMetrics(), StreamMetrics()
    for metrics in (one, other):
        metrics.published("user_embedding", 12)
        metrics.counted("user_embedding", {"read": 60, "applied": 50, "quarantined: no item": 10})
        metrics.stage("user_embedding", "total", np.full(50, 0.010))
        metrics.lag("behaviors", 3, 0.25)
        metrics.generation("main", 7)
    screen = io.StringIO()
    with Health(one, {}).serving(port=0) as first, Health(other, {}).serving(port=0) as second:
        urls = [f"http://127.0.0.1:{port}/metrics" for port in (first, second)]
        watch([*urls, "http://127.0.0.1:1/metrics"], every_s=0, times=2, console=Console(file=screen, width=160))
        both = scrape(urls)
    text = screen.getvalue()
    assert both.values("stream_behaviors_total", "outcome", view="user_embedding")["applied"] == 100
    assert both.values("stream_last_tick", "view") == {"user_embedding": 12}
    assert both.values("stream_lag_behaviors", "source") == {"behaviors": 6}
    for piece in ("user_embedding", "100", "main: 7", "250.0 ms", "http://127.0.0.1:1/metrics does not answer"):
        assert piece in text


def test_an_address_that_is_none_is_told() -> None:
    with pytest.raises(DeclarationError, match="is no address of a worker's metrics"):
        scrape(["localhost:9464"])


def test_status_watches_from_anywhere(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    metrics = StreamMetrics()
    metrics.published("user_embedding", 3)
    with Health(metrics, {}).serving(port=0) as port:
        url = f"http://127.0.0.1:{port}/metrics"
        done = CliRunner().invoke(app, ["status", "--watch", "--url", url, "--times", "1"])
    assert done.exit_code == 0
    assert "user_embedding" in done.output

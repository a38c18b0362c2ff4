"""The stock commands, on the repo that `feast-embeddings init` writes."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from feast import FeatureStore
from initialized import feast, initialized, standing_in

from feast_embeddings.materialize.files import Workspace

NOW = datetime.now(UTC).replace(microsecond=0)
FEAST = Path(sys.executable).with_name("feast")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The scaffold, with a few users and an encoder of random weights; the process stands in it."""
    with standing_in(
        initialized(tmp_path_factory.mktemp("engine") / "shop", round(NOW.timestamp() * 1_000_000))
    ) as repo:
        yield repo


def _feast(folder: Path, *arguments: str) -> str:
    done = subprocess.run([FEAST, *arguments], cwd=folder, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _iso(days_ago: float) -> str:
    return (NOW - timedelta(days=days_ago)).strftime("%Y-%m-%dT%H:%M:%S")


def _registered(store: FeatureStore) -> dict[str, Any]:
    store.refresh_registry()
    views = [*store.list_feature_views(), *store.list_stream_feature_views()]
    versions = {view.name: store.list_feature_view_versions(view.name) for view in views}
    # Feast stamps the sources of a view anew with every apply; nothing else may change.
    specs = {view.name: re.sub(r"(seconds|nanos): \d+", "", str(view.to_proto().spec)) for view in views}
    return {"specs": specs, "versions": versions, "watermarks": [view.most_recent_end_time for view in views]}


@pytest.fixture(scope="module")
def applied(folder: Path) -> FeatureStore:
    _feast(folder, "apply")
    return FeatureStore(".")


@pytest.fixture(scope="module")
def materialized(folder: Path, applied: FeatureStore) -> tuple[FeatureStore, str, str]:
    """After `feast materialize`, then `feast materialize-incremental`; what they printed."""
    first = _feast(folder, "materialize", _iso(400), _iso(2))
    return applied, first, feast("materialize-incremental", _iso(0))


def test_the_stock_commands_run_refreshes_and_ticks(materialized: tuple[FeatureStore, str, str]) -> None:
    store, first, second = materialized
    assert "user_embedding: a full refresh as of the end; the start is not used" in first
    assert "generation 1 of encoder 'main' is live" in first
    assert "user_embedding: 2 unit(s) of work" in second
    assert "item_embedding: nothing is due" in second
    last = Workspace.of(store.config).ledger.last_tick("user_embedding")
    assert last is not None
    assert last.end_us == round(NOW.timestamp() * 1_000_000)


def test_all_views_are_read_together(materialized: tuple[FeatureStore, str, str]) -> None:
    store = materialized[0]
    service = store.get_feature_service("ranking_serving")
    answer = store.get_online_features(service, [{"user_id": user} for user in range(1, 21)]).to_dict()
    assert sum(vector is not None and len(vector) == 64 for vector in answer["user_vector"]) >= 18
    assert all(len(items) for items in answer["history_items"] if items is not None)
    assert sum(answer["view_28d"][row] or 0 for row in range(20)) > 0
    raw = store.get_online_features(["behaviors:item_id", "behaviors:behavior_type"], [{"user_id": 1}]).to_dict()
    assert raw["item_id"][0] >= 1_001


def test_applying_again_changes_nothing(folder: Path, materialized: tuple[FeatureStore, str, str]) -> None:
    store = materialized[0]
    ledger = Workspace.of(store.config).ledger

    def state() -> tuple[Any, ...]:
        logs = sorted(path.name for path in (folder / "data/embeddings/log").rglob("*.parquet"))
        return _registered(store), ledger.generations("main"), ledger.fills(encoder="main"), logs

    before = state()
    feast("apply")
    assert state() == before


def test_feature_views_are_listed(applied: FeatureStore) -> None:
    listed = feast("feature-views", "list")
    for view in ("behaviors", "activity", "history"):  # Feast 0.67 lists no stream feature views here
        assert view in listed
    assert "user_embedding" in feast("stream-feature-views", "list")


def test_feast_serve_answers(folder: Path, materialized: tuple[FeatureStore, str, str]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [FEAST, "serve", "--host", "127.0.0.1", "--port", str(port), "--no-access-log"]
    body = json.dumps(
        {"features": ["user_embedding:user_vector", "history:history_items"], "entities": {"user_id": [1]}}
    )
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/get-online-features", body.encode(), {"Content-Type": "application/json"}
    )
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            answer = _ask(request)
        finally:
            server.terminate()
    names = answer["metadata"]["feature_names"]
    values = {name: result["values"][0] for name, result in zip(names, answer["results"], strict=True)}
    online = materialized[0].get_online_features(["user_embedding:user_vector"], [{"user_id": 1}]).to_dict()
    np.testing.assert_allclose(values["user_vector"], online["user_vector"][0], rtol=1e-6)
    assert len(values["history_items"]) > 0


def _ask(request: urllib.request.Request) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310 - loopback
                answer: dict[str, Any] = json.load(response)
                return answer
        except (ConnectionError, OSError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)

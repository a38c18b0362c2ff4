"""The examples under deploy/ keep their word: commands, options, ports, files and metrics that they name exist."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from feast.cli.cli import cli as feast_cli
from prometheus_client import Metric
from typer.main import get_command

from feast_embeddings.materialize.cli import app
from feast_embeddings.materialize.serving import REQUEST_METRICS
from feast_embeddings.materialize.stream import COUNTERS, FRESHNESS, GAUGES

DEPLOY = Path(__file__).parents[1] / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, Any] = COMPOSE["services"]
DASHBOARD = json.loads((DEPLOY / "grafana" / "freshness.json").read_text(encoding="utf-8"))


def commands() -> Iterator[tuple[str, list[str]]]:
    for name, service in SERVICES.items():
        if service.get("command", [""])[0] in ("feast", "feast-embeddings"):
            yield name, service["command"]


@pytest.mark.parametrize(("name", "line"), list(commands()))
def test_a_command_and_its_options_exist(name: str, line: list[str]) -> None:
    """Click itself parses the line, as the container would, without running it."""
    group: Any = get_command(app) if line[0] == "feast-embeddings" else feast_cli
    with group.make_context(line[0], line[1:]) as context:
        arguments = [*context._protected_args, *context.args]
        found, command, rest = group.resolve_command(context, arguments)
        assert command is not None
        command.make_context(found, list(rest), parent=context)


def test_both_kinds_of_service_are_there() -> None:
    assert {name for name, _ in commands()} == {"stream", "serve"}
    assert set(SERVICES) == {"valkey", "stream", "serve", "prometheus", "grafana"}


@pytest.mark.parametrize("name", SERVICES)
def test_a_port_is_open_on_loopback_alone(name: str) -> None:
    ports = SERVICES[name]["ports"]
    assert ports
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []


@pytest.mark.parametrize("name", [name for name, service in SERVICES.items() if "healthcheck" not in service])
def test_an_image_is_named_plainly(name: str) -> None:
    host = SERVICES[name]["image"].split("/")[0]
    assert "." not in host
    assert ":" not in host


def test_every_mounted_file_of_ours_is_there() -> None:
    mounted = [volume.split(":")[0] for service in SERVICES.values() for volume in service.get("volumes", [])]
    ours = [path for path in mounted if path.startswith("./")]
    assert ours
    assert [path for path in ours if not (DEPLOY / path).exists()] == []
    assert (DEPLOY / "Dockerfile").is_file()


def test_prometheus_asks_services_at_the_ports_where_they_answer() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus.yaml").read_text())
    targets = {
        target for job in config["scrape_configs"] for part in job["static_configs"] for target in part["targets"]
    }
    port = SERVICES["stream"]["command"][SERVICES["stream"]["command"].index("--metrics-port") + 1]
    assert targets == {f"stream:{port}", "serve:8000"}  # the port of Feast's metrics server


def known_metrics() -> set[str]:
    named = {f"{name}_total" for name in COUNTERS} | set(GAUGES)
    named |= {f"{FRESHNESS}_{part}" for part in ("bucket", "sum", "count")}
    for family in REQUEST_METRICS.collect():
        assert isinstance(family, Metric)
        parts = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}[family.type]
        named |= {f"{family.name}{part}" for part in parts}
    return named


def queries() -> list[str]:
    asked = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    return asked + [variable["query"] for variable in DASHBOARD["templating"]["list"]]


def test_every_query_of_the_dashboard_names_metrics_that_exist() -> None:
    named = {name for query in queries() for name in re.findall(r"feast_embeddings_\w+", query)}
    assert named
    assert named - known_metrics() == set()


def test_every_query_selects_by_labels_that_its_metric_has() -> None:
    labels = {f"{name}_total": set(has) for name, (_, has) in COUNTERS.items()}
    labels |= {name: set(has) for name, (_, has) in GAUGES.items()} | {f"{FRESHNESS}_bucket": {"view", "stage"}}
    for query in queries():
        for name, selected in re.findall(r"(feast_embeddings_\w+)\{([^}]*)\}", query):
            assert {pair.split("=")[0].strip("! ~") for pair in selected.split(",")} <= labels[name], query


def test_every_stream_metric_is_shown_somewhere() -> None:
    text = " ".join(queries())
    shown = {name for name in known_metrics() if name in text}
    hidden = {name for name in known_metrics() - shown if not name.endswith(("_sum", "_count"))}
    assert hidden <= {"feast_embeddings_stream_last_tick", "feast_embeddings_session_encoders_loaded_total"}

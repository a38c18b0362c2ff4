"""``/metrics``, ``/healthz`` and ``/readyz`` of a stream worker, for Prometheus and for an orchestrator.

*Healthy*: the worker's loop has come round lately; if not, restart it. *Ready*: it can apply what comes, and is not
far behind; if not, leave it alone, and look at what it says.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from socketserver import ThreadingMixIn
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from feast import FeatureStore
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from feast_embeddings.materialize.declare import EmbeddingSpec
from feast_embeddings.materialize.files import Workspace
from feast_embeddings.materialize.online import OnlineServer
from feast_embeddings.materialize.stream.metrics import StreamMetrics
from feast_embeddings.models import read_manifest
from feast_embeddings.models.errors import DeclarationError

LOOPBACK: Final = "127.0.0.1"
PORT: Final = 9464
SILENT_S: Final = 60.0
"""A loop that did not come round for so long is taken for stuck: a micro-batch takes far less."""

Check = Callable[[], str | None]
"""What stands in the way; None: nothing does."""
Respond = Callable[[str, list[tuple[str, str]]], object]


class Health:
    """What a worker answers over HTTP.

    Args:
        metrics: The worker's.
        checks: What must hold for the worker to be ready, by name.
        refresh: Called before each scrape, for what is read rather than counted; what it raises is not shown.
        silent_s: Seconds after which a silent loop is unhealthy.
    """

    def __init__(
        self,
        metrics: StreamMetrics,
        checks: Mapping[str, Check],
        refresh: Callable[[], object] | None = None,
        silent_s: float = SILENT_S,
    ) -> None:
        self._metrics, self._checks, self._refresh, self._silent_s = metrics, checks, refresh, silent_s

    def alive(self) -> dict[str, str]:
        """What is wrong with the worker itself; empty where nothing is."""
        silent = self._metrics.silent_s
        return (
            {} if silent <= self._silent_s else {"loop": f"has not come round for {silent:.0f} s: restart the worker"}
        )

    def ready(self) -> dict[str, str]:
        """What stands in the way of applying behaviors, by check; empty where nothing does."""
        found = {name: _asked(check) for name, check in self._checks.items()}
        return self.alive() | {name: problem for name, problem in found.items() if problem is not None}

    def answer(self, path: str) -> tuple[str, str, bytes]:
        """Status, content type and body for a path."""
        if path == "/metrics":
            if self._refresh is not None:
                _asked(self._refresh)
            return "200 OK", CONTENT_TYPE_LATEST, generate_latest(self._metrics.registry)
        if path not in ("/healthz", "/readyz"):
            return "404 Not Found", "text/plain", b"/metrics, /healthz and /readyz are here\n"
        problems = self.alive() if path == "/healthz" else self.ready()
        body = json.dumps({"status": "no" if problems else "ok", "problems": problems}).encode() + b"\n"
        return ("503 Service Unavailable" if problems else "200 OK"), "application/json", body

    @contextmanager
    def serving(self, port: int = PORT, host: str = LOOPBACK) -> Iterator[int]:
        """Answer on ``host``, on loopback unless told otherwise, inside the block; yields the port (0 picks one).

        Raises:
            DeclarationError: The port is taken, or the host is not of this machine.
        """
        try:
            server = make_server(host, port, self._application, _Server, _Quiet)
        except OSError as error:
            raise DeclarationError(
                f"Metrics cannot be served on {host}:{port} ({error}): choose another --metrics-port, or 0 for none."
            ) from error
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def _application(self, environ: Mapping[str, Any], respond: Respond) -> Iterable[bytes]:
        status, kind, body = self.answer(environ["PATH_INFO"])
        respond(status, [("Content-Type", kind), ("Content-Length", str(len(body)))])
        return [body]


def health_of(
    store: FeatureStore, spec: EmbeddingSpec, metrics: StreamMetrics, max_lag_s: float, silent_s: float = SILENT_S
) -> Health:
    """The health of a worker on a view: ledger and Redis reachable, the encoder here, the lag within bounds."""
    workspace, server = Workspace.of(store.config), OnlineServer.of(store.config)

    def ledger() -> str | None:
        workspace.ledger.live_generation(spec.encoder)
        return None

    def redis_server() -> str | None:
        with server.client() as client:
            client.ping()
        return None

    def encoder() -> str | None:
        live = workspace.ledger.fills(view=spec.view, states=("live",))
        if not live:
            return f"view {spec.view!r} has no live generation yet: run `feast materialize`"
        read_manifest(workspace.paths.encoder(live[-1].space))
        return None

    def lag() -> str | None:
        behind = metrics.lag_s
        if behind is None:
            return "nobody looked at the source yet: the worker has just begun, or its stream is paused"
        late = f"the oldest behavior that waits came {behind:.1f} s ago, more than {max_lag_s:g} s (--max-lag-s)"
        return None if behind <= max_lag_s else late

    def refresh() -> None:
        generation = workspace.ledger.live_generation(spec.encoder)
        metrics.generation(spec.encoder, generation.generation if generation else 0)

    return Health(metrics, {"ledger": ledger, "redis": redis_server, "encoder": encoder, "lag": lag}, refresh, silent_s)


def _asked(check: Callable[[], Any]) -> str | None:
    try:
        found: str | None = check()
    except Exception as error:
        return str(error) or type(error).__name__
    return found


class _Server(ThreadingMixIn, WSGIServer):
    """Answers a probe while a scrape is under way."""

    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    """A probe each few seconds is no news."""

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the standard library's name
        """Nothing."""

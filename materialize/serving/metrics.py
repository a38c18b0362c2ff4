"""What requests do, as Prometheus metrics: sessions that are encoded while they wait, behaviors that are pushed.

They stand in a registry of their own. Under ``feast serve --metrics``, Feast's metrics server shows them too, summed
over its worker processes: Feast keeps the values of all metrics of a server in files.
"""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram

REQUEST_METRICS: Final = CollectorRegistry()
_SECONDS: Final = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.03, 0.05, 0.1, 0.25, 1.0)

SESSIONS: Final = Counter(
    "feast_embeddings_session_vectors", "Vectors encoded at request time", ["view"], registry=REQUEST_METRICS
)
BEHAVIORS: Final = Counter(
    "feast_embeddings_session_behaviors",
    "Behaviors that came with requests, by what became of them",
    ["view", "outcome"],
    registry=REQUEST_METRICS,
)
UNKNOWN_ITEMS: Final = Counter(
    "feast_embeddings_session_unknown_items",
    "Behaviors that came with requests, on items the encoder does not know",
    ["view"],
    registry=REQUEST_METRICS,
)
SECONDS: Final = Histogram(
    "feast_embeddings_session_seconds",
    "Time of a request spent in the session view, by part",
    ["view", "part"],
    buckets=_SECONDS,
    registry=REQUEST_METRICS,
)
LOADED: Final = Counter(
    "feast_embeddings_session_encoders_loaded",
    "Encoders loaded to serve sessions",
    ["encoder"],
    registry=REQUEST_METRICS,
)
PUSHED: Final = Counter(
    "feast_embeddings_pushed_behaviors",
    "Behaviors that pushes appended to their stream",
    ["view"],
    registry=REQUEST_METRICS,
)

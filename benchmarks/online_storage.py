"""What fewer bits per number save in Redis and cost in reads and in precision: one fill in each storage, in turn."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np
from online_sides import FEATURE_REF, Ours, Server

from feast_embeddings.materialize import read_vectors
from feast_embeddings.materialize.declare import STORAGES

SAMPLED_KEYS = 1000


def bytes_of(server: Server) -> float:
    """Median bytes that a key takes in Redis."""
    keys = [server.client.randomkey() for _ in range(SAMPLED_KEYS)]
    return statistics.median(size for key in keys if (size := server.client.memory_usage(key, samples=0)))


def measure_storage(server: Server, ours: Ours, entities: int, repeats: int) -> dict[str, Any]:
    """Per storage: bytes per entity, seconds of ``read_vectors``, and the largest error beside float32's values."""
    ids, exact = list(range(7, 7 + entities)), np.empty(0)
    found: dict[str, Any] = {}
    for storage in STORAGES:
        server.flush()
        ours.storage = storage
        start = time.perf_counter()
        ours.write()
        written = time.perf_counter() - start
        values = read_vectors(ours.store, FEATURE_REF, ids).values
        exact = values if storage == "float32" else exact
        found[storage] = {
            "bytes_per_entity": bytes_of(server),
            "write_seconds": written,
            "read_seconds": _median_read(ours, ids, repeats),
            "largest_error_of_largest_number": float(
                (np.abs(values - exact).max(axis=1) / np.abs(exact).max(axis=1)).max()
            ),
        }
    ours.storage = "float32"
    return found


def _median_read(ours: Ours, ids: list[int], repeats: int) -> float:
    runs = []
    for _ in range(repeats):
        start = time.perf_counter()
        read_vectors(ours.store, FEATURE_REF, ids)
        runs.append(time.perf_counter() - start)
    return statistics.median(runs)

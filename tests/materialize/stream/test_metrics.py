"""What a stream worker measures comes out at a scrape, and its quantiles are those of the behaviors."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from feast_embeddings.materialize.stream.metrics import BOUNDS, FRESHNESS, StreamMetrics, quantile

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def scraped(metrics: StreamMetrics) -> Samples:
    families = text_string_to_metric_families(generate_latest(metrics.registry).decode())
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def sample(metrics: StreamMetrics, name: str, **labels: str) -> float:
    return scraped(metrics)[f"feast_embeddings_{name}", tuple(sorted(labels.items()))]


def test_counts_in_the_ledgers_words_come_out_by_outcome_and_reason() -> None:
    metrics = StreamMetrics()
    for _ in range(2):
        metrics.counted("user", {"read": 10, "applied": 7, "deduplicated": 1, "quarantined: no item": 2})

    assert sample(metrics, "stream_behaviors_total", view="user", outcome="applied") == 14
    assert sample(metrics, "stream_behaviors_total", view="user", outcome="quarantined") == 4
    assert sample(metrics, "stream_quarantined_total", view="user", reason="no item") == 4


def test_lag_tick_and_generation_are_the_last_ones_told() -> None:
    metrics = StreamMetrics()
    metrics.lag("clicks", 5, 0.5)
    metrics.lag("clicks", 3, 0.25)
    metrics.published("user", 7)
    metrics.published("user", 8)
    metrics.generation("main", 4)
    metrics.late("user", 2)
    metrics.unknown("user", 3)
    metrics.queued("clicks", 9)

    assert sample(metrics, "stream_lag_behaviors", source="clicks") == 3
    assert metrics.lag_s == 0.25
    assert sample(metrics, "stream_last_tick", view="user") == 8
    assert sample(metrics, "stream_ticks_total", view="user") == 2
    assert sample(metrics, "live_generation", encoder="main") == 4
    assert sample(metrics, "stream_late_total", view="user") == 2
    assert sample(metrics, "stream_unknown_items_total", view="user") == 3
    assert sample(metrics, "stream_queued_behaviors", source="clicks") == 9


def test_two_workers_of_one_process_do_not_share_a_registry() -> None:
    one, other = StreamMetrics(), StreamMetrics()
    one.published("user", 1)
    assert not [name for name, _ in scraped(other) if name.endswith("ticks_total")]


def test_a_stage_that_all_behaviors_of_a_tick_share_weighs_once_per_behavior() -> None:
    shared, each = StreamMetrics(), StreamMetrics()
    shared.stage("user", "encode", 0.02, behaviors=50)
    each.stage("user", "encode", np.full(50, 0.02))
    assert scraped(shared) == pytest.approx(scraped(each))
    assert sample(shared, "freshness_seconds_count", view="user", stage="encode") == 50
    assert sample(shared, "freshness_seconds_sum", view="user", stage="encode") == pytest.approx(1.0)


@given(st.lists(st.floats(1e-4, 300), min_size=1, max_size=200), st.sampled_from([0.0, 0.5, 0.9, 0.99, 1.0]))
def test_a_quantile_lies_in_the_bucket_of_the_behavior_it_stands_for(seconds: list[float], q: float) -> None:
    metrics = StreamMetrics()
    metrics.stage("user", "total", np.array(seconds))
    found = scraped(metrics)
    edges = [*BOUNDS, np.inf]
    counts = np.array([found[f"{FRESHNESS}_bucket", _labels(edge)] for edge in edges])

    exact = np.sort(seconds)[max(int(np.ceil(q * len(seconds))) - 1, 0)]
    got = quantile(np.array(edges), counts, q)

    bucket = int(np.searchsorted(BOUNDS, exact))
    assert ([0.0, *BOUNDS][bucket] <= got <= edges[bucket]) or q == 0.0


def _labels(edge: float) -> tuple[tuple[str, str], ...]:
    le = "+Inf" if np.isinf(edge) else repr(float(edge))
    return (("le", le), ("stage", "total"), ("view", "user"))


def test_without_observations_there_is_no_quantile() -> None:
    assert np.isnan(quantile(np.array([1.0, np.inf]), np.array([0.0, 0.0]), 0.5))


def test_threads_lose_no_count() -> None:
    metrics = StreamMetrics()
    threads = [threading.Thread(target=lambda: [metrics.late("user", 1) for _ in range(500)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sample(metrics, "stream_late_total", view="user") == 4000

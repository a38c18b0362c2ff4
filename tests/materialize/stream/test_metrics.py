"""What a stream worker measures comes out at a scrape, and its quantiles are those of the behaviors."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from repo_fixture import MakeRepo
from stream_fixture import PARTITIONS, SINCE, behavior, send, streamed
from watched_fixture import OPTIONS, until, watched

from feast_embeddings.materialize.stream.metrics import BOUNDS, FRESHNESS, STAGES, StreamMetrics, quantile
from feast_embeddings.materialize.stream.push import append_behaviors

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def scraped(metrics: StreamMetrics) -> Samples:
    families = text_string_to_metric_families(generate_latest(metrics.registry).decode())
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def sample(metrics: StreamMetrics, name: str, **labels: str) -> float:
    return scraped(metrics)[f"feast_embeddings_{name}", tuple(sorted(labels.items()))]


def test_a_worker_counts_what_became_of_each_behavior_as_the_ledger_does(make_repo: MakeRepo) -> None:
    repo = streamed(make_repo)
    first = [behavior(user, 101, SINCE + 0.3) for user in (1, 2, 3)]
    late = behavior(1, 102, SINCE + 0.2)
    unknown = [behavior(user, 999, SINCE + 0.4) for user in (1, 2)]
    bad = behavior(4, 103, SINCE + 0.4) | {"event": "no such type"}
    began = time.monotonic()
    with watched(repo, options=replace(OPTIONS, lanes=1)) as seen:
        send(repo, first)
        until(lambda: seen.worker.stats.behaviors == 3)
        send(repo, [*unknown, late, first[0], bad])
        with repo.redis() as client:
            append_behaviors(client, repo.project, "behaviors", PARTITIONS, [1], [b"no behavior"])
        until(lambda: seen.worker.stats.behaviors == 9)
        outcomes, reasons = seen.samples("stream_behaviors_total"), seen.samples("stream_quarantined_total")
        counted = {name: seen.value(f"stream_{name}_total") for name in ("late", "unknown_items", "ticks")}
        last, freshness = seen.value("stream_last_tick"), seen.samples("freshness_seconds_count")
        seconds = seen.samples("freshness_seconds_sum")
    ledger = repo.workspace.ledger
    told = {"read": 9, "applied": 6, "deduplicated": 1, "quarantined": 2}
    assert outcomes == {(name, "user_embedding"): count for name, count in told.items()}
    totals = ledger.stream_counts("user_embedding")
    assert {f"quarantined: {reason}": count for (reason, _), count in reasons.items()} == {
        name: count for name, count in totals.items() if name.startswith("quarantined")
    }
    assert {name: totals[name] for name in ("read", "applied", "deduplicated")}.items() <= told.items()
    ticks = ledger.micro_batches("user_embedding")
    assert counted == {"late": 1, "unknown_items": 2, "ticks": len(ticks)}
    assert last == ticks[-1].number
    assert freshness == {(stage, "user_embedding"): 9 for stage in STAGES}
    whole = seconds.pop(("total", "user_embedding"))
    assert 0 < max(seconds.values()) <= whole <= 9 * (time.monotonic() - began)


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

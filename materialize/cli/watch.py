"""``feast-embeddings status --watch``: the metrics of stream workers, live."""

from __future__ import annotations

import math
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console, Group
from rich.live import Live
from rich.table import Column, Table

from feast_embeddings.materialize.cli.repo import LOOPBACK

URL: Final = f"http://{LOOPBACK}:9464/metrics"
_OUTCOMES: Final = ("applied", "deduplicated", "quarantined")
Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Scrape:
    """What workers said at one time; counts, lags and buckets of several are summed.

    Attributes:
        at_s: When, on a steady clock.
        samples: Name and labels → value.
        silent: Addresses that did not answer.
    """

    at_s: float
    samples: Mapping[tuple[str, Labels], float]
    silent: tuple[str, ...] = ()
    _index: dict[str, list[tuple[dict[str, str], float]]] = field(default_factory=dict)

    def named(self, name: str) -> list[tuple[dict[str, str], float]]:
        """Labels and value of every sample of ``feast_embeddings_<name>``."""
        if not self._index:
            for (full, labels), value in self.samples.items():
                self._index.setdefault(full, []).append((dict(labels), value))
        return self._index.get(f"feast_embeddings_{name}", [])

    def values(self, name: str, by: str, **labels: str) -> dict[str, float]:
        """Values of the samples with ``labels``, by another label."""
        return {has[by]: value for has, value in self.named(name) if all(has[key] == labels[key] for key in labels)}


def scrape(urls: Sequence[str]) -> Scrape:
    """Ask every worker for its metrics."""
    samples: defaultdict[tuple[str, Labels], float] = defaultdict(float)
    silent = []
    for url in urls:
        if not url.startswith(("http://", "https://")):
            from feast_embeddings.models.errors import DeclarationError

            raise DeclarationError(f"{url!r} is no address of a worker's metrics: write it as {URL}.")
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - http only, checked above
                text = answer.read().decode()
        except OSError:
            silent.append(url)
            continue
        for family in text_string_to_metric_families(text):
            for each in family.samples:
                key = each.name, tuple(sorted(each.labels.items()))
                whole = family.type == "gauge" and not each.name.endswith(("lag_behaviors", "queued_behaviors"))
                samples[key] = max(samples[key], each.value) if whole else samples[key] + each.value
    return Scrape(time.monotonic(), samples, tuple(silent))


def shown(now: Scrape, before: Scrape | None) -> Group:
    """Freshness, throughput and lag, as tables; rates are since ``before``."""
    parts: list[Table | str] = [_freshness(now, before), _behaviors(now, before), _lag(now)]
    parts += [f"{url} does not answer: is a worker running there?" for url in now.silent]
    return Group(*parts)


def watch(urls: Sequence[str], every_s: float = 2.0, times: int | None = None, console: Console | None = None) -> None:
    """Show the workers' metrics until interrupted, or so many times.

    Raises:
        DeclarationError: An address is none.
    """
    before, now = None, scrape(urls)
    with Live(shown(now, before), console=console, auto_refresh=False) as live:
        while times is None or times > 1:
            time.sleep(every_s)
            before, now = now, scrape(urls)
            live.update(shown(now, before), refresh=True)
            times = None if times is None else times - 1


def _freshness(now: Scrape, before: Scrape | None) -> Table:
    from feast_embeddings.materialize.stream import STAGES, quantile

    table = Table(
        "view", "stage", "p50", "p99", "behaviors", title="Freshness since the last look", title_justify="left"
    )
    counts, earlier = _buckets(now), _buckets(before) if before else {}
    for view in sorted({view for view, _ in counts}):
        for stage in STAGES:
            found = counts.get((view, stage))
            if found is None:
                continue
            edges = np.array(sorted(found))
            total = np.array([found[edge] for edge in edges.tolist()])
            recent = total - np.array([earlier.get((view, stage), {}).get(edge, 0.0) for edge in edges.tolist()])
            since = recent if recent[-1] > 0 else total
            numbers = (_time(quantile(edges, since, q)) for q in (0.5, 0.99))
            table.add_row(view, stage, *numbers, f"{since[-1]:,.0f}")
    return table


def _buckets(scraped: Scrape) -> dict[tuple[str, str], dict[float, float]]:
    from feast_embeddings.materialize.stream import FRESHNESS

    found: defaultdict[tuple[str, str], dict[float, float]] = defaultdict(dict)
    for labels, value in scraped.named(f"{FRESHNESS.removeprefix('feast_embeddings_')}_bucket"):
        found[labels["view"], labels["stage"]][float(labels["le"])] = value
    return dict(found)


def _behaviors(now: Scrape, before: Scrape | None) -> Table:
    heads = ("applied/s", *_OUTCOMES, "late", "unknown items", "last tick")
    table = Table(Column("view", no_wrap=True), *heads, title="Behaviors", title_justify="left")
    for view in _views(now.named("stream_ticks_total")):
        counts = now.values("stream_behaviors_total", "outcome", view=view)
        rate = ""
        if before is not None:
            earlier = before.values("stream_behaviors_total", "outcome", view=view)
            rate = f"{(counts.get('applied', 0) - earlier.get('applied', 0)) / max(now.at_s - before.at_s, 1e-9):,.0f}"
        names = ("stream_late_total", "stream_unknown_items_total", "stream_last_tick")
        others = [now.values(name, "view").get(view, 0) for name in names]
        numbers = [*(counts.get(outcome, 0) for outcome in _OUTCOMES), *others]
        table.add_row(view, rate, *(f"{number:,.0f}" for number in numbers))
    return table


def _lag(now: Scrape) -> Table:
    table = Table("source", "waiting", "oldest for", "in the worker", title="Lag", title_justify="left")
    seconds = now.values("stream_lag_seconds", "source")
    queued = now.values("stream_queued_behaviors", "source")
    for source, behaviors in sorted(now.values("stream_lag_behaviors", "source").items()):
        oldest = _time(seconds.get(source, math.nan))
        table.add_row(source, f"{behaviors:,.0f}", oldest, f"{queued.get(source, 0):,.0f}")
    generations = [f"{has['encoder']}: {value:.0f}" for has, value in now.named("live_generation")]
    table.caption = f"live generation: {', '.join(generations)}" if generations else None
    return table


def _views(samples: Iterable[tuple[dict[str, str], float]]) -> list[str]:
    return sorted({labels["view"] for labels, _ in samples})


def _time(seconds: float) -> str:
    if math.isnan(seconds):
        return ""
    return f"{seconds * 1e3:,.1f} ms" if seconds < 1 else f"{seconds:,.1f} s"

"""``feast-embeddings status``: encoders, generations, fills and ticks, as tables."""

from __future__ import annotations

from collections.abc import Iterable

from feast import FeatureStore
from rich.console import Console
from rich.table import Table

from feast_embeddings.materialize.cli.tables import console as output
from feast_embeddings.materialize.cli.tables import table as table_of
from feast_embeddings.materialize.clock import iso, now_us
from feast_embeddings.materialize.declare import EmbeddingSpec, describe, embedding_specs
from feast_embeddings.materialize.files import Workspace
from feast_embeddings.materialize.ledger import Ledger, Retirements, workers_there
from feast_embeddings.materialize.online import OnlineServer
from feast_embeddings.materialize.stream import waiting_since_us
from feast_embeddings.models.errors import FeastEmbeddingsError


def print_status(workspace: Workspace, store: FeatureStore, console: Console | None = None) -> None:
    """Print what is served, in which space, how old it is, and what the ticks did."""
    console = console or output()
    specs = embedding_specs(store.registry, store.project)
    if not specs:
        console.print(f"Project {store.project!r} declares no embedding view: run `feast apply`.")
        return
    console.print(_encoders(workspace, specs))
    console.print(_spaces(workspace, specs))
    console.print(_fills(workspace, specs))
    console.print(_ticks(workspace, specs))
    console.print(_behaviors(workspace, specs))
    console.print(_streams(workspace, store, specs))


def _encoders(workspace: Workspace, specs: Iterable[EmbeddingSpec]) -> Table:
    table = table_of("Encoders", "encoder", "generation", "live since", "views")
    views: dict[str, list[str]] = {}
    for spec in specs:
        views.setdefault(spec.encoder, []).append(spec.view)
    for encoder, names in views.items():
        live = workspace.ledger.live_generation(encoder)
        since = iso(live.cutover_us) if live and live.cutover_us else "never"
        table.add_row(encoder, str(live.generation) if live else "none", since, ", ".join(names))
    return table


def _spaces(workspace: Workspace, specs: Iterable[EmbeddingSpec]) -> Table:
    table = table_of("Spaces", "space", "encoder", "numeric path", "dimensions")
    for encoder in sorted({spec.encoder for spec in specs}):
        for space in workspace.ledger.spaces(encoder):
            table.add_row(space.space, encoder, space.numeric_path, str(space.dim))
    return table


def _fills(workspace: Workspace, specs: Iterable[EmbeddingSpec]) -> Table:
    table = table_of("Fills", "fill", "state", "rows", "vectors", "age")
    for spec in specs:
        for fill in workspace.ledger.fills(view=spec.view):
            if fill.state != "removed":
                age = f"{max(now_us() - fill.made_us, 0) / 3_600_000_000:.1f} h"
                size = f"{fill.rows * 4 * spec.dim / 1e6:,.1f} MB"
                state = fill.state
                if state == "retired":
                    state = f"retiring, {Retirements(workspace.ledger).progress(fill.fill):.0%} removed"
                table.add_row(fill.fill, state, f"{fill.rows:,}", size, age)
    return table


def _ticks(workspace: Workspace, specs: Iterable[EmbeddingSpec]) -> Table:
    table = table_of("Ticks", "view", "policy", "last tick", "stands at")
    for spec in specs:
        last = workspace.ledger.last_tick(spec.view)
        tick = f"{last.number}, {last.kind}" if last else "none"
        table.add_row(spec.view, describe(spec.policy), tick, iso(last.end_us)[:-4] if last else "")
    return table


def _behaviors(workspace: Workspace, specs: Iterable[EmbeddingSpec]) -> Table:
    names = ("read", "applied", "deduplicated", "erased")
    table = table_of("Behaviors", "view", *names, "quarantined")
    for spec in specs:
        if spec.tower == "user":
            counts = workspace.ledger.counts(spec.view)
            quarantined = sum(number for what, number in counts.items() if what.startswith("quarantined"))
            numbers = [counts.get(what, 0) for what in names]
            table.add_row(spec.view, *(f"{number:,}" for number in (*numbers, quarantined)))
    return table


def _streams(workspace: Workspace, store: FeatureStore, specs: Iterable[EmbeddingSpec]) -> Table:
    """How long behaviors wait in the repo's own Redis, whether somebody works on them or not."""
    table = table_of("Streams in Redis", "view", "workers", "oldest behavior waits")
    server = OnlineServer.of(store.config)
    for spec in (each for each in specs if each.tower == "user"):
        after = _published(workspace.ledger, spec)
        try:
            since = waiting_since_us(server.client, store.project, spec.behaviors, after)
            waits = "none" if since is None else f"{max(now_us() - since, 0) / 1e6:,.1f} s"
        except FeastEmbeddingsError as error:
            waits = str(error)
        if after or waits != "none":
            table.add_row(spec.view, f"{workers_there(workspace.ledger, store.project, spec.view)}", waits)
    return table


def _published(ledger: Ledger, spec: EmbeddingSpec) -> dict[int, int]:
    """Up to where each partition's behaviors are in a published tick."""
    found = ledger.positions(spec.view, spec.behaviors)
    for tick in ledger.open_micro_batches(spec.view):
        if tick.source == spec.behaviors:
            found |= {each: min(found[each], first - 1) for each, (first, _) in tick.ranges.items()}
    return found

"""The stream on the command line: ``feast-embeddings stream | append | replay | compact | nearest``."""

from __future__ import annotations

import json
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from feast_embeddings.materialize.cli.repo import LOOPBACK, Repo, opened

View = Annotated[str | None, typer.Option(help="The embedding view, where several are declared.")]


def stream(
    repo: Repo = Path(),
    view: View = None,
    source: Annotated[str, typer.Option(help="redis, kafka or parquet.")] = "redis",
    brokers: Annotated[str, typer.Option(help="Kafka: bootstrap servers.")] = "",
    topic: Annotated[str, typer.Option(help="Kafka: the topic.")] = "",
    path: Annotated[str, typer.Option(help="parquet: the file to replay.")] = "",
    speed: Annotated[float, typer.Option(help="parquet: times its own pace.")] = float("inf"),
    lanes: Annotated[int, typer.Option(help="The most workers that can share the stream.")] = 2,
    max_events: Annotated[int, typer.Option(help="Most messages of one micro-batch.")] = 2000,
    every_ms: Annotated[float, typer.Option(help="Shortest time between micro-batches of a lane.")] = 20.0,
    lateness: Annotated[str | None, typer.Option(help="Refuse behaviors older than this, such as 7d.")] = "7d",
    lease_s: Annotated[float, typer.Option(help="How long a silent worker keeps its lanes.")] = 10.0,
    until_idle_s: Annotated[float | None, typer.Option(help="End once nothing came for so many seconds.")] = None,
    metrics_port: Annotated[int, typer.Option(help="Serve /metrics, /healthz and /readyz here; 0: do not.")] = 0,
    metrics_host: Annotated[str, typer.Option(help="… on this address; loopback unless told otherwise.")] = LOOPBACK,
    max_lag_s: Annotated[float, typer.Option(help="Not ready while further behind than so many seconds.")] = 60.0,
) -> None:
    """Apply behaviors as they come: micro-batches become ticks, and vectors are served within the second.

    Start it on as many machines or cores as there are lanes: workers share the lanes, and take over a dead one's.
    SIGTERM ends it in good order within seconds, and nothing is lost.
    """
    from feast_embeddings.materialize.declare import user_spec
    from feast_embeddings.materialize.stream import SourceOptions, StreamOptions, health_of, make_worker
    from feast_embeddings.models.errors import DeclarationError
    from feast_embeddings.transformations.behaviors import duration_us

    if source not in ("redis", "kafka", "parquet"):
        raise DeclarationError(f"--source {source} is unknown: use redis, kafka or parquet.")
    store = opened(repo)
    options = StreamOptions(
        lanes=lanes,
        max_events=max_events,
        every_s=every_ms / 1000,
        lateness_us=None if lateness is None else duration_us(lateness, "--lateness"),
        lease_s=lease_s,
        until_idle_s=until_idle_s,
    )
    where = SourceOptions(source, brokers, topic, {}, str(path), speed)  # type: ignore[arg-type]
    worker = make_worker(store, view, where, options)
    typer.echo(f"Worker {worker.name} of the stream of view {worker.view!r}: reading {worker.source_name!r} ({source})")
    health = health_of(store, user_spec(store, view), worker.metrics, max_lag_s)
    with worker.stopping_on_signals(), health.serving(metrics_port, metrics_host) if metrics_port else nullcontext():
        done = worker.run()
    counts = ", ".join(f"{what} {count:,}" for what, count in done.counts.items())
    typer.echo(f"{done.ticks:,} micro-batches{': ' + counts if counts else ''}")


def append(
    behaviors: Annotated[
        list[str] | None, typer.Argument(help="Behaviors as JSON objects; none: lines of stdin.")
    ] = None,
    repo: Repo = Path(),
    view: View = None,
    wait: Annotated[float, typer.Option(help="Wait up to so many seconds until as many were applied.")] = 0.0,
) -> None:
    """Append behaviors to the repo's stream, as an application would: one JSON object each."""
    from feast_embeddings.materialize.declare import behaviors_of, user_spec
    from feast_embeddings.materialize.files import Workspace
    from feast_embeddings.materialize.online import OnlineServer
    from feast_embeddings.materialize.stream import agreed_partitions, append_behaviors
    from feast_embeddings.models.errors import StreamError
    from feast_embeddings.transformations import contract_of

    store = opened(repo)
    spec = user_spec(store, view)
    ledger = Workspace.of(store.config).ledger
    before = ledger.stream_counts(spec.view)
    contract = contract_of(behaviors_of(store.registry, store.project, spec))
    lines = behaviors if behaviors else [line for line in sys.stdin if line.strip()]
    ids = [_entity(line, contract.entity) for line in lines]
    with OnlineServer.of(store.config).client() as client:
        partitions = agreed_partitions(client, store.project, spec.behaviors)
        payloads = [line.strip().encode() for line in lines]
        append_behaviors(client, store.project, spec.behaviors, partitions, ids, payloads)
    typer.echo(f"{len(lines):,} behaviors appended to {spec.behaviors!r}")
    deadline = time.monotonic() + wait
    while wait and ledger.stream_counts(spec.view).get("read", 0) < before.get("read", 0) + len(lines):
        if time.monotonic() > deadline:
            raise StreamError(
                f"The stream of view {spec.view!r} did not apply them within {wait:.0f} s: start a worker with "
                "`feast-embeddings stream`; the behaviors wait for it."
            )
        time.sleep(0.05)
    if wait:
        for what, count in ledger.stream_counts(spec.view).items():
            if what.startswith("quarantined") and count > before.get(what, 0):
                typer.echo(f"{count - before.get(what, 0):,} {what}; `feast-embeddings quarantine` shows them")


def show_nearest(
    entity_id: Annotated[str, typer.Argument(help="Whose items.")],
    repo: Repo = Path(),
    view: View = None,
    k: Annotated[int, typer.Option("-k", help="How many.")] = 5,
) -> None:
    """Show the items nearest to an entity's vector, as they are served now."""
    import numpy as np

    from feast_embeddings.materialize.declare import embedding_specs, user_spec
    from feast_embeddings.materialize.serving import nearest, read_vectors
    from feast_embeddings.models.errors import DeclarationError

    store = opened(repo)
    spec = user_spec(store, view)
    items = [
        each
        for each in embedding_specs(store.registry, store.project)
        if each.tower == "item" and each.encoder == spec.encoder
    ]
    if not items:
        raise DeclarationError(f"No item view shares encoder {spec.encoder!r}: declare one with item_embedding_view().")
    ids = np.array([entity_id if spec.string_ids else int(entity_id)], object if spec.string_ids else np.int64)
    vectors = read_vectors(store, spec.reference, ids)
    if not vectors.found[0]:
        typer.echo(f"{spec.join_key} {entity_id}: no vector yet")
        return
    found = nearest(store, items[0].reference, vectors, k)
    for item, score in zip(found.ids[0], found.scores[0], strict=True):
        typer.echo(f"{item}\t{score:.3f}")


def replay(repo: Repo = Path(), view: View = None) -> None:
    """Recompute the stream's vectors from its recorded ticks, and compare them with what is served, bit by bit."""
    from feast_embeddings.materialize.stream import lines_of, replay_stream

    found = replay_stream(opened(repo), view)
    for line in lines_of(found):
        typer.echo(line)
    if any(each.diverged for each in found):
        raise typer.Exit(1)


def compact(repo: Repo = Path(), view: View = None) -> None:
    """Put the small files of published micro-batches together; workers do it by themselves every half minute."""
    store = opened(repo)
    from feast_embeddings.materialize.declare import user_spec
    from feast_embeddings.materialize.files import Compaction, Workspace

    done = Compaction.of(store, Workspace.of(store.config), user_spec(store, view)).run()
    typer.echo(f"{done.merged:,} files merged into {done.made:,}; {done.removed:,} removed")


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command("stream")(stream)
    app.command("append")(append)
    app.command("replay")(replay)
    app.command("compact")(compact)
    app.command("nearest")(show_nearest)


def _entity(line: str, column: str) -> int | str:
    try:
        found = json.loads(line)[column]
    except (ValueError, KeyError, TypeError) as error:
        from feast_embeddings.models.errors import DeclarationError

        raise DeclarationError(
            f"{line.strip()[:80]!r} is no behavior: give a JSON object with the contract's columns, {column!r} among "
            "them."
        ) from error
    return found if isinstance(found, int | str) else str(found)

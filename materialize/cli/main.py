"""The command line: ``feast-embeddings init | demo | train | evaluate | align | status | …``."""

from __future__ import annotations

import contextlib
import sys
import warnings
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from feast_embeddings.materialize.cli.evaluate import evaluate
from feast_embeddings.materialize.cli.refused import quarantine
from feast_embeddings.materialize.cli.repo import Repo, opened
from feast_embeddings.materialize.cli.stream import register as register_stream
from feast_embeddings.materialize.cli.watch import URL, watch
from feast_embeddings.materialize.clock import iso, us_of

if TYPE_CHECKING:
    from feast import FeatureStore

    from feast_embeddings.models.explanation import Method

app = typer.Typer(
    help="Embedding features for Feast: fresh, comparable, replayable and cheap.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

register_stream(app)


@app.command()
def init(folder: Annotated[Path, typer.Argument(help="A new folder; its name is the project's.")]) -> None:
    """Write a feature repo to start from, with a generated shop's behaviors."""
    from feast_embeddings.materialize.demo import write_repo

    write_repo(folder)
    typer.echo(f"Wrote a feature repo to {folder}. Next:")
    for line in (
        f"cd {folder}",
        "feast apply",
        "feast-embeddings train",
        'feast materialize 2020-01-01T00:00:00 "$(date -u +%Y-%m-%dT%H:%M:%S)"',
        "feast-embeddings status",
    ):
        typer.echo(f"  {line}")


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where to work; made anew.")] = Path(".demo"),
    seed: Annotated[int, typer.Option(help="Of the training, the read times and the ranker.")] = 7,
) -> None:
    """Run the whole path on a year of real purchases, and compare the policies."""
    from feast_embeddings.materialize.demo import run_demo

    run_demo(folder, seed)


@app.command()
def train(
    repo: Repo = Path(),
    encoder: Annotated[str | None, typer.Option(help="Name of the encoder, where several are declared.")] = None,
    until: Annotated[
        datetime | None,
        typer.Option(help="Learn from behaviors before this time, UTC; default: nine tenths lie before it."),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Learn from every behavior; none is left to ask about.")
    ] = False,
    minutes: Annotated[float | None, typer.Option(help="Stop after so many minutes; the best weights count.")] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the behaviors; default: 6, of autoencoders at most 20.")
    ] = None,
    context: Annotated[int, typer.Option(help="Behaviors that the encoder looks at.")] = 50,
    seed: Annotated[int, typer.Option(help="The same seed gives the same encoder on one machine.")] = 0,
    kind: Annotated[str, typer.Option(help="sequence, autoencoder or adversarial.")] = "sequence",
    variant: Annotated[
        str, typer.Option(help="Of an autoencoder: article, denoising, likelihood or variational.")
    ] = "article",
) -> None:
    """Train the declared encoder on the behavior log, and hold it against counting on what happened afterwards."""
    from feast_embeddings.materialize.learning import train_declared, training_config

    config = training_config(kind, variant, context=context, seed=seed, max_epochs=epochs, max_minutes=minutes)
    store = opened(repo)
    until_us = None if until is None else us_of(until)
    made = train_declared(store, config, encoder=encoder, until_us=until_us, hold_out=not everything)
    best = next(report for report in made.result.epochs if report.epoch == made.result.best_epoch)
    quality = "" if best.ndcg10 is None else f", validation HR@10 {best.hr10:.3f}, NDCG@10 {best.ndcg10:.3f}"
    typer.echo(
        f"Encoder {made.spec.encoder!r}: {made.learned.behaviors:,} behaviors of {made.learned.entities:,} entities "
        f"before {iso(made.learned.until_us)}, {len(made.result.epochs)} epochs{quality}; space {made.space} at "
        f"{made.spec.artifact}"
    )
    if made.spec.declared_space not in (None, made.space):
        typer.echo(f"The applied declaration names space {made.spec.declared_space}: run `feast apply` next.")
    _hold_against_baselines(store, made.spec.encoder)


def _hold_against_baselines(store: FeatureStore, encoder: str) -> None:
    """Prints what the encoder and simple counting find of what happened after it learned, and a verdict."""
    from feast_embeddings.materialize.learning import HELD_AGAINST, asked, evaluate_encoder, verdict
    from feast_embeddings.models.errors import EvaluationError

    try:
        question = asked(store, encoder=encoder)
    except EvaluationError as error:
        typer.echo(f"No verdict: {error}")
        return
    found = evaluate_encoder(question, baselines=HELD_AGAINST)
    figures = {name: scores.estimates["all"]["ndcg@10"].value for name, scores in found.methods.items()}
    typer.echo(
        f"The next item, {len(question.task):,} questions from {iso(question.at_us)} to {iso(question.until_us)}, "
        f"NDCG@10: {', '.join(f'{name} {value:.3f}' for name, value in figures.items())}"
    )
    typer.echo(verdict(question, found))


@app.command()
def align(
    old: Annotated[Path, typer.Argument(help="Artifact that consumers of the vectors were made for.")],
    new: Annotated[Path, typer.Argument(help="Artifact of the new encoder.")],
    out: Annotated[Path, typer.Argument(help="Where to put the new encoder, rotated towards the old one.")],
) -> None:
    """Rotate a new encoder into an old one's coordinates, by the items that both know."""
    from feast_embeddings.models import align as align_encoders
    from feast_embeddings.models import load_encoder, read_manifest, save_encoder

    aligned = align_encoders(load_encoder(new), load_encoder(old))
    space = save_encoder(aligned, out, read_manifest(new).learned)
    typer.echo(f"Aligned {aligned.alignment.source_space} with {aligned.alignment.target_space}: {aligned.alignment}.")
    typer.echo(
        f"Space {space} at {out}. Where that is the declared artifact, run `feast apply`, then `feast materialize`."
    )


@app.command()
def status(
    repo: Repo = Path(),
    watched: Annotated[bool, typer.Option("--watch", help="Show what stream workers measure, live.")] = False,
    url: Annotated[list[str] | None, typer.Option(help=f"--watch: a worker's metrics; default {URL}.")] = None,
    every: Annotated[float, typer.Option(help="--watch: seconds between two looks.")] = 2.0,
    times: Annotated[int | None, typer.Option(help="--watch: end after so many looks.")] = None,
) -> None:
    """Show encoders, generations, fills and ticks; with --watch, freshness, throughput and lag as they change."""
    if watched:
        with contextlib.suppress(KeyboardInterrupt):
            watch(url or [URL], every, times)
        return
    from feast_embeddings.materialize.cli.status import print_status
    from feast_embeddings.materialize.files import Workspace

    store = opened(repo)
    print_status(Workspace.of(store.config), store)


@app.command()
def rollback(
    encoder: Annotated[str, typer.Argument(help="Name of the encoder.")],
    repo: Repo = Path(),
) -> None:
    """Make the retained generation live again, for all views of an encoder at once."""
    from feast_embeddings.materialize.files import Workspace
    from feast_embeddings.materialize.online import OnlineServer
    from feast_embeddings.materialize.ticks import Cutovers

    store = opened(repo)
    cutovers = Cutovers(Workspace.of(store.config), OnlineServer.of(store.config), store.registry)
    generation = cutovers.rollback(encoder)
    typer.echo(f"Generation {generation.generation} of encoder {encoder!r} is live: {dict(generation.fills)}")


@app.command("retire")
def retire_fills(repo: Repo = Path()) -> None:
    """Remove retired fills from Redis now, to the end; jobs give it some seconds each."""
    from feast_embeddings.materialize.files import Workspace
    from feast_embeddings.materialize.online import OnlineServer
    from feast_embeddings.materialize.upkeep import retire

    store = opened(repo)
    gone = retire(Workspace.of(store.config), OnlineServer.of(store.config), store.registry)
    typer.echo(f"Removed {len(gone)} retired fill(s){': ' if gone else ''}{', '.join(gone)}")


@app.command("forget")
def forget_entity(
    entity: Annotated[str, typer.Option(help="Name of the entity, as declared.")],
    entity_id: Annotated[str, typer.Option("--id", help="Who is to be erased.")],
    repo: Repo = Path(),
) -> None:
    """Erase one entity from every store and log, for good; prints what was removed where."""
    from feast_embeddings.materialize.cli.erase import print_receipt
    from feast_embeddings.materialize.upkeep import forget

    print_receipt(forget(opened(repo), entity, entity_id))


@app.command("explain")
def explain_vector(
    entity: Annotated[str, typer.Option(help="Name of the entity, as declared.")],
    entity_id: Annotated[str, typer.Option("--id", help="Whose vector.")],
    repo: Repo = Path(),
    view: Annotated[str | None, typer.Option(help="The embedding view, where the entity has several.")] = None,
    method: Annotated[str | None, typer.Option(help="integrated_gradients, attention or deletion.")] = None,
    layer: Annotated[int | None, typer.Option(help="Explain the state after so many blocks.")] = None,
    out: Annotated[Path | None, typer.Option(help="Draw a picture into this file.")] = None,
) -> None:
    """Show which behaviors made a vector, its nearest items, and what the last tick changed."""
    from feast_embeddings.materialize.cli.explain import draw_explanation, print_explanation
    from feast_embeddings.materialize.learning import explain_entity

    out = None if out is None else out.resolve()
    found = explain_entity(
        opened(repo), entity, entity_id, view=view, method=cast("Method | None", method), layer=layer
    )
    print_explanation(found)
    if out is not None:
        draw_explanation(found, out)
        typer.echo(f"Drawn: {out}")


@app.command("restore")
def restore_online(repo: Repo = Path()) -> None:
    """Fill an empty or replaced Redis from the logs, as it was."""
    from feast_embeddings.materialize.upkeep import restore

    restored = restore(opened(repo))
    for name, rows in restored.rows.items():
        typer.echo(f"{name}: {rows:,} rows written")
    for encoder, generation in restored.generations.items():
        typer.echo(f"Generation {generation} of encoder {encoder!r} is live")
    for notice in restored.notices:
        typer.echo(notice)


app.command()(evaluate)
app.command()(quarantine)


def main() -> None:
    """Run the command line; an error of this package ends it with its message and status 1."""
    _leave_unchecked()
    warnings.filterwarnings("ignore", category=RuntimeWarning, module="feast")
    try:
        app()
    except Exception as error:
        from feast_embeddings.models.errors import FeastEmbeddingsError

        if not isinstance(error, FeastEmbeddingsError):
            raise
        typer.secho(f"{type(error).__name__}: {error}", fg=typer.colors.RED, err=True)
        sys.exit(1)


def _leave_unchecked() -> None:
    """Import Feast without typeguard's checks of its classes, in the process of this command alone.

    Feast 0.67 has typeguard rewrite its largest classes whenever it is imported: two thirds of the time that takes.
    The checks are for who writes declarations; `feast apply` has them, and these commands read what it applied.
    """
    import typeguard

    typeguard.typechecked = lambda target: target  # type: ignore[assignment]

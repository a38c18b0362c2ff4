"""``feast-embeddings evaluate``: tables, JSON and a picture."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from feast_embeddings.materialize.cli.repo import Repo, opened
from feast_embeddings.materialize.cli.tables import console as output
from feast_embeddings.materialize.clock import iso, us_of

if TYPE_CHECKING:
    from feast_embeddings.materialize.learning import Frontier, Point, Question
    from feast_embeddings.models.evaluation import Evaluation


def evaluate(
    repo: Repo = Path(),
    encoder: Annotated[str | None, typer.Option(help="Name of the encoder, where several are declared.")] = None,
    at: Annotated[datetime | None, typer.Option(help="Split, UTC; default: until when the encoder learned.")] = None,
    until: Annotated[datetime | None, typer.Option(help="End of the log that is looked at, UTC.")] = None,
    sample: Annotated[int, typer.Option(help="At most so many questions.")] = 2000,
    k: Annotated[int, typer.Option("-k", help="Cut-off of the measures.")] = 10,
    filter_seen: Annotated[bool, typer.Option(help="Take a user's earlier items out of the ranking.")] = False,
    policies: Annotated[bool, typer.Option("--policies", help="Replay update policies instead.")] = False,
    max_cost: Annotated[
        float | None, typer.Option(help="Recommend within this share of the reference's encode cost.")
    ] = None,
    min_quality: Annotated[
        float | None, typer.Option(help="Recommend from this share of the reference's quality on.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the frontier into this file; needs matplotlib.")] = None,
    as_json: Annotated[Path | None, typer.Option("--json", help="Write every figure into this file.")] = None,
    resamples: Annotated[int, typer.Option(help="Of the bootstrap over users.")] = 1000,
) -> None:
    """Measure the declared encoder beside every baseline, or the policies that could serve it; trains nothing."""
    from feast_embeddings.materialize.learning import asked, draw, evaluate_encoder, evaluate_policies

    as_json, plot = (None if path is None else path.absolute() for path in (as_json, plot))
    question = asked(
        opened(repo),
        encoder=encoder,
        at_us=None if at is None else us_of(at),
        until_us=None if until is None else us_of(until),
        sample=sample,
        filter_seen=filter_seen,
    )
    console = output()
    _introduce(console, question)
    if not policies:
        found = evaluate_encoder(question, ks=(k,), resamples=resamples)
        _show(console, question, found, k)
        _write(as_json, question, found.to_json())
        return
    frontier = evaluate_policies(question, measure=f"ndcg@{k}", resamples=resamples)
    _show_policies(console, frontier)
    bounds = {"max_cost": max_cost, "min_quality": min_quality}
    if max_cost is None and min_quality is None:
        bounds["min_quality"] = 0.995
    chosen = frontier.recommended(**bounds)
    _recommend(console, frontier, chosen, bounds)
    if plot is not None:
        draw(plot, frontier, f"{question.spec.view}: quality against encode cost")
    _write(as_json, question, asdict(frontier) | {"bounds": bounds, "recommended": chosen.declaration})


def _introduce(console: Console, question: Question) -> None:
    task, spec = question.task, question.spec
    console.print(
        f"Encoder {spec.encoder!r} of space {question.encoder.space}: {len(task):,} questions "
        f"from {iso(question.at_us)} to {iso(question.until_us)}, {len(task.catalogue):,} items"
    )
    if question.learned is None:
        console.print("Its artifact does not say until when it learned: the figures count if that was before.")


def _show(console: Console, question: Question, found: Evaluation, k: int) -> None:
    from feast_embeddings.materialize.learning import verdict

    table = Table(title="The next item, all items ranked; mean [95 %]", title_justify="left")
    measures = (f"hr@{k}", f"ndcg@{k}", f"recall@{k}", "mrr")
    for column in ("method", *measures, f"seen: ndcg@{k}", f"unseen: ndcg@{k}", f"coverage@{k}"):
        table.add_column(column, justify="left" if column == "method" else "right", overflow="fold")
    ordered = sorted(found.methods.items(), key=lambda each: -each[1].estimates["all"][f"ndcg@{k}"].value)
    for name, scores in ordered:
        estimates = scores.estimates
        cells = [f"{estimates['all'][measure].value:.4f}" for measure in measures]
        cells[1] = str(estimates["all"][f"ndcg@{k}"])
        apart = [estimates[group][f"ndcg@{k}"].value for group in ("seen", "unseen")]
        shown = ["–" if value != value else f"{value:.4f}" for value in apart]
        table.add_row(name, *cells, *shown, f"{scores.coverage[k]:.3f}")
    console.print(table)
    console.print(f"{found.questions['unseen']:,} questions are about items that the encoder does not know.")
    console.print(verdict(question, found, f"ndcg@{k}"), soft_wrap=True, highlight=False)


def _show_policies(console: Console, frontier: Frontier) -> None:
    from feast_embeddings.materialize.learning import COLUMNS

    title = f"Policies, cheapest first; shares are of {frontier.reference!r}, quality is {frontier.measure}"
    table = Table(title=title, title_justify="left")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "policy" else "right", overflow="fold")
    for row in frontier.rows():
        table.add_row(*row)
    console.print(table)


def _recommend(console: Console, frontier: Frontier, chosen: Point, bounds: dict[str, float | None]) -> None:
    asked_for = ", ".join(f"{name} {value:g}" for name, value in bounds.items() if value is not None)
    console.print(f"For {asked_for} of {frontier.reference!r}, write in the declaration:")
    console.print(f"    policy={chosen.declaration},", highlight=False, soft_wrap=True)
    console.print(f"cost {chosen.cost:.3f}, quality {chosen.share:.3f}, {chosen.state_bytes:,.0f} bytes per entity")


def _write(path: Path | None, question: Question, figures: dict[str, Any]) -> None:
    if path is None:
        return
    head = {
        "encoder": question.spec.encoder,
        "space": question.encoder.space,
        "at": iso(question.at_us),
        "until": iso(question.until_us),
    }
    path.write_text(json.dumps(head | figures, indent=2) + "\n", encoding="utf-8")

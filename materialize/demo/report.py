"""What the demo shows: a table on the screen, a picture and the figures under its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from feast_embeddings.materialize.demo.parity import Parity
from feast_embeddings.materialize.demo.quality import Quality
from feast_embeddings.materialize.demo.ranker import RankerReport


@dataclass(frozen=True)
class Line:
    """One line of the summary; cost is None for a baseline."""

    name: str
    detail: str
    quality: Quality
    encoded: int | None = None
    rows: int | None = None
    seconds: float | None = None


def print_summary(
    console: Console, lines: Sequence[Line], parity: Parity, ranker: RankerReport, outside: float
) -> None:
    """Print the table, best quality first, then parity and ranker, and which line won."""
    ordered = sorted(lines, key=lambda line: -line.quality.ndcg)
    weeks, households = ordered[0].quality.weeks, ordered[0].quality.households
    title = f"What is bought in the following week: {weeks} weeks, {households} households"
    table = Table("", title=title, title_justify="left")
    for column in ("NDCG@10", "hit@10", "recall@10", "encoded", "written", "job s"):
        table.add_column(column, justify="right")
    for line in ordered:
        table.add_row(line.name, *_cells(line))
    console.print(table)
    console.print(f"{outside:.1%} of the purchases are of products outside the catalogue, and are not counted.")
    console.print(_verdict(ordered))
    console.print(
        f"parity: {parity.equal:,} of {parity.rows:,} historical rows equal the online reads bit for bit "
        f"({parity.in_window:,} of them read while something was published, {parity.missing:,} without a vector)"
    )
    console.print(
        f"ranker: {ranker.equal_scores:,} of {ranker.rows:,} equal rows got equal scores; "
        f"AUC {ranker.auc:.3f} on later rows, trained on historical features, fed from online ones"
    )


def _cells(line: Line) -> tuple[str, ...]:
    quality = tuple(f"{value:.4f}" for value in (line.quality.ndcg, line.quality.hit_rate, line.quality.recall))
    if line.encoded is None or line.rows is None or line.seconds is None:
        return (*quality, "", "", "")
    return (*quality, f"{line.encoded:,}", f"{line.rows:,}", f"{line.seconds:.1f}")


def _verdict(ordered: Sequence[Line]) -> str:
    best = next(line for line in ordered if line.encoded is not None)
    above = [line.name for line in ordered if line.encoded is None and line.quality.ndcg > best.quality.ndcg]
    if above:
        return f"On NDCG@10, {' and '.join(above)} did better than every policy; {best.name} is the best policy."
    return f"On NDCG@10, {best.name} did best, above every baseline."


def write_figures(
    path: Path, lines: Sequence[Line], parity: Parity, ranker: RankerReport, more: Mapping[str, object]
) -> None:
    """Write the same figures as JSON."""
    figures = {
        "lines": [asdict(line) for line in lines],
        "parity": asdict(parity),
        "ranker": asdict(ranker),
        **more,
    }
    path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def draw(path: Path, lines: Sequence[Line]) -> None:
    """Draw quality against encode cost: a point per policy, a level per baseline."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    figure, axes = pyplot.subplots(figsize=(7.5, 4.5), layout="constrained")
    policies = sorted((line for line in lines if line.encoded is not None), key=lambda line: line.encoded or 0)
    for place, line in enumerate(policies):
        axes.scatter(line.encoded or 0, line.quality.ndcg, s=70, zorder=3)
        shift = (0, 11) if place % 2 else (0, -19)  # above and below in turn: neighbors lie close
        at = (line.encoded or 0, line.quality.ndcg)
        axes.annotate(line.name, at, xytext=shift, textcoords="offset points", ha="center")
    for line in lines:
        if line.encoded is None:
            axes.axhline(line.quality.ndcg, color="0.6", linestyle="--", linewidth=1, zorder=1)
            axes.annotate(
                line.name, (0.45, line.quality.ndcg), xycoords=("axes fraction", "data"), va="bottom", ha="center"
            )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda encoded, _: f"{encoded:,.0f}"))
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.margins(x=0.25, y=0.15)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("histories encoded, October to December (log scale)")
    axes.set_ylabel("NDCG@10 of the following week's purchases")
    axes.set_title("The Complete Journey: quality against encode cost", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)

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
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.5, 4.5), layout="constrained")
    for line in lines:
        if line.encoded is None:
            axes.axhline(line.quality.ndcg, color="0.6", linestyle="--", linewidth=1)
            axes.annotate(
                line.name, (1.0, line.quality.ndcg), xycoords=("axes fraction", "data"), ha="right", va="bottom"
            )
        else:
            axes.scatter(line.encoded, line.quality.ndcg, s=70, zorder=3)
            axes.annotate(line.name, (line.encoded, line.quality.ndcg), xytext=(8, 6), textcoords="offset points")
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.margins(x=0.25, y=0.15)
    axes.set_xlabel("histories encoded, October to December (log scale)")
    axes.set_ylabel("NDCG@10 of the following week's purchases")
    axes.set_title("The Complete Journey: quality against encode cost", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)

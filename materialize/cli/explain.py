"""An explanation as tables, and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from feast_embeddings.materialize.cli.tables import console as output
from feast_embeddings.materialize.cli.tables import table as table_of
from feast_embeddings.materialize.clock import iso
from feast_embeddings.materialize.learning import EntityExplanation
from feast_embeddings.models.errors import DeclarationError

_SHOWN: Final = 20
_TITLES: Final = {
    "integrated_gradients": "integrated gradients",
    "attention": "attention rollout",
    "deletion": "loss when left out",
}


def print_explanation(found: EntityExplanation, console: Console | None = None) -> None:
    """Print the behaviors that count most, the nearest items, and what the last tick changed."""
    console = console or output()
    console.print(_behaviors(found))
    for line in _lines(found):
        console.print(line, highlight=False)
    if found.neighbors is not None:
        console.print(_neighbors(found))


def draw_explanation(found: EntityExplanation, path: Path) -> None:
    """Draw attributions over the history, oldest first, beside the nearest items.

    Raises:
        DeclarationError: The extra is not installed, or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DeclarationError("Drawing needs matplotlib: pip install 'feast-embeddings[explain]'.") from error
    rows = np.sort(_strongest(found))
    neighbors = found.neighbors if found.neighbors is not None and found.neighbors.ids.size else None
    height = max(3.2, 0.28 * max(len(rows), 10) + 1.4)
    figure = Figure(figsize=(11.0 if neighbors else 7.5, height), layout="constrained")
    axes = figure.subplots(1, 2 if neighbors else 1, width_ratios=[2.2, 1] if neighbors else [1], squeeze=False)[0]
    _draw_behaviors(axes[0], found, rows)
    if neighbors is not None:
        names = [str(item) for item in neighbors.ids[0]][::-1]
        axes[1].barh(range(len(names)), neighbors.scores[0][::-1], color="#7a8ca3")
        axes[1].set_yticks(range(len(names)), names)
        axes[1].set_title("nearest items, inner product", fontsize=10)
        _plain(axes[1])
    try:
        figure.savefig(path, dpi=130)
    except (OSError, ValueError) as error:
        raise DeclarationError(f"The picture cannot be written to {path} ({error}): choose another --out.") from error


def _draw_behaviors(axes: Any, found: EntityExplanation, rows: npt.NDArray[np.int64]) -> None:
    explained, names = found.explanation, found.contract.type_names
    shares, histories = explained.attributions[rows], explained.histories
    kinds = histories.behavior_types[rows]
    new = set(np.flatnonzero(found.new).tolist()) if found.change else set()
    colors = [f"C{code % 10}" for code in kinds]
    bars = axes.barh(range(len(rows)), shares, color=colors)
    for bar, row in zip(bars, rows, strict=True):
        if row in new:
            bar.set_hatch("///")
            bar.set_edgecolor("white")
    labels = [
        f"{histories.items[row]}{' (new)' if row in new else ''}  {iso(int(histories.times[row]))[5:16]}"
        for row in rows.tolist()
    ]
    axes.set_yticks(range(len(rows)), labels)
    axes.axvline(0, color="#444444", linewidth=0.8)
    axes.set_xlabel("share of attention" if explained.method == "attention" else "part of the vector", fontsize=8)
    seen = sorted(set(kinds.tolist()))
    swatches = [axes.barh(0, 0, color=f"C{code % 10}") for code in seen]
    axes.legend(swatches, [_type(names, code) for code in seen], loc="best", fontsize=8, frameon=False)
    layer = "" if not found.partial else f", after {explained.layer} blocks"
    axes.set_title(
        f"{found.spec.view} of {found.entity_id}: {_TITLES[explained.method]}{layer}\n"
        f"oldest at the bottom, as of {iso(found.as_of_us)[:16]}",
        fontsize=10,
    )
    _plain(axes)


def _plain(axes: Any) -> None:
    axes.tick_params(labelsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _behaviors(found: EntityExplanation) -> Table:
    explained, names = found.explanation, found.contract.type_names
    title = f"{found.spec.view} of {found.entity_id}, {_TITLES[explained.method]}"
    table = table_of(title, "time (UTC)", "item", "type", "value", "attribution", "")
    histories, rows = explained.histories, _strongest(found)
    largest = float(np.abs(explained.attributions[rows]).max(initial=0)) or 1.0
    for row in rows.tolist():
        share, value = float(explained.attributions[row]), float(histories.values[row])
        bar = ("█" if share > 0 else "░") * round(12 * abs(share) / largest)
        new = " new" if found.new[row] and found.change is not None else ""
        table.add_row(
            iso(histories.times[row])[:19],
            str(histories.items[row]),
            _type(names, int(histories.behavior_types[row])),
            "" if np.isnan(value) else f"{value:g}",
            f"{share:+.4f}",
            bar + new,
        )
    return table


def _lines(found: EntityExplanation) -> list[str]:
    explained = found.explanation
    lines = [f"Space {found.vectors.space}, generation {found.vectors.generation}, as of {iso(found.as_of_us)[:19]}."]
    shown, total = len(_strongest(found)), len(explained.attributions)
    if shown < total:
        lines.append(f"{shown} of {total} behaviors shown, those with the largest attributions.")
    if explained.method == "integrated_gradients":
        verdict = "complete" if explained.complete[0] else "not complete"
        lines.append(
            f"Attributions sum to {explained.attributions.sum():.4f}; the vector's part along itself is "
            f"{explained.value[0]:.4f}, of unknown items {explained.baseline[0]:.4f}: {verdict}, "
            f"gap {explained.gap[0]:+.5f} after {explained.steps[0]} steps."
        )
    if found.partial:
        lines.append(f"Explained is the state after {explained.layer} blocks, not the vector that is served.")
    if found.blended < 0.9999:
        lines.append(f"The served vector is a blend: its cosine with the encoder's output is {found.blended:.4f}.")
    change = found.change
    if change is None:
        lines.append("It is the entity's first vector in this space.")
    else:
        lines.append(
            f"Tick {change.tick} moved it by {change.moved:.1%} of its length (cosine {change.cosine:.4f}) from where "
            f"tick {change.previous_tick} had left it; {int(found.new.sum())} of the behaviors are newer than that."
        )
    return lines


def _neighbors(found: EntityExplanation) -> Table:
    table = table_of("Nearest items", "item", "inner product")
    assert found.neighbors is not None  # noqa: S101
    for item, score in zip(found.neighbors.ids[0].tolist(), found.neighbors.scores[0].tolist(), strict=True):
        table.add_row(str(item), f"{score:.4f}")
    return table


def _strongest(found: EntityExplanation) -> npt.NDArray[np.int64]:
    shares = np.abs(found.explanation.attributions)
    return np.argsort(-shares, kind="stable")[:_SHOWN].astype(np.int64)


def _type(names: tuple[str, ...], code: int) -> str:
    return names[code] if 0 <= code < len(names) else f"type {code}"

"""How well an autoencoder tells what it saw: the error of each behavior type, and a picture to look at."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from feast_embeddings.models.autoencoder.model import AutoEncoder
from feast_embeddings.models.encoder import HistoryBatch, latest
from feast_embeddings.models.types import Bools, Float32s, Float64s

_CHUNK_CELLS = 1 << 22


@dataclass(frozen=True, slots=True)
class TypeErrors:
    """How far the reconstruction of one behavior type is from the original, over B histories.

    Attributes:
        squared: Mean over histories of Σ (x − x̂)² over the type's cells. Where behavior types share columns, a cell
            is a type's if the history holds the item by that type, and empty cells are nobody's.
        present: Mean squared error of a cell that holds something; NaN where none does.
        absent: Mean squared error of an empty cell; NaN where there is none.
        cells: Cells that hold something.
    """

    squared: float
    present: float
    absent: float
    cells: int


def reconstruction_errors(encoder: AutoEncoder, histories: HistoryBatch) -> dict[str, TypeErrors]:
    """The errors of each behavior type, by name, and of ``all``; only a slice of the histories is ever dense."""
    names = (*encoder.behavior_types, "all")
    sums = np.zeros((len(names), 4))
    size = max(1, _CHUNK_CELLS // max(encoder.bagger.size, 1))
    for start in range(0, len(histories), size):
        part = histories.take(np.arange(start, min(start + size, len(histories))))
        original, told = reconstructions(encoder, part)
        squared = (original - told) ** 2
        for position, cells in enumerate(_cells(encoder, part, original)):
            present, absent = squared[cells & (original > 0)], squared[cells & (original == 0)]
            sums[position] += present.sum(), absent.sum(), present.size, absent.size
    return {name: _errors(row, len(histories)) for name, row in zip(names, sums, strict=True)}


def reconstructions(encoder: AutoEncoder, histories: HistoryBatch) -> tuple[Float32s, Float32s]:
    """Bags of B histories as the encoder was to tell them, and as it tells them: dense float32 [B, C] each.

    Where the decoder tells logits, they are turned into shares of the bag's sum.
    """
    bags = encoder.bagger.bags(latest(histories, encoder.context))
    original = bags.dense().numpy()
    codes = torch.from_numpy(encoder.encode(histories)[:, :-1]).to(encoder.device)
    with torch.inference_mode():
        told = encoder.reconstruct(codes).float().cpu()
        if encoder.config.logits:
            told = torch.softmax(told, dim=1) * torch.from_numpy(original).sum(dim=1, keepdim=True)
    return original, told.numpy()


def draw_reconstruction(
    encoder: AutoEncoder, histories: HistoryBatch, path: str | os.PathLike[str], *, columns: int = 120
) -> None:
    """Draws some histories' bags beside their reconstructions, and writes a PNG at ``path``.

    A picture shows the columns that most of these histories hold, most frequent first, and of stacked behavior types
    one pair of panels each.

    Args:
        encoder: Whose reconstructions.
        histories: One line each, best a few dozen.
        path: The file; an older one is replaced.
        columns: At most so many items.
    """
    from matplotlib.figure import Figure

    original, told = reconstructions(encoder, histories)
    types = encoder.behavior_types if encoder.bagger.stacked else ("all types",)
    width = len(encoder.items)
    figure = Figure(figsize=(11, 0.6 + 2.9 * len(types)), layout="constrained")
    panels = figure.subplots(len(types), 2, squeeze=False)
    for number, name in enumerate(types):
        part = slice(number * width, (number + 1) * width)
        shown = np.argsort(-(original[:, part] > 0).sum(axis=0), kind="stable")[:columns]
        top = max(float(original[:, part].max(initial=0.0)), 1e-6)
        for panel, title, rows in zip(panels[number], ("original", "reconstructed"), (original, told), strict=True):
            image = panel.imshow(
                rows[:, part][:, shown], aspect="auto", interpolation="nearest", cmap="viridis", vmin=0, vmax=top
            )
            panel.set_title(f"{name}: {title}", fontsize=9)
            panel.set_xlabel("items, most frequent first", fontsize=8)
            panel.set_ylabel("histories", fontsize=8)
            panel.tick_params(labelsize=7)
        figure.colorbar(image, ax=list(panels[number]), shrink=0.9)
    figure.savefig(path, dpi=120)


def _cells(encoder: AutoEncoder, histories: HistoryBatch, original: Float32s) -> Iterator[Bools]:
    """Which cells are of each type, and of all: bool [B, C] each."""
    seen = latest(histories, encoder.context)
    owner, rows = seen.owner, encoder.items.rows(seen.items)
    for code in range(len(encoder.behavior_types)):
        cells = np.zeros(original.shape, dtype=np.bool_)
        if encoder.bagger.stacked:
            cells[:, code * len(encoder.items) : (code + 1) * len(encoder.items)] = True
        else:
            mine = (seen.behavior_types == code) & (rows > 0)
            cells[owner[mine], rows[mine] - 1] = True
        yield cells
    yield np.ones(original.shape, dtype=np.bool_)


def _errors(sums: Float64s, histories: int) -> TypeErrors:
    present, absent, filled, empty = sums.tolist()
    return TypeErrors(
        squared=(present + absent) / max(histories, 1),
        present=present / filled if filled else float("nan"),
        absent=absent / empty if empty else float("nan"),
        cells=int(filled),
    )

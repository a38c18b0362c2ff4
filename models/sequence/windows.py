"""Training examples: long histories cut into windows, windows of like length put into batches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from feast_embeddings.models.types import Int64s

_LENGTH_STEP = 16
"""Windows whose lengths agree up to this step are batched together, so that padding stays small."""


@dataclass(frozen=True, slots=True)
class Windows:
    """W windows over the flat behaviors: inputs ``start … stop - 1`` predict ``start + 1 … stop``.

    Attributes:
        start: int64 [W].
        stop: int64 [W].
        first_target: int64 [W]; earlier targets belong to the window before, here they are context only.
    """

    start: Int64s
    stop: Int64s
    first_target: Int64s

    def __len__(self) -> int:
        """Number of windows."""
        return len(self.start)


def cut_windows(offsets: Int64s, context: int, overlap: int, generator: np.random.Generator) -> Windows:
    """Cuts histories so that every behavior but a history's first is a target exactly once.

    A history of more than ``context`` targets is cut at a random phase, so that epochs differ in where
    windows begin.

    Args:
        offsets: int64 [B + 1] of the flat behaviors.
        context: Longest window, in inputs.
        overlap: Inputs that a window repeats from the one before as context, less than ``context``.
        generator: Of the phases.
    """
    targets = np.maximum(np.diff(offsets) - 1, 0)
    stride = context - overlap
    phase = np.where(targets > context, generator.integers(0, stride, len(targets)), 0)
    step = np.where(targets > context, stride, context)
    counts = np.where(targets > 0, -(-(targets + phase) // step), 0)  # phase: targets missing from the last window
    owner = np.repeat(np.arange(len(targets)), counts)
    from_end = np.repeat(np.cumsum(counts), counts) - np.arange(counts.sum()) - 1
    first = offsets[:-1][owner] + 1
    end = offsets[1:][owner] + phase[owner] - from_end * step[owner]  # one past the window's last target
    first_target = np.maximum(end - step[owner], first)
    stop = np.minimum(end, offsets[1:][owner]) - 1
    start = np.maximum(first_target - 1 - overlap, first - 1)
    return Windows(start, stop, first_target)


def batched(windows: Windows, tokens: int, generator: np.random.Generator) -> list[Int64s]:
    """Windows of each batch: of like length, at most ``tokens`` inputs with padding, in random order."""
    lengths = windows.stop - windows.start
    order = generator.permutation(len(windows))
    order = order[np.argsort(-(-lengths[order] // _LENGTH_STEP), kind="stable")[::-1]]  # longest first
    batches = []
    start = 0
    while start < len(order):
        size = max(1, tokens // int(-(-lengths[order[start]] // _LENGTH_STEP) * _LENGTH_STEP))
        batches.append(order[start : start + size])
        start += size
    return [batches[position] for position in generator.permutation(len(batches))]

"""How ragged histories become matrices of few fixed shapes, and how results come back from the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch

from feast_embeddings.models.encoder.batch import HistoryBatch
from feast_embeddings.models.encoder.device import to_device
from feast_embeddings.models.encoder.tokens import Tokens
from feast_embeddings.models.types import Float32s, Int64s

Compute = Callable[[Tokens, torch.Tensor], torch.Tensor]

# Widths to which a history is padded, chosen from its own length only, so that its vector cannot depend on
# its neighbors.
WIDTHS = (8, 16, 32, 50, 64, 100, 128, 200, 256, 384, 512, 768, 1024)

# Tokens per chunk: every chunk of a width has the same shape, whatever the batch, because a matrix product
# of another shape may add in another order. Small enough on a CPU to stay in its cache, large enough on a GPU
# to fill it.
_CHUNK_TOKENS = {"cpu": 1024, "mps": 16384, "cuda": 65536}

_IN_FLIGHT = 2
"""Chunks whose results are on their way: one is computed while the one before it is copied."""


def chunk_rows(device: torch.device, width: int) -> int:
    """Rows of every chunk of a width."""
    return max(1, _CHUNK_TOKENS[device.type] // width)


def width_chunks(lengths: Int64s, widths: Int64s, rows_of: Callable[[int], int]) -> Iterator[tuple[Int64s, int]]:
    """Rows of like length that fit one chunk, and their width; rows of length 0 are in none.

    Args:
        lengths: int64 [B].
        widths: Ascending, int64; the last is at least the greatest length.
        rows_of: Most rows of a chunk, by its width.
    """
    width_of = np.searchsorted(widths, lengths)
    for position, width in enumerate(widths.tolist()):
        rows = np.flatnonzero((width_of == position) & (lengths > 0))
        size = rows_of(width)
        for start in range(0, len(rows), size):
            yield rows[start : start + size], width


def widths_to(context: int) -> Int64s:
    """The widths below ``context``, and ``context``."""
    return np.array([*(width for width in WIDTHS if width < context), context])


def in_chunks(
    batch: HistoryBatch,
    tokens: Tokens,
    widths: Int64s,
    dim: int,
    compute: Compute,
    device: torch.device,
    *,
    fixed: bool,
) -> Float32s:
    """Vectors float32 [B, dim] of histories, a chunk at a time; zeros where there are no behaviors.

    Args:
        batch: Histories no longer than the last of the ``widths``.
        tokens: Of the batch, flat.
        widths: Ascending, int64.
        dim: Length of a vector.
        compute: Vectors (R, dim) of tokens [R, L], padded on the right, and their lengths (R,), on the device.
        device: To compute on.
        fixed: Whether every chunk of a width has one shape, so that no row depends on its neighbors; else no
            more rows and columns are computed than are asked for.
    """
    vectors = np.zeros((len(batch), dim), np.float32)
    landing = Landing(vectors, device)
    for rows, width in width_chunks(batch.lengths, widths, partial(chunk_rows, device)):
        size = chunk_rows(device, width) if fixed else len(rows)
        starts, lengths = np.zeros((2, size), np.int64)  # rows beyond the chunk's are padding
        starts[: len(rows)], lengths[: len(rows)] = batch.offsets[rows], batch.lengths[rows]
        columns = width if fixed else int(lengths.max())
        sizes = torch.from_numpy(lengths)
        padded = tokens.padded(torch.from_numpy(starts), sizes, columns).to(device)
        landing.put(rows, compute(padded, to_device(sizes, device)))
    landing.finish()
    return vectors


class Landing:
    """Brings rows of results from a device into a matrix, while the device computes the next.

    On cuda a copy goes to pinned memory behind the work that makes it, and is read when it has arrived; on other
    devices it is read at once.

    Args:
        out: float32 [B, D], filled in place.
        device: Where results are made.
    """

    def __init__(self, out: Float32s, device: torch.device) -> None:
        self._out, self._pinned = out, device.type == "cuda"
        self._pending: list[tuple[Int64s, torch.Tensor, torch.cuda.Event]] = []

    def put(self, rows: Int64s, results: torch.Tensor) -> None:
        """Results (R, D), the first of which are for ``rows`` of the matrix."""
        results = results[: len(rows)].float()
        if not self._pinned:
            self._out[rows] = results.cpu().numpy()
            return
        host = torch.empty(results.shape, dtype=torch.float32, pin_memory=True)
        host.copy_(results, non_blocking=True)
        arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        arrived.record()
        self._pending.append((rows, host, arrived))
        if len(self._pending) > _IN_FLIGHT:
            self._read()

    def finish(self) -> None:
        """Waits for what is on its way."""
        while self._pending:
            self._read()

    def _read(self) -> None:
        rows, host, arrived = self._pending.pop(0)
        arrived.synchronize()
        self._out[rows] = host.numpy()

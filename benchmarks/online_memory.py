"""Memory of a job that writes a fill: a process of its own, and the largest it became, its imports included.

    python benchmarks/online_memory.py FOLDER PORT ROWS DIM chunks|whole

``chunks`` writes as many rows in pieces that are made one after the other; ``whole`` does what a full refresh does
after encoding: all vectors in one array, staged, mapped from the staged file, written at once.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import redis
from online_sides import BATCH_ROWS, FILL, JOIN_KEY, TICK, Ours, Server

from feast_embeddings.materialize.embedding_log import EmbeddingLog
from feast_embeddings.models import SequenceEncoder  # torch, as a refresh has it


def measure_memory(folder: Path, server: Server, rows: int, dim: int) -> dict[str, float]:
    """Peak resident bytes of each way of writing ``rows`` rows."""
    found = {}
    for way in ("chunks", "whole"):
        server.flush()
        command = [sys.executable, __file__, str(folder / way), str(server.port), str(rows), str(dim), way]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found[f"{rows:,} × {dim}, {way}"] = float(done.stdout.split()[-1])
    return found


def vectors_of(seed: int, rows: int, dim: int) -> np.ndarray:
    """What an encoder would return."""
    return np.random.default_rng(seed).standard_normal((rows, dim), dtype=np.float32)


def write_in_chunks(side: Ours, rows: int, dim: int) -> None:
    """One piece at a time."""
    for start in range(0, rows, BATCH_ROWS):
        ids = np.arange(start, min(start + BATCH_ROWS, rows))
        side.write_rows(ids, vectors_of(start, len(ids), dim))


def write_whole(side: Ours, log: EmbeddingLog, rows: int, dim: int) -> None:
    """As ``materialize/ticks.py``: a list of encoded pieces, joined, staged, mapped and written."""
    starts = range(0, rows, BATCH_ROWS)
    vectors = np.concatenate([vectors_of(start, min(BATCH_ROWS, rows - start), dim) for start in starts])
    log.stage(FILL, TICK, np.arange(rows), vectors)
    del vectors
    staged = log.staged(FILL, TICK)
    assert staged is not None
    side.write_rows(*staged)


def peak_bytes() -> int:
    """The largest this process became. On Linux, getrusage would also count what the parent was when it forked."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    """Writes, and prints the peak in bytes."""
    folder, port, rows, dim, way = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
    assert SequenceEncoder
    server = Server("", port, redis.Redis(port=port))
    side = Ours(folder, server, folder / "log.parquet")
    if way == "chunks":
        write_in_chunks(side, rows, dim)
    else:
        write_whole(side, EmbeddingLog(folder / "log", JOIN_KEY, string_ids=False), rows, dim)
    assert server.client.dbsize() >= rows
    print(peak_bytes())


if __name__ == "__main__":
    main()

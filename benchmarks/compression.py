"""What smaller costs: weights and vectors of fewer bits, shorter vectors, and ONNX Runtime, on MovieLens-1M.

    python benchmarks/compression.py --data ml1m_sequences.tsv.gz --encoder DIR --matryoshka DIR

One trained encoder, the protocol of ``quality_ml1m.py``; every row changes one thing about it, and NDCG@10 is compared
user by user with the unchanged encoder (95 % intervals from resampling users). Vectors in fewer bits are rounded by the
online store's own code. Prefixes are of a second encoder, trained with ``matryoshka=(16, 32)`` (what `PrefixEncoder`
serves), and are compared with its own whole vectors; prefixes of the first one show what that training is for. Without
artifacts in the two folders, encoders are trained there for ``--minutes`` each.

Times are of single requests (one history of 50 movies) and of a batch of 256; medians of several runs, all in one
process.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from command_line import command
from quality_ml1m import CONFIG, leave_last_out, machine, read_sequences
from rich.console import Console
from rich.table import Table

from feast_embeddings.materialize.declare import Storage, as_stored, packed
from feast_embeddings.models import (
    Encoder,
    HistoryBatch,
    OnnxEncoder,
    Ragged,
    SequenceEncoder,
    StorableEncoder,
    compressed,
    load_encoder,
    save_encoder,
    train,
)
from feast_embeddings.models.encoder import latest
from feast_embeddings.models.evaluation import RankingTask, bootstrap, inner_products, measures, target_ranks
from feast_embeddings.models.types import Float32s

RESULTS = Path(__file__).parent / "results" / "compression.json"
PREFIXES = (16, 32)


@dataclass(frozen=True)
class Contestant:
    """One row: an encoder, how and how much of its vectors is stored, and what it is compared with."""

    encoder: Encoder
    storage: Storage = "float32"
    size: int | None = None
    against: str = "float32"
    artifact: Path | None = None

    def kept(self, vectors: Float32s) -> Float32s:
        """What a store returns of the encoder's vectors."""
        return as_stored(np.ascontiguousarray(vectors[:, : self.size]), self.storage)

    @property
    def vector_bytes(self) -> int:
        """Of one vector as it is stored."""
        dim = self.size or self.encoder.dim
        return 4 * dim if self.storage == "float32" else packed(np.zeros((1, dim), np.float32), self.storage).shape[1]


def trained(folder: Path, task: RankingTask, options: argparse.Namespace, sizes: tuple[int, ...]) -> StorableEncoder:
    """The artifact in a folder, trained where there is none."""
    if not (folder / "manifest.json").exists():
        config = replace(CONFIG, max_minutes=options.minutes, matryoshka=sizes)
        save_encoder(train(config, task.training, behavior_types=["rating"]).encoder, folder)
    return load_encoder(folder)


def contestants(options: argparse.Namespace, task: RankingTask, scratch: Path) -> dict[str, Contestant]:
    """Every row of the table."""
    plain = trained(options.encoder, task, options, ())
    nested = trained(options.matryoshka, task, options, PREFIXES)
    assert isinstance(plain, SequenceEncoder)
    rows: dict[str, Contestant] = {"float32": Contestant(plain, artifact=_saved(plain, scratch / "float32"))}
    rows["computed in bf16"] = Contestant(load_encoder(options.encoder, precision="bf16"))
    for weights in ("bf16", "int8"):
        small = compressed(plain, weights)  # type: ignore[arg-type]
        rows[f"weights in {weights}"] = Contestant(small, artifact=_saved(small, scratch / weights))
    rows["ONNX Runtime"] = Contestant(OnnxEncoder.of(plain, scratch / "onnx"))
    rows["ONNX Runtime, int8"] = Contestant(OnnxEncoder.of(plain, scratch / "onnx", "int8"))
    rows["vectors stored in float16"] = Contestant(plain, "float16")
    rows["vectors stored in int8"] = Contestant(plain, "int8")
    rows["plain, first 32"] = Contestant(plain, size=32)
    rows["plain, first 16"] = Contestant(plain, size=16)
    rows["Matryoshka, all 64"] = Contestant(nested, against="Matryoshka, all 64")
    for size in reversed(PREFIXES):
        rows[f"Matryoshka, first {size}"] = Contestant(nested, size=size, against="Matryoshka, all 64")
    return rows


def _saved(encoder: StorableEncoder, folder: Path) -> Path:
    save_encoder(encoder, folder)
    return folder


def sampled(task: RankingTask, users: int) -> RankingTask:
    """The questions of some users, drawn at random; the catalogue stays whole."""
    rows = np.sort(np.random.default_rng(0).choice(len(task), users, replace=False)).astype(np.int64)
    assert task.filtered is not None
    parts = [_taken(part, rows) for part in (task.targets, task.filtered)]
    histories = task.histories.take(rows)
    return replace(task, histories=histories, targets=parts[0], filtered=parts[1], users=task.users[rows])


def _taken(ragged: Ragged, rows: np.ndarray) -> Ragged:
    lengths = np.diff(ragged.offsets)[rows]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    flat = np.repeat(ragged.offsets[:-1][rows] - offsets[:-1], lengths) + np.arange(offsets[-1])
    return Ragged(offsets, ragged.rows[flat])


def quality(task: RankingTask, row: Contestant, encoded: dict[int, Float32s]) -> dict[str, np.ndarray]:
    """``hr@10`` and ``ndcg@10`` of each question; ``encoded`` keeps what an encoder made before."""
    if id(row.encoder) not in encoded:
        encoded[id(row.encoder)] = row.encoder.encode(task.histories)
    items, known = row.encoder.encode_items(task.catalogue.ids)
    scorer = inner_products(row.kept(encoded[id(row.encoder)]), row.kept(items), known)
    ranks = target_ranks(scorer, len(task.catalogue), task.targets, task.filtered)
    return measures(ranks, task.targets, (10,))


def speed(encoder: Encoder, batch: HistoryBatch, runs: int) -> dict[str, float]:
    """Milliseconds of one request at p50 and p99, and histories per second of a batch of 256."""
    one = [batch.take(np.array([row])) for row in range(len(batch))]
    encoder.encode(one[0])
    single = [_seconds(encoder, each) for _ in range(runs) for each in one]
    whole = [_seconds(encoder, batch) for _ in range(5)]
    return {
        "p50_ms": 1000 * float(np.percentile(single, 50)),
        "p99_ms": 1000 * float(np.percentile(single, 99)),
        "histories_per_second": len(batch) / float(np.median(whole)),
    }


def _seconds(encoder: Encoder, batch: HistoryBatch) -> float:
    started = time.perf_counter()
    encoder.encode(batch)
    return time.perf_counter() - started


class _Now:
    """The eager encoder as a request uses it: without padding."""

    def __init__(self, encoder: SequenceEncoder) -> None:
        self.encode = encoder.encode_now


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Everything, as JSON values."""
    load_before = os.getloadavg()
    whole = leave_last_out(read_sequences(options.data))
    task = sampled(whole, options.users) if options.users else whole
    long = np.flatnonzero(task.histories.lengths >= options.length)[:256]
    batch = latest(task.histories.take(long.astype(np.int64)), options.length)
    with tempfile.TemporaryDirectory() as folder:
        rows = contestants(options, whole, Path(folder))
        encoded: dict[int, Float32s] = {}
        found = {name: quality(task, row, encoded) for name, row in rows.items()}
        results = {name: _row(name, row, found, task) for name, row in rows.items()}
    timed = {name: rows[name].encoder for name in rows if not name.startswith(("vectors", "plain", "Matryoshka"))}
    timed["eager, as a request (encode_now)"] = _Now(timed["float32"])  # type: ignore[assignment,arg-type]
    return {
        "rows": results,
        "speed": {name: speed(encoder, batch, options.runs) for name, encoder in timed.items()},
        "length": options.length,
        "spaces": {name: rows[name].encoder.space for name in ("float32", "Matryoshka, all 64")},
        "users": len(task),
        "machine": machine(load_before),
        "command": command(),
    }


def _row(name: str, row: Contestant, found: dict[str, dict[str, np.ndarray]], task: RankingTask) -> dict[str, Any]:
    own, other = found[name]["ndcg@10"], found[row.against]["ndcg@10"]
    value, change = bootstrap(np.stack([own, own - other], axis=1), task.users)
    base = float(np.nanmean(other))
    size = None
    if row.artifact is not None:
        size = sum(file.stat().st_size for file in row.artifact.iterdir())
    return {
        "hr@10": float(np.nanmean(found[name]["hr@10"])),
        "ndcg@10": [value.value, value.low, value.high],
        "change_percent": [100 * each / base for each in (change.value, change.low, change.high)],
        "against": row.against,
        "artifact_bytes": size,
        "vector_bytes": row.vector_bytes,
    }


def show(results: dict[str, Any]) -> None:
    """Prints two tables."""
    table = Table("variant", "NDCG@10", "change of NDCG@10", "HR@10", "artifact", "vector", title="Quality and bytes")
    for name, row in results["rows"].items():
        change = "{:+.2f} % [{:+.2f}, {:+.2f}]".format(*row["change_percent"])
        size = f"{row['artifact_bytes'] / 1024:,.0f} KiB" if row["artifact_bytes"] else ""
        table.add_row(
            name, f"{row['ndcg@10'][0]:.4f}", change, f"{row['hr@10']:.4f}", size, f"{row['vector_bytes']:g} B"
        )
    times = Table("encoder", "one request p50", "p99", "batch of 256", title=f"Histories of {results['length']}")
    for name, row in results["speed"].items():
        times.add_row(
            name, f"{row['p50_ms']:.2f} ms", f"{row['p99_ms']:.2f} ms", f"{row['histories_per_second']:,.0f}/s"
        )
    console = Console(width=140)
    console.print(table)
    console.print(times)


def parsed(arguments: list[str]) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--encoder", type=Path, default=Path(".demo/ml1m"), help="artifact; made where there is none")
    parser.add_argument(
        "--matryoshka", type=Path, default=Path(".demo/ml1m-matryoshka"), help="the same, with prefixes"
    )
    parser.add_argument("--minutes", type=float, default=10, help="of training, where there is no artifact")
    parser.add_argument("--users", type=int, help="measure quality on so many of them, drawn at random; default: all")
    parser.add_argument("--length", type=int, default=50, help="movies of the histories that are timed")
    parser.add_argument("--runs", type=int, default=3, help="times that 256 single requests are timed")
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args(arguments)


def main() -> None:
    """Measures, prints, and writes the results."""
    options = parsed(sys.argv[1:])
    results = run(options)
    show(results)
    options.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()

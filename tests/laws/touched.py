"""Prints the modules that one incremental tick runs through, and one refresh: what to know before changing either.

A module counts as touched when at least one of its functions ran, in any thread, from the call of Feast's command
until it returned; what its import runs does not count. The commands are ``materialize_incremental(E, [view])`` with
one tick due, and ``materialize(S, E, [view])``, of the user embedding of ``feature_repo/`` with a generation live:
in a store that has done nothing yet, so that connections and handles are opened too, and in one that ran a tick before.

Only Feast's commands and the declarations of ``feature_repo/`` are used, so it runs on any layout: ``make trace``.
"""

from __future__ import annotations

import atexit
import os
import runpy
import shutil
import sys
import tempfile
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import CodeType, FrameType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from feast import Entity, FeatureService, FeatureStore, FeatureView

from feast_embeddings.models import ItemIndex, SequenceConfig, SequenceEncoder, save_encoder

ROOT = Path(__file__).parents[2]
FOLDERS = ("materialize", "transformations", "models")
DAY = timedelta(days=1)
NOW = datetime.now(UTC).replace(microsecond=0)
START = NOW - 10 * DAY
VIEW = "user_embedding"
TYPES = ("view", "cart", "purchase", "coupon")
ITEMS = np.arange(101, 131, dtype=np.int64)


def write_repo(folder: Path) -> None:
    """The template's declarations, ten days of twelve users, and an encoder of random weights."""
    for name in ("definitions.py", "feature_store.yaml"):
        shutil.copy(ROOT / "feature_repo" / name, folder)
    (folder / "data" / "behaviors").mkdir(parents=True)
    rng, count = np.random.default_rng(0), 600
    at = [START + float(part) * 10 * DAY for part in rng.random(count)]
    columns = {
        "customer_id": pa.array(rng.integers(1, 13, count)),
        "product_id": pa.array(rng.choice(ITEMS, count)),
        "event": pa.array(rng.choice(TYPES, count).tolist()),
        "occurred_at": pa.array(at, pa.timestamp("us", tz="UTC")),
        "amount": pa.array(rng.uniform(0, 20, count)),
        "event_id": pa.array([f"e{number}" for number in range(count)]),
    }
    pq.write_table(pa.table(columns), folder / "data" / "behaviors" / "history.parquet")
    torch.manual_seed(0)
    config = SequenceConfig(dim=64, context=10, blocks=1, heads=1, hidden=8)
    save_encoder(SequenceEncoder(config, TYPES, ItemIndex(ITEMS)).eval(), folder / "data" / "encoders" / "main")


def apply() -> None:
    """`feast apply`, in this process, of the folder that it is in; then a first refresh of both views."""
    declared = runpy.run_path("definitions.py").values()
    FeatureStore(".").apply([each for each in declared if isinstance(each, Entity | FeatureView | FeatureService)])
    FeatureStore(".").materialize(START, NOW - 6 * DAY, [VIEW, "item_embedding"])


def touched(command: Callable[[], None]) -> list[str]:
    """Paths, relative to the checkout, of the modules of which ``command`` runs a function."""
    codes: set[CodeType] = set()

    def called(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_name != "<module>":
            codes.add(frame.f_code)

    threading.setprofile(called)
    sys.setprofile(called)
    try:
        command()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    files = {Path(code.co_filename).resolve() for code in codes}
    found = {file.relative_to(ROOT) for file in files if file.is_relative_to(ROOT)}
    return sorted(path.as_posix() for path in found if path.parts[0] in FOLDERS)


@contextmanager
def repo(folder: Path) -> Iterator[None]:
    """A new repo with a live generation, for this process to be in; what Feast prints goes nowhere."""
    folder.mkdir()
    os.chdir(folder)
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        warnings.simplefilter("ignore")
        write_repo(folder)
        apply()
        yield


def measure(folder: Path) -> dict[str, list[str]]:
    """What a tick and a refresh touch, each in a store that has done nothing before and in one that has."""
    found = {}
    with repo(folder / "used"):
        store = FeatureStore(".")
        found["tick"] = touched(lambda: store.materialize_incremental(NOW - 5 * DAY, [VIEW]))
        found["tick, store in use"] = touched(lambda: store.materialize_incremental(NOW - 4 * DAY, [VIEW]))
        found["refresh, store in use"] = touched(lambda: store.materialize(START, NOW - 3 * DAY, [VIEW]))
    with repo(folder / "fresh"):
        store = FeatureStore(".")
        found["refresh"] = touched(lambda: store.materialize(START, NOW - 3 * DAY, [VIEW]))
    return {job: found[job] for job in sorted(found, reverse=True)}


def main() -> None:
    """Measure in a folder that goes when the process ends, after the servers in it have been stopped."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder)  # before the package's own: the last to be registered is the first to run
    show(measure(Path(folder)))


def show(found: dict[str, list[str]]) -> None:
    """Print the names, then a table of the counts, of each folder and of each package in it."""
    if not all(found.values()):
        sys.exit("The installed package is another checkout's: put this one's typings/ on PYTHONPATH.")
    for job in ("tick", "refresh"):
        print(f"{job}:", *found[job], sep="\n  ")
    counts = {job: Counter(_places(paths)) for job, paths in found.items()}
    places = sorted({place for counted in counts.values() for place in counted})
    print("\n| modules touched by one … |", " | ".join(counts), "|")
    print("|---" * (len(counts) + 1) + "|")
    for place in places:
        print(f"| {place} |", " | ".join(str(counted[place]) for counted in counts.values()), "|")


def _places(paths: list[str]) -> Iterator[str]:
    for path in paths:
        folder, *between, _ = path.split("/")
        yield folder
        if between:
            yield f"{folder}/{between[0]}/"


if __name__ == "__main__":
    main()

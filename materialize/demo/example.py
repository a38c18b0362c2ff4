"""Runs a file of declarations on generated behaviors that fit its contract: what stands behind ``examples/``."""

from __future__ import annotations

import contextlib
import io
import os
import runpy
import shutil
import sys
import warnings
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureStore
from rich.console import Console
from rich.table import Table

from feast_embeddings.materialize.clock import now_us
from feast_embeddings.materialize.declare import EmbeddingSpec
from feast_embeddings.materialize.demo.raw_table import write_raw_table
from feast_embeddings.materialize.demo.replay import feast_apply
from feast_embeddings.materialize.demo.scaffold import write_repo
from feast_embeddings.materialize.demo.shop import EVENTS, shop_table
from feast_embeddings.materialize.learning import EntityExplanation, explain_entity, train_declared
from feast_embeddings.models import SequenceConfig, TrainingConfig
from feast_embeddings.models.errors import DeclarationError, FeastEmbeddingsError
from feast_embeddings.models.types import Ids
from feast_embeddings.transformations import BehaviorContract

_DAY = timedelta(days=1)


def run_example(source: str | Path, folder: Path | None = None, epochs: int = 5) -> None:
    """Write a feature repo around a file of declarations, apply, train, materialize, and explain one user's vector.

    Args:
        source: The file.
        folder: Where to work, made anew; default ``.demo/<name of the file>``.
        epochs: Of training.

    An error of this package ends the program with its message, before any work where an extra is missing.
    """
    try:
        _run_example(Path(source).resolve(), folder, epochs)
    except FeastEmbeddingsError as error:
        sys.exit(f"{type(error).__name__}: {error}")


def _run_example(source: Path, folder: Path | None, epochs: int) -> None:
    try:
        import captum  # noqa: F401 - whether it is there
    except ImportError as error:
        raise DeclarationError(
            f"{source.name} explains a vector, which needs captum: pip install '.[explain]' first."
        ) from error
    folder = folder or Path(".demo") / source.stem
    shutil.rmtree(folder, ignore_errors=True)
    write_example(source, folder)
    feast_apply([folder])
    os.chdir(folder)
    sys.path.insert(0, ".")
    store = FeatureStore(".")
    made = train_declared(store, TrainingConfig(encoder=SequenceConfig(context=30), max_epochs=epochs))
    end, console = datetime.now(UTC), Console()
    console.print(
        f"trained on {made.learned.behaviors:,} behaviors of {made.learned.entities:,} entities: space {made.space}"
    )
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Feast warns at every declaration that it meets
        store.materialize(end - 60 * _DAY, end - _DAY)
        store.materialize_incremental(end)
        found = _explained(store, made.spec)
    _show(found, console)


def write_example(
    source: Path, folder: Path, *, users: int = 200, items: int = 60, days: int = 30, end_us: int | None = None
) -> Path:
    """A feature repo in ``folder`` with the declarations of ``source`` and behaviors as its contract wants them.

    Args:
        source: A file of declarations that names its contract ``contract``.
        folder: A new or empty folder.
        users: Who behaves, 1 to ``users``.
        items: What there is, from 1001 on.
        days: Length of the generated past.
        end_us: When it ends, microseconds; default: now.

    Raises:
        DeclarationError: The file declares no contract, or the folder holds something.
    """
    contract = runpy.run_path(str(source)).get("contract")
    if not isinstance(contract, BehaviorContract):
        raise DeclarationError(f"{source} declares no BehaviorContract named contract: give it one.")
    write = partial(_write, contract=contract, users=users, items=items, days=days, end_us=end_us or now_us())
    write_repo(folder, data=write)
    shutil.copyfile(source, folder / "definitions.py")
    return folder


def ids_of(numbers: Any, dtype: str, word: str) -> Ids:
    """Ids of a contract's type for whole numbers: themselves, or ``<word>-<number>``."""
    if dtype == "int64":
        return np.asarray(numbers, np.int64)
    return np.array([f"{word}-{number}" for number in numbers], object)


def _write(path: Path, *, contract: BehaviorContract, users: int, items: int, days: int, end_us: int) -> None:
    """The generated shop in the columns, id types and behavior types of another contract."""
    shop = shop_table(users=users, items=items, days=days, end_us=end_us)
    shop = shop.filter(pc.and_(pc.is_valid(shop["product_id"]), pc.is_in(shop["event"], pa.array(EVENTS))))
    kinds = [kind.name for kind in contract.types if kind.cancels is None]
    place = np.array([EVENTS.index(event) for event in shop["event"].to_pylist()])
    names = np.array(kinds, object)[place * (len(kinds) - 1) // (len(EVENTS) - 1)]
    value = np.random.default_rng(0).lognormal(3.0, 0.7, shop.num_rows).round(1)
    columns: dict[str | None, Any] = {
        contract.entity: ids_of(shop["customer_id"].to_pylist(), contract.entity_dtype, "user"),
        contract.item: ids_of(shop["product_id"].to_pylist(), contract.item_dtype, "item"),
        contract.behavior_type: names,
        contract.event_time: shop["occurred_at"],
        contract.value: value,
        contract.created_time: shop["occurred_at"],
        contract.dedup_id: shop["event_id"],
    }
    write_raw_table(pa.table({name: column for name, column in columns.items() if name is not None}), path)


def _explained(store: FeatureStore, spec: EmbeddingSpec) -> EntityExplanation:
    entity = next(each for each in store.list_entities() if each.join_key == spec.join_key)
    return explain_entity(store, entity.name, "user-1" if spec.string_ids else 1, k=5)


def _show(found: EntityExplanation, console: Console) -> None:
    title = f"{found.spec.view} of {found.entity_id}"
    table = Table("behaviors that count most", "attribution", title=title, title_justify="left")
    for row in found.explanation.top(0, 5).tolist():
        kind = found.contract.type_names[int(found.explanation.histories.behavior_types[row])]
        item = found.explanation.histories.items[row]
        table.add_row(f"{kind} {item}", f"{found.explanation.attributions[row]:+.3f}")
    console.print(table)
    if found.neighbors is not None:
        console.print(f"nearest items: {', '.join(str(item) for item in found.neighbors.ids[0])}", highlight=False)

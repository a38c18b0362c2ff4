"""What each modality of a `FusionEncoder` is worth: next purchases of Online Retail, each modality removed in turn.

    python benchmarks/modalities.py --data online_retail.parquet --epochs 5

*Served without*: the full encoder, asked for items whose modality is missing, which its training with modality dropout
prepared it for. With ``--retrain`` also *trained without*: another encoder, which never had the modality. The protocol
is that of ``retail_items.py``. Writes the part ``modalities`` of ``results/online_retail.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from command_line import command
from quality_ml1m import machine
from retail_items import RetailItems, hits
from rich.console import Console
from rich.table import Table

from feast_embeddings.models import StorableEncoder
from feast_embeddings.models.evaluation import bootstrap

RESULTS = Path(__file__).parent / "results" / "online_retail.json"
MODALITIES = ("behaviors", "text", "price", "family", "countries")


def trained(shop: RetailItems, epochs: int, *, retrain: bool) -> dict[str, StorableEncoder]:
    """The full encoder, one of behaviors only, and where asked for one without each modality."""
    encoders = {"all": shop.encoder("fusion-all", epochs, shop.features)}
    for name in MODALITIES if retrain else ():
        features = shop.features.without(name)
        encoders[f"trained without {name}"] = shop.encoder(
            f"fusion-no-{name}", epochs, features, rows=name != "behaviors"
        )
    encoders["behaviors only (SequenceEncoder)"] = shop.encoder("plain", epochs, None)
    return encoders


def served(full: StorableEncoder) -> dict[str, StorableEncoder]:
    """The full encoder without each modality, in histories and in the catalogue."""
    state = full.state()
    rows, fusion = "item_table.rows.weight", {**state.config["fusion"], "trained": 0}
    bare = replace(
        state, config={**state.config, "fusion": fusion}, tensors={**state.tensors, rows: state.tensors[rows][:1]}
    )
    encoders = {"served without behaviors": type(full).from_state(bare)}
    for name in MODALITIES[1:]:
        missing = f"item_table.feature_{name}_at_present"
        tensors = {**state.tensors, missing: torch.zeros_like(state.tensors[missing])}
        encoders[f"served without {name}"] = type(full).from_state(replace(state, tensors=tensors))
    return encoders


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Everything, as JSON values: HR@10 and HR@100 of all targets, HR@10 of cold ones, and what is lost."""
    load_before = os.getloadavg()
    shop = RetailItems(options.data, options.encoders)
    encoders = trained(shop, options.epochs, retrain=options.retrain)
    encoders |= served(encoders["all"])
    cold, rows = shop.receipts.cold, {}
    customers = np.repeat(shop.receipts.customers, np.diff(shop.receipts.targets.offsets))
    full = shop.ranks(encoders["all"])
    for name, encoder in encoders.items():
        ranks = shop.ranks(encoder)
        found = {
            "hr@10": _estimate(hits(ranks), hits(full), customers),
            "hr@100": _estimate(hits(ranks, 100), hits(full, 100), customers),
            "cold hr@10": _estimate(hits(ranks)[cold], hits(full)[cold], customers[cold]),
        }
        rows[name] = found
    return {
        "targets": len(cold),
        "cold_targets": int(cold.sum()),
        "epochs_of_training": options.epochs,
        "rows": rows,
        "machine": machine(load_before),
        "command": command(),
    }


def _estimate(values: np.ndarray, full: np.ndarray, customers: np.ndarray) -> dict[str, list[float]]:
    value, change = bootstrap(np.stack([values, values - full], axis=1), customers)
    return {"value": [value.value, value.low, value.high], "change": [change.value, change.low, change.high]}


def show(part: dict[str, Any]) -> None:
    """Prints one table."""
    table = Table("modalities", "HR@10", "HR@100", "HR@10, cold items", title="Online Retail, change against all")
    for name, found in part["rows"].items():
        cells = [
            f"{each['value'][0]:.4f} ({each['change'][0]:+.4f} [{each['change'][1]:+.4f}, {each['change'][2]:+.4f}])"
            for each in found.values()
        ]
        table.add_row(name, *cells)
    Console(width=150).print(table)


def parsed(arguments: list[str]) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=5, help="of training, for each encoder")
    parser.add_argument("--retrain", action="store_true", help="also train an encoder without each modality")
    parser.add_argument("--encoders", type=Path, default=Path(".demo/retail"), help="folder to keep encoders in")
    return parser.parse_args(arguments)


def main() -> None:
    """Measures, prints, and writes the part of the results."""
    options = parsed(sys.argv[1:])
    part = run(options)
    show(part)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps({**results, "modalities": part}, indent=2) + "\n")


if __name__ == "__main__":
    main()

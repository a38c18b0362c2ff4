"""Does text help cold items? Next purchases of Online Retail, on items with under five purchases in training.

    python benchmarks/text_cold_items.py --data online_retail.parquet --epochs 5

One trained `SequenceEncoder` alone; the same with `TextEncoder`, which gives unseen items their text's vector and
lets the text weigh in on rare ones; and a `FusionEncoder` on text and behaviors, trained as long. The protocol is
that of ``retail_items.py``. Writes the part ``text`` of ``results/online_retail.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from command_line import command
from quality_ml1m import machine
from retail_items import KnownTexts, RetailItems, hits
from rich.console import Console
from rich.table import Table

from feast_embeddings.models import StorableEncoder, TextEncoder
from feast_embeddings.models.evaluation import bootstrap

RESULTS = Path(__file__).parent / "results" / "online_retail.json"
MEASURES = ("hr@10", "hr@100", "hr@10 among cold items")


def encoders_of(shop: RetailItems, epochs: int) -> dict[str, StorableEncoder]:
    """The contestants."""
    plain = shop.encoder("plain", epochs, None)
    model = KnownTexts(shop)
    texts = TextEncoder.fit(plain, model, shop.catalogue.ids, shop.texts, counts=shop.purchases)
    features = shop.features.without("family", "countries", "price")
    return {
        "SequenceEncoder": plain,
        "TextEncoder over it": texts,
        "FusionEncoder, behaviors + text": shop.encoder("fusion-text", epochs, features),
    }


def measured(shop: RetailItems, encoders: dict[str, StorableEncoder]) -> dict[str, Any]:
    """HR of each encoder on cold and on other targets, and the gain over the first, with 95 % intervals."""
    cold = shop.receipts.cold
    customers = np.repeat(shop.receipts.customers, np.diff(shop.receipts.targets.offsets))
    few = shop.purchases < 5
    columns: dict[str, np.ndarray] = {}
    for name, encoder in encoders.items():
        ranks, among = shop.ranks(encoder), shop.ranks(encoder, few)
        for measure, values in zip(MEASURES, (hits(ranks), hits(ranks, 100), hits(among)), strict=True):
            columns[f"{name}/{measure}"] = values
    return {
        "cold": _estimates(columns, cold, customers, list(encoders)),
        "others": _estimates({k: v for k, v in columns.items() if "among" not in k}, ~cold, customers, list(encoders)),
    }


def _estimates(columns: dict[str, np.ndarray], kept: np.ndarray, customers: np.ndarray, names: list[str]) -> Any:
    gains = {f"{key}, gain": v - columns[f"{names[0]}/{key.split('/')[1]}"] for key, v in columns.items()}
    every = {**columns, **{key: v for key, v in gains.items() if not key.startswith(names[0] + "/")}}
    found = bootstrap(np.stack(list(every.values()), axis=1)[kept], customers[kept])
    return {key: [e.value, e.low, e.high] for key, e in zip(every, found, strict=True)}


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Everything, as JSON values."""
    load_before = os.getloadavg()
    shop = RetailItems(options.data, options.encoders)
    encoders = encoders_of(shop, options.epochs)
    texts = encoders["TextEncoder over it"]
    assert isinstance(texts, TextEncoder)
    return {
        "receipts": len(shop.receipts.targets),
        "targets": len(shop.receipts.cold),
        "cold_targets": int(shop.receipts.cold.sum()),
        "cold_items": int((shop.purchases < 5).sum()),
        "items": len(shop.catalogue),
        "variance_of_items_that_text_explains": texts.text_map.explained,
        "epochs_of_training": options.epochs,
        "measures": measured(shop, encoders),
        "machine": machine(load_before),
        "command": command(),
    }


def show(part: dict[str, Any]) -> None:
    """Prints one table."""
    title = f"Online Retail: {part['cold_targets']} purchases of cold items"
    table = Table("encoder", "targets", *MEASURES, title=title, title_justify="left")
    for kind, found in part["measures"].items():
        for name in dict.fromkeys(key.split("/")[0] for key in found):
            cells = [_cell(found, f"{name}/{measure}") for measure in MEASURES]
            table.add_row(name, kind, *cells)
    Console(width=150).print(table)


def _cell(found: dict[str, list[float]], key: str) -> str:
    if key not in found:
        return ""
    text = f"{found[key][0]:.4f}"
    if (gain := found.get(f"{key}, gain")) is not None:
        text += f" ({gain[0]:+.4f} [{gain[1]:+.4f}, {gain[2]:+.4f}])"
    return text


def parsed(arguments: list[str]) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=5, help="of training, for each encoder")
    parser.add_argument("--encoders", type=Path, default=Path(".demo/retail"), help="folder to keep encoders in")
    return parser.parse_args(arguments)


def main() -> None:
    """Measures, prints, and writes the part of the results."""
    options = parsed(sys.argv[1:])
    part = run(options)
    show(part)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps({**results, "text": part}, indent=2) + "\n")


if __name__ == "__main__":
    main()

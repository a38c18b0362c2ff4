"""What cleaning does to a real shop's invoices: where every line of Online Retail goes.

    python benchmarks/online_retail.py --data online_retail.parquet

Writes the part ``cleaning`` of ``results/online_retail.json`` and leaves the file's other parts as they are.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from online_retail_data import COLD_BELOW, SPLIT, OnlineRetail, read_online_retail
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results" / "online_retail.json"


def cleaning(data: OnlineRetail) -> dict[str, Any]:
    """The counts as JSON values: read = applied + deduplicated + quarantined, cancellations among the latter."""
    counts = data.counts
    tested = np.unique(data.test.items)
    purchases = data.purchases(tested)
    quarantined = [
        {"reason": reason, "event": event, "lines": int(lines)} for (reason, event), lines in data.quarantined.items()
    ]
    return {
        "read": counts.read,
        "applied": counts.accepted,
        "deduplicated": counts.deduplicated,
        "cancelled": counts.quarantined.get("cancelled", 0),
        "cancellations": counts.quarantined.get("cancellation", 0),
        "other_quarantined": sum(counts.quarantined.values())
        - counts.quarantined.get("cancelled", 0)
        - counts.quarantined.get("cancellation", 0),
        "quarantined": quarantined,
        "accounted_for": counts.accepted + counts.deduplicated + sum(counts.quarantined.values()) == counts.read,
        "customers": len(data.train.entities),
        "split": SPLIT.isoformat(),
        "train": len(data.train),
        "test": len(data.test),
        "items_tested": len(tested),
        "items_tested_cold": int((purchases < COLD_BELOW).sum()),
        "items_tested_never_bought_before": int((purchases == 0).sum()),
    }


def show(part: dict[str, Any]) -> None:
    """Prints one table."""
    table = Table("lines", "count", title="Online Retail, cleaned", title_justify="left")
    for name in ("read", "applied", "deduplicated", "cancelled", "cancellations", "other_quarantined"):
        table.add_row(name, f"{part[name]:,}")
    for row in part["quarantined"]:
        table.add_row(f"  {row['reason']} ({row['event']})", f"{row['lines']:,}")
    Console().print(table)


def write_part(name: str, part: dict[str, Any], path: Path = RESULTS) -> None:
    """Puts one part into the results file, beside those of other benchmarks on the same data."""
    results = json.loads(path.read_text()) if path.exists() else {}
    results[name] = part
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=2) + "\n")


def main() -> None:
    """Cleans, prints, and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    options = parser.parse_args()
    part = cleaning(read_online_retail(options.data))
    part["command"] = f"python {Path(sys.argv[0]).name} --data {options.data.name}"
    show(part)
    write_part("cleaning", part)


if __name__ == "__main__":
    main()

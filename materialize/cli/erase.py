"""An erasure as a table."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from feast_embeddings.materialize.clock import iso
from feast_embeddings.materialize.upkeep import Receipt


def print_receipt(receipt: Receipt, console: Console | None = None) -> None:
    """Print what was removed where, and what is left to others."""
    console = console or Console()
    table = Table("place", "rows removed", title=f"Erased {receipt.entity} {receipt.entity_id}", title_justify="left")
    for place, rows in receipt.removed.items():
        table.add_row(place, f"{rows:,}")
    console.print(table)
    if not receipt.total:
        console.print("Nothing was left of it here.")
    console.print(f"Its behaviors up to {iso(receipt.erased_us)} are never applied again.")
    for place in receipt.left:
        console.print(f"Not changed: {place}", markup=False)

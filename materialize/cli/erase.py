"""An erasure as a table."""

from __future__ import annotations

from rich.console import Console

from feast_embeddings.materialize.cli.tables import console as output
from feast_embeddings.materialize.cli.tables import table as table_of
from feast_embeddings.materialize.clock import iso
from feast_embeddings.materialize.upkeep import Receipt


def print_receipt(receipt: Receipt, console: Console | None = None) -> None:
    """Print what was removed where, and what is left to others."""
    console = console or output()
    table = table_of(f"Erased {receipt.entity} {receipt.entity_id}", "place", "rows removed")
    for place, rows in receipt.removed.items():
        table.add_row(place, f"{rows:,}")
    console.print(table)
    if not receipt.total:
        console.print("Nothing was left of it here.")
    console.print(f"Its behaviors up to {iso(receipt.erased_us)} are never applied again.")
    for place in receipt.left:
        console.print(f"Not changed: {place}", markup=False)

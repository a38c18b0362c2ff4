"""Laws of the whole chain: every row is accounted for, and neither order nor context changes a verdict."""

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from feast_embeddings.models.encoder import ValueNormalizer
from feast_embeddings.transformations import BehaviorContract, BehaviorType, CleaningRules, prepare

DAY = 86_400_000_000
NOW = 4 * DAY
TYPES = (BehaviorType("view"), BehaviorType("buy"), BehaviorType("refund", cancels="buy"))
CONTRACT = BehaviorContract(
    join_key="user_id",
    entity="uid",
    item="sku",
    event_time="at",
    behavior_type="kind",
    value="price",
    created_time="written",
    dedup_id="id",
    types=TYPES,
)
SCHEMA = pa.schema(
    {
        "uid": pa.string(),
        "sku": pa.int64(),
        "kind": pa.string(),
        "at": pa.timestamp("us", tz="UTC"),
        "price": pa.float64(),
        "written": pa.timestamp("us", tz="UTC"),
        "id": pa.string(),
    }
)
TIMES = st.sampled_from([0, 1, 59_000_000, 60_000_000, DAY - 1, DAY, 2 * DAY, 3 * DAY])
DIRTY_ROWS = st.fixed_dictionaries(
    {
        "uid": st.sampled_from(["1", "2", "2", "x", "", None]),
        "sku": st.sampled_from([1, 1, 2, None]),
        "kind": st.sampled_from(["view", "buy", "buy", "refund", "?", None]),
        "at": st.one_of(TIMES, st.sampled_from([5 * DAY, None])),
        "price": st.sampled_from([None, 0.0, -0.0, 1.5, float("nan"), float("inf")]),
        "written": st.sampled_from([None, 1, 2]),
        "id": st.sampled_from([None, None, "a", "b", ""]),
    }
)
CLEAN_ROWS = st.fixed_dictionaries(
    {
        "uid": st.sampled_from(["1", "2"]),
        "sku": st.sampled_from([1, 2]),
        "kind": st.sampled_from(["view", "buy"]),
        "at": TIMES,
        "price": st.sampled_from([None, 1.5]),
        "written": st.just(None),
        "id": st.sampled_from([None, None, "a", "b"]),
    }
)
RULES = st.builds(
    CleaningRules,
    max_per_day=st.sampled_from([None, 1, 2]),
    burst=st.sampled_from([None, (1, 60), (2, 3_600)]),
    cancellations=st.booleans(),
)


def table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=SCHEMA)


@given(rows=st.lists(DIRTY_ROWS, max_size=40), context=st.lists(DIRTY_ROWS, max_size=20), rules=RULES)
def test_every_row_read_is_accepted_deduplicated_or_quarantined(
    rows: list[dict[str, Any]], context: list[dict[str, Any]], rules: CleaningRules
) -> None:
    prepared = prepare(table(rows), CONTRACT, rules, NOW, context=table(context))
    counts = prepared.counts
    assert counts.read == len(rows)
    assert counts.read == counts.accepted + counts.deduplicated + sum(counts.quarantined.values())
    assert counts.accepted == len(prepared.behaviors)
    assert sum(counts.quarantined.values()) == prepared.quarantined.num_rows


@given(rows=st.lists(DIRTY_ROWS, max_size=40), rules=RULES, random=st.randoms(use_true_random=False))
def test_the_order_of_the_rows_does_not_matter(rows: list[dict[str, Any]], rules: CleaningRules, random: Any) -> None:
    shuffled = random.sample(rows, len(rows))
    one, other = (prepare(table(order), CONTRACT, rules, NOW) for order in (rows, shuffled))
    assert one.behaviors.table.equals(other.behaviors.table)
    assert one.counts == other.counts


@given(rows=st.lists(CLEAN_ROWS, max_size=40), rules=RULES, cut=st.sampled_from([1, DAY, 2 * DAY]))
def test_with_the_earlier_rows_as_context_two_ticks_accept_what_one_would(
    rows: list[dict[str, Any]], rules: CleaningRules, cut: int
) -> None:
    # A redelivered id keeps its event time here: across two event times, only one tick can know the first.
    times: dict[str, int] = {}
    rows = [row | {"at": times.setdefault(row["id"], row["at"])} if row["id"] else row for row in rows]
    rules = replace(rules, cancellations=False)
    early = table([row for row in rows if row["at"] < cut])
    late = table([row for row in rows if row["at"] >= cut])
    whole = prepare(table(rows), CONTRACT, rules, NOW)
    first = prepare(early, CONTRACT, rules, NOW)
    second = prepare(late, CONTRACT, rules, NOW, context=early)
    parts = pa.concat_tables([first.behaviors.table, second.behaviors.table]).to_pylist()
    assert sorted(map(repr, parts)) == sorted(map(repr, whole.behaviors.table.to_pylist()))


@given(rows=st.lists(DIRTY_ROWS, max_size=20), rules=RULES)
def test_a_redelivered_table_adds_nothing(rows: list[dict[str, Any]], rules: CleaningRules) -> None:
    again = prepare(table(rows), CONTRACT, replace(rules, cancellations=False), NOW, context=table(rows))
    assert again.counts.accepted == 0


def test_a_normalizer_adds_its_column_and_is_reported() -> None:
    rows = [
        {"uid": "1", "sku": 1, "kind": "view", "at": at, "price": price, "written": None, "id": None}
        for at, price in ((0, 1.0), (1, 3.0), (2, None))
    ]
    normalizer = ValueNormalizer.fit("zscore", np.array([1.0, 3.0], dtype=np.float32))
    prepared = prepare(table(rows), CONTRACT, CleaningRules(), NOW, normalizer=normalizer)
    assert prepared.behaviors.table["normalized_value"].to_pylist() == [-1.0, 1.0, None]
    assert prepared.normalization == {"kind": "zscore", "mean": 2.0, "scale": 1.0}

"""Tombstones: exactly the erased are found, by time, without their ids standing anywhere."""

from __future__ import annotations

import sqlite3
import uuid
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from repo_fixture import DAY, T0, rows
from served_fixture import build, day, items, us

from feast_embeddings.materialize.clock import simulated
from feast_embeddings.materialize.files import BehaviorLog
from feast_embeddings.materialize.ledger.ledger import Ledger
from feast_embeddings.materialize.ledger.schema import SCHEMA_VERSION
from feast_embeddings.materialize.ledger.tombstones import NEVER, Tombstones
from feast_embeddings.transformations import BehaviorContract, BehaviorType, CleaningRules

pytestmark = pytest.mark.filterwarnings("ignore:On demand feature view is an experimental feature:RuntimeWarning")

CONTRACT = BehaviorContract(
    join_key="user_id",
    entity="user",
    item="item",
    behavior_type="event",
    event_time="at",
    created_time="created",
    types=(BehaviorType("view"), BehaviorType("purchase")),
)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")


_INTEGERS = st.integers(-(2**63), 2**63 - 1)
_TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=4)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([(pa.int64(), _INTEGERS), (pa.string(), _TEXTS)]).flatmap(
        lambda kind: st.tuples(
            st.just(kind[0]),
            st.lists(st.tuples(kind[1], st.integers(0, 1 << 50)), max_size=4),
            st.lists(st.none() | kind[1], max_size=6),
        )
    )
)
def test_each_id_is_found_as_it_was_erased_last(ledger: Ledger, case) -> None:
    kind, erased, asked = case
    marks = Tombstones(ledger, uuid.uuid4().hex)
    wanted: dict = {}
    for entity_id, time in erased:
        marks.record(entity_id, time)
        wanted[entity_id] = max(time, wanted.get(entity_id, time))
    ids = asked + [entity_id for entity_id, _ in erased]
    found = marks.erased_us(pa.array(ids, kind))
    assert found.tolist() == [wanted.get(entity_id, NEVER) for entity_id in ids]
    halves = pa.chunked_array([pa.array(ids[::2], kind), pa.array(ids[1::2], kind)], kind)
    assert marks.erased_us(halves).tolist() == [wanted.get(each, NEVER) for each in ids[::2] + ids[1::2]]


def test_the_id_stands_nowhere_in_the_ledger(ledger: Ledger, tmp_path: Path) -> None:
    Tombstones(ledger, "user_id").record("someone@example.org", 5)
    Tombstones(ledger, "item_id").record("other", 5)
    assert Tombstones(ledger, "user_id").erased_us(pa.array(["other"])).tolist() == [NEVER]
    ledger.close()
    for file in tmp_path.iterdir():
        assert b"someone" not in file.read_bytes()


def test_a_ledger_from_before_there_were_erasures_is_brought_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    before = Ledger(f"sqlite:///{path}")
    tick = before.record_tick("v", start_us=0, end_us=1, created_from_us=None, targets=["f"])
    before.close()
    with sqlite3.connect(path) as database:
        database.execute("DROP TABLE feast_embeddings_erasures")
        for column in ("lane", "source", "ranges"):
            database.execute(f"ALTER TABLE feast_embeddings_ticks DROP COLUMN {column}")
        for index in ("state", "publication"):
            database.execute(f"DROP INDEX feast_embeddings_ticks_by_{index}")
        database.execute("UPDATE feast_embeddings_schema SET version = 1")
    database.close()
    for _ in range(2):
        ledger = Ledger(f"sqlite:///{path}")
        assert ledger.tick("v", tick.number) == tick
        Tombstones(ledger, "k").record(7, 3)
        assert Tombstones(ledger, "k").erased_us(pa.array([7])).tolist() == [3]
        ledger.close()
    with sqlite3.connect(path) as database:
        assert database.execute("SELECT max(version) FROM feast_embeddings_schema").fetchone() == (SCHEMA_VERSION,)
    database.close()


def test_a_behavior_lives_if_it_happened_and_was_written_after_the_erasure(ledger: Ledger, tmp_path: Path) -> None:
    def times(*days: float | None) -> list[int | None]:
        return [None if number is None else T0 + round(number * DAY) for number in days]

    table = rows(
        user=[1, 1, 1, 1, 1, 1, 1, 2],
        item=[1, 2, 3, 4, 5, 6, 7, 8],
        at=times(1, 3, 1, 3, 2, None, None, 1),
        created=times(1, 3, 3, 1, None, 3, None, 1),
    )
    pq.write_table(table, tmp_path / "behaviors.parquet")
    tombstones = Tombstones(ledger, "user_id")
    log = BehaviorLog(str(tmp_path / "behaviors.parquet"), CONTRACT, CleaningRules(), tombstones)
    assert log.living(table).equals(table)
    tombstones.record(1, T0 + 2 * DAY)
    assert log.living(table)["item"].to_pylist() == [2, 6, 8]


def test_histories_and_activity_of_the_past_are_those_of_the_living(tmp_path: Path) -> None:
    repo = build(tmp_path / "repo")
    repo.refresh(1, {1: 1.0})
    repo.tick(1, 2, {1: 1.0, 2: 2.0})
    features = ["history:history_items", "activity:view_7d", "activity:recency_seconds"]
    asked = [(1, day(2.6)), (2, day(2.6)), (1, day(3.9))]
    before = repo.ask(features, asked)
    with simulated(us(3)):
        Tombstones(repo.workspace.ledger, "user_id").record(1, us(3))
    after = repo.ask(features, asked)
    assert items(after) == [None, items(before)[1], None]
    assert np.isnan(after["view_7d"][0]), "of one who was erased nothing is known"
    assert after["view_7d"].tolist()[1:] == [before["view_7d"][1], 0]
    assert np.isnan(after["recency_seconds"][0])
    assert not np.isnan(after["recency_seconds"][2]), "what it bought on day 3.5 is of its new life"

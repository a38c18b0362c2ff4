"""What is pushed reaches the stream, by every way that Feast offers; what is materialized, or undeclared, does not."""

from __future__ import annotations

import asyncio
import warnings
from datetime import timedelta

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from feast import FeatureStore
from repo_fixture import HOUR, MakeRepo, SmallRepo, at, day, moment, rows, tiny_encoder
from ticks_fixture import started

from feast_embeddings.materialize.clock import now_us
from feast_embeddings.materialize.serving import REQUEST_METRICS
from feast_embeddings.materialize.stream.declared import make_worker
from feast_embeddings.materialize.stream.payloads import decode
from feast_embeddings.materialize.stream.redis_streams import RedisStreams, agreed_partitions
from feast_embeddings.materialize.stream.worker import StreamOptions
from feast_embeddings.materialize.upkeep import forget
from feast_embeddings.transformations import contract_of

PUSHED = '), push=str("behaviors"'  # closes the rules of the fixture's declaration


@pytest.fixture
def repo(make_repo: MakeRepo) -> SmallRepo:
    """A repo that declares a push source, before its first job."""
    made = make_repo(rules=PUSHED)
    made.deliver(rows(at=[day(0)]), "first")
    made.apply()
    return made


def frame(count: int = 3) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "user_id": np.arange(1, count + 1),
            "item_id": np.arange(101, 101 + count),
            "behavior_type": ["view"] * (count - 1) + ["purchase"],
            "value": [None] * (count - 1) + [9.5],
            "at": [moment(day(4)) + timedelta(microseconds=number) for number in range(count)],
        }
    )


def streamed(repo: SmallRepo) -> pa.Table:
    """What a worker would find, in the order of users."""
    with repo.redis() as client:
        partitions = range(agreed_partitions(client, repo.project, "behaviors"))
    source = RedisStreams(repo.server.client, repo.project, "behaviors", "user_embedding", tuple(partitions))
    contract = contract_of(repo.store.get_feature_view("behaviors"))
    found = []
    while (delivery := source.next_batch(1000, 0.01)) is not None:
        decoded = decode(delivery.payloads, contract)
        assert decoded.poison == {}
        found.append(decoded.raw)
    return pa.concat_tables(found).sort_by("user") if found else pa.table({"user": []})


def expected(count: int = 3) -> dict[str, list[object]]:
    return {
        "user": list(range(1, count + 1)),
        "item": list(range(101, 101 + count)),
        "event": ["view"] * (count - 1) + ["purchase"],
        "price": [None] * (count - 1) + [9.5],
        "at": [day(4) + number for number in range(count)],
        "id": [None] * count,
    }


def columns(table: pa.Table) -> dict[str, list[object]]:
    return table.set_column(table.column_names.index("at"), "at", table["at"].cast(pa.int64())).to_pydict()


def test_a_push_reaches_the_stream_and_the_online_store(repo: SmallRepo) -> None:
    before = _pushed()
    repo.store.push("behaviors", frame())

    assert columns(streamed(repo)) == expected()
    latest = repo.store.get_online_features(["behaviors:item_id", "behaviors:value"], [{"user_id": 3}]).to_dict()
    assert (latest["item_id"], latest["value"]) == ([103], [9.5])
    assert _pushed() == before + 3


def _pushed() -> float:
    return REQUEST_METRICS.get_sample_value("feast_embeddings_pushed_behaviors_total", {"view": "behaviors"}) or 0


def test_an_asynchronous_push_does_the_same(repo: SmallRepo) -> None:
    async def push() -> None:
        await repo.store.push_async("behaviors", frame())
        await repo.server.close_async()

    asyncio.run(push())
    assert columns(streamed(repo)) == expected()


def test_writing_to_the_view_does_the_same(repo: SmallRepo) -> None:
    repo.store.write_to_online_store("behaviors", frame())
    assert columns(streamed(repo)) == expected()


def test_a_materialization_of_the_view_is_no_push(repo: SmallRepo) -> None:
    FeatureStore(".").materialize(moment(day(-1)), moment(day(1)), ["behaviors"])
    assert streamed(repo).num_rows == 0
    latest = repo.store.get_online_features(["behaviors:item_id"], [{"user_id": 1}]).to_dict()
    assert latest["item_id"] == [101]


def test_without_a_declared_push_nothing_is_appended(make_repo: MakeRepo) -> None:
    repo = make_repo()
    repo.apply()
    repo.store.write_to_online_store("behaviors", frame())
    with repo.redis() as client:
        assert [key for key in client.scan_iter(b"feast-embeddings:*") if repo.project.encode() in key] == []
    assert repo.store.get_online_features(["behaviors:item_id"], [{"user_id": 3}]).to_dict()["item_id"] == [103]


def test_an_erased_entity_is_not_brought_back_by_a_push(repo: SmallRepo) -> None:
    repo.encode_with(tiny_encoder(1))
    with at(day(5)), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        forget(repo.store, "user", "2")
    repo.store.push("behaviors", frame())
    assert streamed(repo)["user"].to_pylist() == [1, 3]


def test_more_rows_than_a_pipeline_call_keep_their_order_per_user(repo: SmallRepo) -> None:
    many = pd.concat([frame(1).assign(item_id=number, at=moment(day(4) + number * HOUR)) for number in range(50)])
    repo.store.push("behaviors", many)
    assert streamed(repo)["item"].to_pylist() == list(range(50))


def test_what_is_pushed_changes_what_is_served(make_repo: MakeRepo) -> None:
    repo = started(make_repo, rules=PUSHED)
    before = repo.vectors().values
    now = now_us()
    repo.store.push("behaviors", frame().assign(at=[moment(now - 1_000_000 + number) for number in range(3)]))

    done = make_worker(repo.store, options=StreamOptions(until_idle_s=0.5)).run()

    assert done.counts["applied"] == 3
    batch = repo.histories()
    assert batch.items[batch.offsets[1:4] - 1].tolist() == [101, 102, 103]
    changed = (repo.vectors().values != before).any(axis=1)
    assert changed[:3].all()
    assert not changed[3:].any()

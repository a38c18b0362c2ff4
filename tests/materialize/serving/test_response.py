"""Responses put together as bytes: equal to what stock Feast puts together message by message."""

from datetime import UTC, datetime, timedelta

import pytest
from feast import RepoConfig, utils
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus, GetOnlineFeaturesResponse
from feast.protos.feast.types.Value_pb2 import FloatList, Int64List, Value
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from online_fixture import embedding

from feast_embeddings.materialize.online import TickStamp
from feast_embeddings.materialize.serving.plan import ViewRead
from feast_embeddings.materialize.serving.response import Request, add_columns, entities_of

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FEATURES = ["first", "second"]
values = st.one_of(
    st.none(),
    st.lists(st.floats(width=32, allow_nan=False), max_size=70).map(lambda v: Value(float_list_val=FloatList(val=v))),
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=40).map(lambda v: Value(int64_list_val=Int64List(val=v))),
)
rows = st.lists(st.none() | st.tuples(values, values, st.integers(1, 2**51)), min_size=1, max_size=8)


def expected(view, stored, row_of, full_names):
    found = []
    for row in stored:
        if row is None:
            found.append((None, None))
        else:
            data = {name: value or Value() for name, value in zip(FEATURES, row, strict=False)}
            found.append((EPOCH + timedelta(microseconds=row[2]), data))
    places = tuple([place for place, row in enumerate(row_of) if row == number] for number in range(len(stored)))
    response = GetOnlineFeaturesResponse()
    utils._populate_response_from_feature_data(
        FEATURES, found, places, response, full_names, view, len(row_of), full_names
    )
    return response


def reply(row):
    if row is None:
        return [None] * 3
    return [
        *(value and value.SerializeToString() for value in row[:2]),
        TickStamp(1, row[2], row[2]).to_bytes(),
    ]


def added(stored, expired, row_of, names=False):
    """A response to which the columns of stored replies were added."""
    response = GetOnlineFeaturesResponse()
    view = ViewRead(embedding("users"), FEATURES, [], replies=stored)
    add_columns(Request({}, {}, response, names, names), view, expired, row_of)
    return response


@given(rows.flatmap(lambda r: st.tuples(st.just(r), st.lists(st.integers(0, len(r) - 1), max_size=12))), st.booleans())
def test_a_response_is_the_one_that_stock_feast_makes(case, full_names):
    # given rows, some of them missing, asked for in any order, some repeatedly or not at all
    stored, row_of = case

    # when their columns are added
    response = added([reply(row) for row in stored], [], row_of, full_names)

    # then nothing tells the response from a stock one
    assert response == expected(embedding("users"), stored, row_of, full_names)


def test_a_row_past_the_ttl_keeps_its_time_and_loses_its_values():
    stored = [(Value(float_list_val=FloatList(val=[1.0])), None, 7)] * 2
    response = added([reply(row) for row in stored], [1], [1, 0])
    assert list(response.results[0].statuses) == [FieldStatus.OUTSIDE_MAX_AGE, FieldStatus.PRESENT]
    assert response.results[0].values[0] == Value()
    assert response.results[0].event_timestamps[0].ToMicroseconds() == 7


def test_bytes_that_are_no_value_are_refused():
    broken = [[b"\xff\xff", None, TickStamp(1, 1, 1).to_bytes()]]
    with pytest.raises(DecodeError):
        added(broken, [], [0])


ids = st.one_of(
    st.lists(st.integers(-(2**63), 2**63 - 1).map(lambda number: Value(int64_val=number)), min_size=1, max_size=9),
    st.lists(st.text(max_size=9).map(lambda text: Value(string_val=text)), min_size=1, max_size=9),
    st.lists(st.integers(-(2**31), 2**31 - 1).map(lambda number: Value(int32_val=number)), min_size=1, max_size=9),
)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("config")
    online = {"type": "redis", "connection_string": "127.0.0.1:1"}
    return RepoConfig(project="shop", provider="local", registry=str(folder / "r.db"), online_store=online)


@given(asked=ids)
def test_entities_are_those_of_stock_feast(config, asked):
    # given ids of any type, some repeatedly
    table, join_keys = embedding("users"), {"user": "user_id"}
    table.entities = ["user"]

    # when the entities are found
    entities = entities_of(config, table, {"user_id": asked}, join_keys)

    # then each row of the request has the key that stock Feast gives it
    unique, places, length = utils._get_unique_entities(table, {"user_id": asked}, join_keys)
    protos = utils._get_entity_key_protos(unique)
    stock = {
        place: serialize_entity_key(key, 3) + b"shop"
        for key, where in zip(protos, places, strict=True)
        for place in where
    }
    found = [bytes(key) for key in entities.redis_keys]
    assert [found[row] for row in entities.row_of] == [stock[place] for place in range(length)]
    assert len(found) == len(unique)
    assert sorted(place for where in entities.places() for place in where) == list(range(length))

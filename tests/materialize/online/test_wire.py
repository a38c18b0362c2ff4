"""Bytes on the wire are those of stock Feast, in both directions."""

import numpy as np
import pytest
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.infra.online_stores.helpers import _mmh3, _redis_key
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import (
    FloatList,
    Int32List,
    Int64List,
    StringList,
    Value,
)
from hypothesis import given
from hypothesis import strategies as st

from feast_embeddings.materialize.online import keys, wire
from feast_embeddings.models.errors import OnlineStoreError, SpaceError

names = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=20)
int64s = st.integers(-(2**63), 2**63 - 1)
int32s = st.integers(-(2**31), 2**31 - 1)
float32s = st.floats(width=32)


def ragged(values):
    return st.lists(st.lists(values, max_size=40), min_size=1, max_size=8)


def flat(rows, dtype):
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    return np.array([value for row in rows for value in row], dtype), offsets


@given(project=names, join_key=names, ids=st.lists(int64s, max_size=5))
def test_integer_entity_keys_are_those_of_stock_feast(project, join_key, ids):
    protos = [EntityKey(join_keys=[join_key], entity_values=[Value(int64_val=i)]) for i in ids]
    assert keys.entity_keys(project, join_key, np.array(ids, np.int64)) == [
        _redis_key(project, proto) for proto in protos
    ]


@given(project=names, join_key=names, ids=st.lists(st.text(st.characters(exclude_categories=("Cs",))), max_size=5))
def test_string_entity_keys_are_those_of_stock_feast(project, join_key, ids):
    protos = [EntityKey(join_keys=[join_key], entity_values=[Value(string_val=i)]) for i in ids]
    assert keys.entity_keys(project, join_key, np.array(ids, dtype=object)) == [
        serialize_entity_key(proto, 3) + project.encode() for proto in protos
    ]


@given(project=names, other=names, join_key=names, user=int64s)
def test_a_key_belongs_to_exactly_its_project(project, other, join_key, user):
    (key,) = keys.entity_keys(project, join_key, np.array([user]))
    assert keys.is_entity_key(key, project, [join_key])
    assert keys.is_entity_key(key, other, [join_key]) == (other == project)
    assert not keys.is_entity_key(key, project, [join_key + "x"])


def test_a_suffix_does_not_make_a_key_belong():
    # given a key of project xa, and one whose string id ends like a project
    (long,) = keys.entity_keys("xa", "user_id", np.array([1]))
    (text,) = keys.entity_keys("b", "user_id", np.array(["ida"], dtype=object))

    # then neither is one of project a
    assert not keys.is_entity_key(long, "a", ["user_id"])
    assert not keys.is_entity_key(text, "ab", ["user_id"])
    assert not keys.is_entity_key(long[:20], "a", ["user_id"])


def test_feature_fields_are_those_of_stock_feast():
    assert keys.feature_field("view@fill", "embedding") == _mmh3("view@fill:embedding")


@pytest.mark.parametrize(
    ("ids", "expected"),
    [([1, 2], [1, 2]), (np.array([3], np.int32), [3]), (["a", "b"], ["a", "b"]), (np.array(["é"]), ["é"]), ([], [])],
)
def test_ids_become_int64_or_strings(ids, expected):
    array = keys.entity_ids(ids)
    assert array.dtype in (np.int64, object)
    assert array.tolist() == expected


@pytest.mark.parametrize("ids", [[1.5], [None, "a"], [b"a"]])
def test_ids_of_another_kind_are_refused(ids):
    with pytest.raises(TypeError, match="int64 or strings"):
        keys.entity_ids(ids)


@given(st.integers(1, 300).flatmap(lambda d: st.tuples(st.just(d), st.integers(0, 2**32 - 1))))
def test_vectors_are_stock_float_lists(case):
    # given any bits as floats, NaN included
    dim, seed = case
    matrix = np.random.default_rng(seed).integers(0, 256, (3, 4 * dim), np.uint8).view("<f4")

    # when encoded
    encoded = wire.encode_vectors(matrix)

    # then stock Feast decodes them, writes the same bytes, and they come back bit for bit
    for row, value in zip(matrix, encoded, strict=True):
        stock = Value.FromString(value)
        with np.errstate(invalid="ignore"):
            assert np.array_equal(np.array(stock.float_list_val.val, np.float32), row, equal_nan=True)
    decoded, found = wire.decode_vectors(encoded, dim, "view")
    assert decoded.tobytes() == matrix.tobytes()
    assert found.all()


@given(ragged(float32s))
def test_stock_float_lists_are_read(rows):
    width = max(map(len, rows)) + 1
    padded = [row + [0.0] * (width - len(row)) for row in rows]
    stock = [Value(float_list_val=FloatList(val=row)).SerializeToString() for row in padded]
    decoded, found = wire.decode_vectors([*stock, None, b""], width, "view")
    assert np.array_equal(decoded[:-2], np.array(padded, np.float32), equal_nan=True)
    assert found.tolist() == [True] * len(rows) + [False, False]
    assert not decoded[-2:].any()
    assert wire.encode_vectors(np.array(padded, np.float32)) == stock


def test_a_vector_of_another_length_names_the_view():
    encoded = wire.encode_vectors(np.zeros((2, 4), np.float32))
    with pytest.raises(SpaceError, match="'user_embedding' holds a vector of length 4 where 8 is expected"):
        wire.decode_vectors(encoded, 8, "user_embedding")


@pytest.mark.parametrize("value", [b"\xff", Value(int64_val=3).SerializeToString()])
def test_a_value_of_another_kind_names_the_view(value):
    with pytest.raises(OnlineStoreError, match="A value of feature view 'user_embedding'"):
        wire.decode_vectors([value], 4, "user_embedding")


def test_a_longer_header_is_valid_protobuf():
    # given a float list whose lengths are written with padded varints, as another writer may do
    floats = np.array([[1.5, -2.0]], np.float32)
    value = b"\x82\x01\x8b\x00" + b"\x0a\x88\x00" + floats.tobytes()
    assert list(Value.FromString(value).float_list_val.val) == [1.5, -2.0]

    # then it is read all the same
    assert wire.decode_vectors([value], 2, "view")[0].tolist() == floats.tolist()
    assert wire.decode_floats([value], "view")[0].tolist() == [1.5, -2.0]


@given(ragged(int64s))
def test_int64_lists_equal_stock_both_ways(rows):
    values, offsets = flat(rows, np.int64)
    stock = [Value(int64_list_val=Int64List(val=row)).SerializeToString() for row in rows]
    assert wire.encode_integers(values, offsets) == stock
    decoded, bounds = wire.decode_integers(stock, "int64_list_val", "view")
    assert decoded.tolist() == values.tolist()
    assert bounds.tolist() == offsets.tolist()


@given(ragged(int32s))
def test_int32_lists_equal_stock_both_ways(rows):
    values, offsets = flat(rows, np.int32)
    stock = [Value(int32_list_val=Int32List(val=row)).SerializeToString() for row in rows]
    assert wire.encode_integers(values, offsets) == stock
    decoded, bounds = wire.decode_integers(stock, "int32_list_val", "view")
    assert decoded.tolist() == values.tolist()
    assert bounds.tolist() == offsets.tolist()


@given(ragged(float32s))
def test_float_lists_equal_stock_both_ways(rows):
    values, offsets = flat(rows, np.float32)
    stock = [Value(float_list_val=FloatList(val=row)).SerializeToString() for row in rows]
    assert wire.encode_floats(values, offsets) == stock
    decoded, bounds = wire.decode_floats(stock, "view")
    assert np.array_equal(decoded, values, equal_nan=True)
    assert bounds.tolist() == offsets.tolist()


@given(ragged(st.text(st.characters(exclude_categories=("Cs",)), max_size=12)))
def test_string_lists_equal_stock_both_ways(rows):
    values, offsets = flat(rows, object)
    stock = [Value(string_list_val=StringList(val=row)).SerializeToString() for row in rows]
    assert wire.encode_strings(values, offsets) == stock
    decoded, bounds = wire.decode_strings(stock, "view")
    assert decoded.tolist() == values.tolist()
    assert bounds.tolist() == offsets.tolist()


def test_missing_lists_are_empty_rows():
    value = Value(int64_list_val=Int64List(val=[7, 8])).SerializeToString()
    decoded, offsets = wire.decode_integers([None, value, None], "int64_list_val", "view")
    assert (decoded.tolist(), offsets.tolist()) == ([7, 8], [0, 0, 2, 2])
    assert wire.decode_floats([None], "view")[1].tolist() == [0, 0]
    assert wire.decode_strings([None], "view")[1].tolist() == [0, 0]

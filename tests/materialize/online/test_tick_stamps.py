"""Stamps: stock Feast reads the event time, this package the tick as well, and all are of one length."""

import numpy as np
from feast.infra.online_stores.redis import RedisOnlineStore
from feast.protos.feast.types.Value_pb2 import Value
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from feast_embeddings.materialize.online import tick_stamps

since_1970 = st.integers(0, 4 * 10**15)
times = st.one_of(since_1970, st.integers(-(10**15), -1))
ticks = st.integers(0, 2**53 - 1)


def stock(us):
    stamp = Timestamp()
    stamp.FromMicroseconds(us)
    return stamp


@given(times, ticks, times)
def test_a_stamp_is_a_stock_timestamp_and_a_tick(us, tick, end_us):
    value = tick_stamps.encode(us, tick, end_us)
    assert Timestamp.FromString(value).ToMicroseconds() == us
    assert Timestamp.FromString(tick_stamps.plain(value)) == stock(us)
    assert [column.tolist() for column in tick_stamps.decode([value, None])] == [[us, 0], [tick, -1], [end_us, 0]]
    assert tick_stamps.event_times([None, value]).tolist() == [0, us]


@given(times)
def test_a_stock_timestamp_is_a_stamp_without_a_tick(us):
    value = stock(us).SerializeToString()
    assert tick_stamps.plain(value) == value
    assert [column.tolist() for column in tick_stamps.decode([value])] == [[us], [-1], [0]]


@given(st.lists(st.tuples(since_1970, ticks), max_size=9))
def test_stamps_of_one_length_are_decoded_as_a_matrix(rows):
    values = [tick_stamps.encode(us, tick, us + 1) for us, tick in rows]
    matrix = np.frombuffer(b"".join(values), np.uint8).reshape(len(rows), tick_stamps.LENGTH)
    assert tick_stamps.event_times_of_rows(matrix).tolist() == [us for us, _ in rows]


def test_rows_of_that_length_that_are_laid_out_otherwise_are_decoded_all_the_same():
    # given timestamps as long as a stamp, with seconds after nanoseconds and another unknown field
    value = b"\x10\x00\x08\x07" + b"\x7a" + bytes([tick_stamps.LENGTH - 6]) + bytes(tick_stamps.LENGTH - 6)
    matrix = np.frombuffer(value * 2, np.uint8).reshape(2, tick_stamps.LENGTH)
    assert tick_stamps.event_times_of_rows(matrix).tolist() == [7_000_000] * 2


def test_stock_feast_reads_the_event_time_of_a_stamp():
    stored = [Value(int64_val=1).SerializeToString(), tick_stamps.encode(1_700_000_000_123_456, 5, 6)]
    when, values = RedisOnlineStore()._get_features_for_entity(stored, "users", ["number", "_ts:users"])
    assert (when.timestamp(), values) == (1_700_000_000.123456, {"number": Value(int64_val=1)})

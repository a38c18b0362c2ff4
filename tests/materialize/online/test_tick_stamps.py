"""Stamps: stock Feast reads the event time, this package the tick as well."""

from feast.infra.online_stores.redis import RedisOnlineStore
from feast.protos.feast.types.Value_pb2 import Value
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from feast_embeddings.materialize.online.guarded_write import TickStamp, decode_stamps, event_times, stock_timestamp

times = st.integers(-(10**15), 4 * 10**15)
ticks = st.integers(0, 2**53 - 1)


def stock(us):
    stamp = Timestamp()
    stamp.FromMicroseconds(us)
    return stamp


@given(times, ticks, times)
def test_a_stamp_is_a_stock_timestamp_and_a_tick(us, tick, end_us):
    value = TickStamp(tick, end_us, us).to_bytes()
    assert Timestamp.FromString(value).ToMicroseconds() == us
    assert Timestamp.FromString(stock_timestamp(value)) == stock(us)
    assert [column.tolist() for column in decode_stamps([value, None])] == [
        [us, 0],
        [tick, -1],
        [end_us, 0],
    ]
    assert event_times([None, value]).tolist() == [0, us]


@given(times)
def test_a_stock_timestamp_is_a_stamp_without_a_tick(us):
    value = stock(us).SerializeToString()
    assert stock_timestamp(value) == value
    assert [column.tolist() for column in decode_stamps([value])] == [[us], [-1], [0]]


def test_numbers_that_are_padded_are_read_all_the_same():
    value = b"\x08\x87\x80\x00\x10\x81\x80\x00" + TickStamp(5, 6, 0).to_bytes()
    assert [column.tolist() for column in decode_stamps([value])] == [[7_000_000], [5], [6]]
    assert Timestamp.FromString(stock_timestamp(value)) == Timestamp(seconds=7, nanos=1)


def test_stock_feast_reads_the_event_time_of_a_stamp():
    stored = [Value(int64_val=1).SerializeToString(), TickStamp(5, 6, 1_700_000_000_123_456).to_bytes()]
    when, values = RedisOnlineStore()._get_features_for_entity(stored, "users", ["number", "_ts:users"])
    assert (when.timestamp(), values) == (1_700_000_000.123456, {"number": Value(int64_val=1)})

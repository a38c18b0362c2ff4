"""Many reads in one round trip answer as redis-py does, refusals and connections of another kind included."""

import numpy as np
import pytest
import redis
from redis._parsers import _RESP2Parser

from feast_embeddings.materialize.online.commands import PackedReads, queue_hmgets, reads

KEYS = [b"row-%03d" % number for number in range(300)]
FIELDS = [b"a", b"b\r\n", b"missing"]


@pytest.fixture
def rows(redis_client):
    for number, key in enumerate(KEYS):
        if number % 3:
            redis_client.hset(key, mapping={b"a": b"x" * number * 50, b"b\r\n": b"$5\r\n"})
    redis_client.set("name", "value")
    return redis_client


def ask(pipe, keys=KEYS):
    queue_hmgets(pipe, keys, FIELDS)
    pipe.get("name")
    pipe.hmget(KEYS[4], FIELDS[:1])
    pipe.get("nothing")
    return pipe.execute()


def test_replies_are_those_of_a_pipeline(rows):
    expected = ask(rows.pipeline(transaction=False))
    matrix = np.frombuffer(b"".join(KEYS), np.uint8).reshape(len(KEYS), -1)
    assert isinstance(reads(rows), PackedReads)
    assert ask(reads(rows)) == ask(reads(rows), matrix) == expected
    assert reads(rows).execute() == []


def test_a_connection_without_hiredis_is_read_as_redis_py_reads_it(rows):
    pool = rows.connection_pool
    options = {**pool.connection_kwargs, "parser_class": _RESP2Parser}
    with redis.Redis(connection_pool=redis.ConnectionPool(pool.connection_class, **options)) as client:
        assert ask(reads(client)) == ask(rows.pipeline(transaction=False))
        client.connection_pool.disconnect()


@pytest.mark.parametrize("number", [0, 150])
def test_a_refused_read_is_raised_and_the_next_ones_are_right(rows, number):
    # given a key of another type among those read
    rows.delete(KEYS[number])
    rows.set(KEYS[number], "in the way")
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        ask(reads(rows))

    # when it is gone, then no reply of the refused read is left on the way
    rows.delete(KEYS[number])
    assert ask(reads(rows)) == ask(rows.pipeline(transaction=False))

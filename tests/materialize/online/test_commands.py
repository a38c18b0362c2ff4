"""Many reads in one round trip answer as redis-py does, refusals and connections of another kind included."""

import numpy as np
import pytest
import redis
from servers_fixture import BINARIES, running

from feast_embeddings.materialize.online.commands import PackedReads, queue_hmgets, reads

KEYS = [b"row-%03d" % number for number in range(300)]
FIELDS = [b"a", b"b\r\n", b"missing"]


def fill(client):
    for number, key in enumerate(KEYS):
        if number % 3:
            client.hset(key, mapping={b"a": b"x" * number * 50, b"b\r\n": b"$5\r\n"})
    client.set("name", "value")
    return client


@pytest.fixture
def rows(redis_client):
    return fill(redis_client)


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


def test_a_connection_of_another_protocol_is_read_as_redis_py_reads_it(tmp_path):
    with running(BINARIES["valkey"], tmp_path) as server, redis.Redis(port=server.port, protocol=3) as client:
        fill(client)
        assert ask(reads(client)) == ask(client.pipeline(transaction=False))


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

"""Replies read as a matrix are those that redis-py reads, wherever the framing breaks and however the bytes arrive."""

import socket
import threading

import numpy as np
import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feast_embeddings.materialize.online.commands import queue_hmgets
from feast_embeddings.materialize.online.framed import FramedReads, FramedRows, Replies

FIELDS = [b"value", b"stamp"]
KEYS = [b"row-%04d" % number for number in range(1500)]


def ask(client, keys=KEYS, kind=None):
    pipe = kind(client) if kind else client.pipeline(transaction=False)
    queue_hmgets(pipe, keys, FIELDS)
    pipe.get("manifest")
    return pipe.execute()


def store(client, keys=KEYS, size=100):
    with client.pipeline(transaction=False) as pipe:
        for number, key in enumerate(keys):
            pipe.hset(
                key, mapping={b"value": np.full(size, number % 251, np.uint8).tobytes(), b"stamp": b"\r\n$-1\r\n*"}
            )
        pipe.set("manifest", "live")
        pipe.execute()
    return client


@pytest.mark.parametrize(("rows", "size"), [(1, 1), (1, 100), (3, 70_000), (100, 100), (1500, 260), (1500, 1)])
def test_rows_of_one_framing_come_as_a_matrix(redis_client, rows, size):
    keys = KEYS[:rows]
    store(redis_client, keys, size)
    expected = ask(redis_client, keys)
    found = ask(redis_client, keys, FramedReads)
    if size < 1 << 16:
        assert isinstance(found, Replies)
        assert found.rows.column(0).tobytes() == b"".join(value for value, _ in expected[:-1])
    assert [*found[:rows], *found[rows:]] == expected


def _gone(client, key):
    client.delete(key)


def _shorter(client, key):
    client.hset(key, b"value", b"short")


def _empty(client, key):
    client.hset(key, b"value", b"")


def _without_stamp(client, key):
    client.hdel(key, b"stamp")


@pytest.mark.parametrize("change", [_gone, _shorter, _empty, _without_stamp])
@pytest.mark.parametrize("place", [0, 1, 700, 1498, 1499])
def test_where_the_framing_breaks_every_reply_is_right(redis_client, change, place):
    store(redis_client)
    change(redis_client, KEYS[place])
    assert ask(redis_client, kind=FramedReads) == ask(redis_client)


@pytest.mark.parametrize("place", [0, 1, 1499])
def test_a_refusal_is_raised_and_nothing_of_it_is_left_on_the_way(redis_client, place):
    store(redis_client)
    redis_client.delete(KEYS[place])
    redis_client.set(KEYS[place], "in the way")
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        ask(redis_client, kind=FramedReads)
    redis_client.delete(KEYS[place])
    assert ask(redis_client, kind=FramedReads) == ask(redis_client)


def test_no_row_at_all_is_read_as_ever(redis_client):
    redis_client.delete(*KEYS)
    redis_client.set("manifest", "live")
    assert ask(redis_client, [], FramedReads) == [b"live"]
    assert ask(redis_client, KEYS[:1], FramedReads) == [[None, None], b"live"]


def bulk(value):
    return b"$-1\r\n" if value is None else b"$%d\r\n%b\r\n" % (len(value), value)


values = st.one_of(
    st.none(), st.binary(max_size=3), st.sampled_from([b"ab", b"*2\r\n$2\r\n", b"$-1\r\n", b"\r\n$2\r\nab"])
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(values, values), min_size=1, max_size=6),
    st.lists(st.integers(1, 9), min_size=1, max_size=9),
    st.booleans(),
)
def test_however_the_bytes_are_cut_the_replies_are_those_sent(rows, cuts, alike):
    # given a server that sends replies in pieces of a few bytes, and then nothing more
    rows = rows[:1] * len(rows) if alike else rows
    answer = b"".join(b"*2\r\n" + bulk(first) + bulk(second) for first, second in rows) + bulk(b"live")
    ours, theirs = socket.socketpair()

    def serve():
        theirs.recv(1 << 16)
        place, turn = 0, 0
        while place < len(answer):
            theirs.sendall(answer[place : place + cuts[turn % len(cuts)]])
            place, turn = place + cuts[turn % len(cuts)], turn + 1

    # when they are read
    connection = redis.Connection(socket_timeout=5)
    connection._connect = lambda: ours
    connection.on_connect_check_health = lambda **_: connection._parser.on_connect(connection)
    client = redis.Redis()
    client.connection_pool.get_connection = lambda: connection
    client.connection_pool.release = lambda _: None
    server = threading.Thread(target=serve)
    server.start()
    with ours, theirs:
        ours.settimeout(5)
        connection.connect()
        found = ask(client, KEYS[: len(rows)], FramedReads)
        server.join()

    # then they are what was sent
    assert [list(reply) for reply in found[: len(rows)]] == [list(row) for row in rows]
    assert found[len(rows) :] == [b"live"]


def test_a_connection_that_closes_or_stalls_midway_is_an_error(redis_client):
    store(redis_client)
    for stall in (False, True):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            theirs.sendall(b"*2\r\n$5\r\n")
            ours.settimeout(0.05)
            if not stall:
                theirs.shutdown(socket.SHUT_WR)
            connection = redis_client.connection_pool.make_connection()
            connection.connect()
            connection._sock.close()
            connection._sock = ours
            reads = FramedReads(redis_client)
            reads.hmget_each(KEYS[:2], FIELDS)
            with pytest.raises(redis.TimeoutError if stall else redis.ConnectionError):
                reads._receive(connection)


def test_rows_are_a_sequence():
    rows = FramedRows(np.zeros((0, 4), np.uint8), None)
    assert (len(rows), list(rows)) == (0, [])

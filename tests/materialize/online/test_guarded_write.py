"""Calls of one round trip: whatever happens on the way, each row is written, and the newest tick stays."""

from itertools import count

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from online_fixture import another_process

from feast_embeddings.materialize.online import guarded_write, keys
from feast_embeddings.materialize.online.fills import read_fill, write_fill
from feast_embeddings.materialize.online.guarded_write import TickStamp
from feast_embeddings.materialize.online.keys import FillPlace
from feast_embeddings.materialize.online.server import OnlineServer
from feast_embeddings.models.errors import OnlineStoreError

START = 1_700_000_000_000_000
ROWS = 40
IDS = np.arange(ROWS)
MATRIX = np.random.default_rng(0).normal(size=(ROWS, 4)).astype(np.float32)


PLACE = FillPlace("users", "user_id", "f1", "embedding")


@pytest.fixture
def store(make_store):
    return make_store()


@pytest.fixture(params=[1, 2], ids=["one row a call", "one call a chunk"])
def server(request, store, monkeypatch):
    monkeypatch.setattr(guarded_write, "CALL_ROWS", request.param)
    server = OnlineServer.of(store.config)
    server.chunk_rows = 2
    return server


def write(server, on_chunk=None, ids=IDS):
    return write_fill(server, PLACE, TickStamp(1, START, START), ids, MATRIX, on_chunk=on_chunk)


def read(server, ids=IDS):
    return read_fill(server, PLACE, 4, ids)


@pytest.mark.parametrize("nth", [1, 4, 12])
def test_what_was_sent_before_a_stop_is_written_and_nothing_else(server, nth):
    # given a caller that stops the write after some calls
    def stop(rows):
        if rows == 2 * nth:
            raise InterruptedError

    # when the write is stopped
    with pytest.raises(InterruptedError):
        write(server, stop)

    # then the rows sent are there, the connection still answers, and the rest can be written
    assert read(server).found.tolist() == [True] * 2 * nth + [False] * (ROWS - 2 * nth)
    assert write(server) == ROWS - 2 * nth
    assert np.array_equal(read(server).vectors, MATRIX)


def test_a_script_forgotten_on_the_way_is_told_again(server, redis_client):
    written = write(server, lambda rows: redis_client.script_flush() if rows in (6, 20) else None)
    assert written == ROWS
    assert np.array_equal(read(server).vectors, MATRIX)


def test_a_connection_lost_on_the_way_is_opened_anew(server, redis_client):
    # given a server that closes all connections but one, while calls are on the way
    def cut(rows):
        if rows == 10:
            redis_client.client_kill_filter(_type="normal", skipme=True)

    # when rows are written
    write(server, cut)

    # then all are there
    assert np.array_equal(read(server).vectors, MATRIX)


def test_a_refusal_on_the_way_is_raised_and_leaves_the_connection_usable(server, redis_client):
    # given a key of another type in the way
    (key,) = keys.entity_keys("shop", "user_id", IDS[10:11])
    redis_client.set(key, "in the way")

    # when rows are written, then it is an error, and the other rows can still be written
    with pytest.raises(OnlineStoreError, match="refused a command"):
        write(server)
    redis_client.delete(key)
    write(server)
    assert np.array_equal(read(server).vectors, MATRIX)


def test_ids_of_any_length_are_written(server):
    ids = np.array([f"{'ü' * (number % 7)}{number}" for number in range(ROWS)], dtype=object)
    server.chunk_rows = 7
    assert write(server, ids=ids) == ROWS
    assert np.array_equal(read(server, ids).vectors, MATRIX)


@pytest.fixture
def workers(store):
    """Three processes that write to one server, a few rows at a time."""
    found = [another_process(store) for _ in range(3)]
    for worker in found:
        worker.chunk_rows = 2
    return found


fills = count()


def write_tick(worker, tick, ids, place=PLACE, on_chunk=None):
    values = np.full((len(ids), 4), tick, np.float32)
    return write_fill(worker, place, TickStamp(tick, START + tick, START), ids, values, on_chunk=on_chunk)


@pytest.mark.parametrize("nth", [1, 2, 3, 9])
def test_a_writer_that_sleeps_while_a_newer_tick_is_written_changes_nothing_of_it(workers, nth):
    # given a writer that is stopped after some rows, and wakes when another process has written newer ones
    def sleep(rows):
        if rows == 2 * nth:
            assert write_tick(workers[1], 9, IDS[5:25]) == 20

    written = write_tick(workers[0], 5, IDS, on_chunk=sleep)

    # then the newer rows stand, the others are those of the sleeper, and each was counted once
    rows = read(workers[2])
    assert rows.tick.tolist() == [5] * 5 + [9] * 20 + [5] * 15
    assert np.array_equal(rows.vectors[:, 0], rows.tick)
    assert written == len({*range(2 * nth), *range(5), *range(25, ROWS)})


steps = st.lists(
    st.tuples(st.integers(0, 2), st.integers(1, 4), st.sets(st.integers(0, ROWS - 1), min_size=1), st.booleans()),
    min_size=1,
    max_size=5,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps, st.integers(1, 4))
def test_whoever_interrupts_whom_the_newest_tick_of_each_row_stands(workers, plan, size):
    # given writes of several processes, each of which begins in the middle of the one before
    place = FillPlace("users", "user_id", f"f{next(fills)}", "embedding")

    def run(left):
        if left:
            worker, tick, chosen, ascending = left[0]
            waiting = iter([left[1:]])
            ids = np.array(sorted(chosen, reverse=not ascending))
            workers[worker].chunk_rows = size
            write_tick(workers[worker], tick, ids, place, lambda _: run(next(waiting, [])))

    run(plan)

    # then each row is that of its newest tick
    newest = [max((tick for _, tick, chosen, _ in plan if row in chosen), default=-1) for row in range(ROWS)]
    rows = read_fill(workers[0], place, 4, IDS)
    assert rows.tick.tolist() == newest
    assert np.array_equal(rows.vectors[:, 0], np.maximum(newest, 0))

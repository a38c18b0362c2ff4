"""A fill that one writer has begun alone is written without comparing ticks, and no row is ever overwritten by that."""

from itertools import count

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feast_embeddings.materialize.online import fills as online
from feast_embeddings.materialize.online import keys

START = 1_700_000_000_000_000
ROWS = 30
fills = count()
IDS = np.arange(ROWS)


def vectors(number, rows=ROWS):
    return np.full((rows, 3), number, np.float32)


@pytest.fixture
def repos(make_store):
    """Three workers on one server."""
    stores = [make_store() for _ in range(3)]
    return [(store._get_provider().online_store, store.config) for store in stores]


def write(repo, tick, ids=IDS, *, number=None, fill="f", on_chunk=None, chunk_rows=2):
    values = vectors(tick if number is None else number, len(ids))
    where = ("users", "user_id", fill, "embedding", tick, START + tick, START)
    return online.write_fill(*repo, *where, ids, values, chunk_rows, on_chunk)


def read(repo, fill="f", ids=IDS):
    rows = online.read_fill(*repo, "users", "user_id", fill, "embedding", 3, ids)
    assert np.array_equal(rows.found, rows.tick >= 0)
    return rows


def transactions(client):
    return client.info("commandstats").get("cmdstat_exec", {"calls": 0})["calls"]


def test_a_new_fill_is_written_in_transactions_and_a_second_writer_ends_that(repos, redis_client):
    # given a fill that is written in parts, ids ascending
    before = transactions(redis_client)
    assert write(repos[0], 5, IDS[:10]) == 10
    assert write(repos[0], 5, IDS[10:20]) == 10
    begun = transactions(redis_client)
    assert begun > before

    # when another worker writes, then each of both compares ticks again
    assert write(repos[1], 6, IDS[:4]) == 4
    assert write(repos[0], 5, IDS[20:]) == 10
    assert write(repos[0], 7, IDS[:2]) == 2
    assert transactions(redis_client) == begun
    assert read(repos[2]).tick.tolist() == [7, 7, 6, 6] + [5] * 26


@pytest.mark.parametrize("nth", [1, 2, 3, 9])
def test_a_writer_that_sleeps_while_a_newer_tick_is_written_changes_nothing_of_it(repos, nth):
    # given a writer that is stopped after some rows, and wakes when another worker has written newer ones
    def sleep(rows):
        if rows == 2 * nth:
            assert write(repos[1], 9, IDS[5:25]) == 20

    written = write(repos[0], 5, on_chunk=sleep)

    # then the newer rows stand, the others are those of the sleeper, and each was counted once
    rows = read(repos[2])
    assert rows.tick.tolist() == [5] * 5 + [9] * 20 + [5] * 5
    assert np.array_equal(rows.vectors[:, 0], rows.tick)
    assert written == len(set(range(2 * nth)) | {*range(5), *range(25, 30)})


@pytest.mark.parametrize("again", [IDS, IDS[::-1], IDS[7:12], IDS[-1:]])
def test_a_row_of_the_same_tick_is_never_written_twice(repos, again):
    assert write(repos[0], 5) == ROWS
    for repo in repos[:2]:
        assert write(repo, 5, again, number=1) == 0
    assert (read(repos[2]).vectors == 5).all()


def test_a_stopped_write_is_finished_by_whoever_takes_it_up(repos):
    def stop(rows):
        if rows == 8:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        write(repos[0], 5, on_chunk=stop)
    assert (read(repos[2]).tick >= 0).sum() == 8
    assert write(repos[0], 5, number=1) == ROWS - 8
    assert read(repos[2]).vectors[:, 0].tolist() == [5] * 8 + [1] * 22


def test_the_first_rows_tell_that_a_fill_is_not_new_where_the_mark_is_lost(repos, redis_client):
    # given a fill whose writer is not known any more
    write(repos[0], 5)
    redis_client.delete(keys.writer_key("shop", "users@f"))

    # when an older tick comes, then nothing changes
    assert write(repos[1], 4) == 0
    assert write(repos[1], 4, IDS[20:]) == 0
    assert (read(repos[2]).tick == 5).all()


def test_a_mark_lost_on_the_way_costs_nothing_but_time(repos, redis_client):
    def lose(rows):
        if rows == 8:
            redis_client.flushall()

    write(repos[0], 5, on_chunk=lose)
    assert (read(repos[2]).tick[10:] == 5).all()
    assert redis_client.hget(keys.writer_key("shop", "users@f"), "by") is None


def test_string_ids_and_every_connection_without_a_watch(repos, redis_client):
    ids = np.array(sorted(f"{'ü' * (number % 5)}{number}" for number in range(ROWS)), dtype=object)
    assert write(repos[0], 5, ids) == ROWS
    assert (read(repos[2], ids=ids).tick == 5).all()

    # a watch left behind would let a later transaction of the same connection fail
    with repos[0][0].redis(repos[0][1]) as client:
        redis_client.hset(keys.writer_key("shop", "users@f"), "by", "other")
        for _ in range(4):
            assert client.pipeline(transaction=True).ping().execute() == [True]


def test_a_removed_fill_leaves_no_mark(repos, redis_client):
    write(repos[0], 5)
    online.remove_fill(*repos[0], "users", "user_id", "f", ["embedding"])
    assert redis_client.keys("*writer*") == []


steps = st.lists(
    st.tuples(st.integers(0, 2), st.integers(1, 4), st.sets(st.integers(0, ROWS - 1), min_size=1), st.booleans()),
    min_size=1,
    max_size=5,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps, st.integers(1, 4))
def test_whoever_interrupts_whom_the_newest_tick_of_each_row_stands(repos, plan, size):
    # given writes of several workers, each of which begins in the middle of the one before
    fill = f"f{next(fills)}"

    def run(left):
        if left:
            worker, tick, chosen, ascending = left[0]
            ids = np.array(sorted(chosen, reverse=not ascending))
            waiting = iter([left[1:]])
            write(repos[worker], tick, ids, fill=fill, chunk_rows=size, on_chunk=lambda _: run(next(waiting, [])))

    run(plan)

    # then each row is that of its newest tick
    newest = [max((tick for _, tick, chosen, _ in plan if row in chosen), default=-1) for row in range(ROWS)]
    rows = read(repos[0], fill)
    assert rows.tick.tolist() == newest
    assert np.array_equal(rows.vectors[:, 0], np.maximum(newest, 0))

"""Calls sent ahead of their replies: whatever happens on the way, each row is written, and the newest tick stays."""

import numpy as np
import pytest

from feast_embeddings.materialize.online import commands, keys
from feast_embeddings.materialize.online import fills as online
from feast_embeddings.materialize.online.commands import bulk
from feast_embeddings.materialize.online.script_calls import IN_FLIGHT
from feast_embeddings.models.errors import OnlineStoreError

START = 1_700_000_000_000_000
ROWS = 40
IDS = np.arange(ROWS)
MATRIX = np.random.default_rng(0).normal(size=(ROWS, 4)).astype(np.float32)


@pytest.fixture
def repo(make_store):
    feature_store = make_store()
    return feature_store._get_provider().online_store, feature_store.config


def write(repo, on_chunk=None, ids=IDS, chunk_rows=2):
    return online.write_fill(
        *repo, "users", "user_id", "f1", "embedding", 1, START, START, ids, MATRIX, chunk_rows, on_chunk
    )


def read(repo, ids=IDS):
    return online.read_fill(*repo, "users", "user_id", "f1", "embedding", 4, ids)


@pytest.mark.parametrize("nth", [1, IN_FLIGHT, 3 * IN_FLIGHT])
def test_what_was_sent_before_a_stop_is_written_and_nothing_else(repo, nth):
    # given a caller that stops the write after some calls
    def stop(rows):
        if rows == 2 * nth:
            raise InterruptedError

    # when the write is stopped
    with pytest.raises(InterruptedError):
        write(repo, stop)

    # then the rows sent are there, the connection still answers, and the rest can be written
    assert read(repo).found.tolist() == [True] * 2 * nth + [False] * (ROWS - 2 * nth)
    assert write(repo) == ROWS - 2 * nth
    assert np.array_equal(read(repo).vectors, MATRIX)


def test_a_script_forgotten_on_the_way_is_told_again(repo, redis_client):
    written = write(repo, lambda rows: redis_client.script_flush() if rows in (6, 20) else None)
    assert written == ROWS
    assert np.array_equal(read(repo).vectors, MATRIX)


def test_a_connection_lost_on_the_way_is_opened_anew(repo, redis_client):
    # given a server that closes all connections but one, while calls are on the way
    def cut(rows):
        if rows == 10:
            redis_client.client_kill_filter(_type="normal", skipme=True)

    # when rows are written
    write(repo, cut)

    # then all are there
    assert np.array_equal(read(repo).vectors, MATRIX)


def test_a_refusal_on_the_way_is_raised_and_leaves_the_connection_usable(repo, redis_client):
    # given a key of another type in the way
    (key,) = keys.entity_keys("shop", "user_id", IDS[10:11])
    redis_client.set(key, "in the way")

    # when rows are written, then it is an error, and the other rows can still be written
    with pytest.raises(OnlineStoreError, match="refused a command"):
        write(repo)
    redis_client.delete(key)
    write(repo)
    assert np.array_equal(read(repo).vectors, MATRIX)


def test_ids_of_any_length_are_written(repo):
    ids = np.array([f"{'ü' * (number % 7)}{number}" for number in range(ROWS)], dtype=object)
    assert write(repo, ids=ids, chunk_rows=7) == ROWS
    assert np.array_equal(read(repo, ids).vectors, MATRIX)


def test_strings_are_laid_out_alike_from_a_list_and_from_a_matrix():
    matrix = np.random.default_rng(1).integers(0, 256, (5, 12)).astype(np.uint8)
    strings = commands.rows_as_bytes(matrix)
    expected = b"".join(b"$12\r\n" + string + b"\r\n" for string in strings)
    assert bytes(bulk(matrix)) == bulk(strings) == expected

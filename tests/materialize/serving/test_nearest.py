"""Nearest neighbors: exact, of one space, and of what is live at each call."""

import threading
from datetime import timedelta

import numpy as np
import pytest
from feast import Entity, FeatureView, Field, FileSource, PushSource, ValueType
from feast.types import Array, Float32, String
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from online_fixture import (
    HOUR,
    START,
    another_process,
    cut_over,
    embedding,
    fill,
    place_of,
    server_of,
    user,
)

from feast_embeddings.materialize import nearest, read_vectors
from feast_embeddings.materialize.clock import simulated
from feast_embeddings.materialize.online import (
    MOST_IDS,
    VERSIONS_KEPT,
    TickStamp,
    changes_key,
    entity_keys,
    manifest_key,
    record_change,
    remove_fill,
    write_fill,
)
from feast_embeddings.materialize.serving import neighbors
from feast_embeddings.models.errors import DeclarationError, SpaceError

DIM = 4


@pytest.fixture
def store(make_store):
    feature_store = make_store()
    feature_store.apply([user, embedding("users"), embedding("items")])
    return feature_store


def put(store, name, ids, matrix, tick=1, view="items", key="user_id"):
    write_fill(server_of(store), place_of(view, name, key), TickStamp(tick, START, START), ids, matrix)


def brute_force(queries, ids, rows, k, metric):
    """Scores in float64, rounded; of equal ones the smaller id first."""
    exact = queries.astype(np.float64) @ rows.astype(np.float64).T
    if metric == "cosine":
        lengths = [np.sqrt((x.astype(np.float64) ** 2).sum(axis=1)) for x in (queries, rows)]
        exact /= np.outer(*(np.where(length > 0, length, 1) for length in lengths))
    scores = exact.astype(np.float32)
    order = np.stack([np.lexsort((ids, -row)) for row in scores])[:, :k]
    return ids[order], np.take_along_axis(scores, order, axis=1)


@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(1, 60),
    k=st.integers(1, 70),
    metric=st.sampled_from(["inner", "cosine"]),
)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_it_is_what_brute_force_finds(store, seed, rows, k, metric):
    """Given whole numbers, so that many scores are equal, when asked for k, then ids and scores are exact."""
    rng = np.random.default_rng(seed)
    ids = rng.choice(1000, rows, replace=False) - 500
    matrix = rng.integers(-2, 3, (rows, DIM)).astype(np.float32)
    queries = rng.integers(-2, 3, (7, DIM)).astype(np.float32)
    put(store, f"f{seed}-{rows}-{k}-{metric}", ids, matrix)
    with server_of(store).client() as client:
        client.delete(manifest_key("shop", "shop"))
    cut_over(store, 1, items=f"f{seed}-{rows}-{k}-{metric}")
    found = nearest(store, "items:embedding", queries, k, metric, space=f"space-f{seed}-{rows}-{k}-{metric}")
    wanted, scores = brute_force(queries, ids, matrix, k, metric)
    if metric == "inner":
        assert found.ids.tolist() == wanted.tolist()
        assert np.array_equal(found.scores, scores)
    else:  # the last digit of a root may decide between equal cosines
        np.testing.assert_allclose(found.scores, scores, atol=1e-6)


@pytest.mark.parametrize("metric", ["inner", "cosine"])
def test_neighbors_of_a_query_do_not_depend_on_the_others(store, metric, monkeypatch):
    """Given rows of any size and repeated ones, when queries come alone or in chunks, then the bits are the same."""
    rng = np.random.default_rng(3)
    ids, matrix = rng.permutation(700), rng.normal(size=(700, DIM)).astype(np.float32)
    matrix[350:] = matrix[:350] * np.where(np.arange(350) % 2, 1, 1e-20)[:, None].astype(np.float32)
    queries = rng.normal(size=(50, DIM)).astype(np.float32)
    put(store, "a", ids, matrix)
    cut_over(store, 1, items="a")
    together = nearest(store, "items:embedding", queries, 20, metric, space="space-a")
    wanted, scores = brute_force(queries, ids, matrix, 20, metric)
    np.testing.assert_allclose(together.scores, scores, rtol=1e-6)
    assert metric == "cosine" or together.ids.tolist() == wanted.tolist()
    monkeypatch.setattr(neighbors, "CHUNK_SCORES", 2000)
    monkeypatch.setattr(neighbors, "CHUNK_PAIRS", 17)
    parts = [nearest(store, "items:embedding", queries[i : i + 3], 20, metric, space="space-a") for i in (0, 1, 30)]
    for start, part in zip((0, 1, 30), parts, strict=True):
        assert np.array_equal(part.ids, together.ids[start : start + 3])
        assert np.array_equal(part.scores, together.scores[start : start + 3])


def test_vectors_read_from_another_view_of_the_space_are_taken(store):
    fill(store, "users", "a", 1.0)
    put(store, "a", np.array([7, 8]), np.array([[1, 1, 0, 0], [1, 1, 1, 1]], np.float32))
    cut_over(store, 4, users="a", items="a")
    found = nearest(store, "items:embedding", read_vectors(store, "users:embedding", [1, 99, 2]), 2)
    assert (found.space, found.generation) == ("space-a", 4)
    assert found.ids[[0, 2]].tolist() == [[8, 7], [8, 7]]
    assert found.scores[[0, 2]].tolist() == [[4.0, 2.0], [4.0, 2.0]]
    assert found.scores.dtype == np.float32
    assert np.isnan(found.scores[1]).all()  # user 99 has no vector


def test_another_space_is_refused_and_both_are_named(store):
    fill(store, "items", "a", 1.0)
    fill(store, "users", "b", 1.0)
    cut_over(store, 1, users="b", items="a")
    vectors = read_vectors(store, "users:embedding", [1])
    with pytest.raises(SpaceError, match=r"space 'space-b'.*'items:embedding' of space 'space-a'"):
        nearest(store, "items:embedding", vectors, 1)
    with pytest.raises(SpaceError, match=r"space 'space-c'.*of space 'space-a'"):
        nearest(store, "items:embedding", vectors.values, 1, space="space-c")
    with pytest.raises(SpaceError, match="of space 'space-b', not 'space-a'"):
        nearest(store, "items:embedding", vectors, 1, space="space-a")
    with pytest.raises(SpaceError, match=r"have 3 dimensions.*have 4"):
        nearest(store, "items:embedding", np.ones((1, 3), np.float32), 1, space="space-a")


@pytest.mark.parametrize(
    ("matrix", "k", "options", "message"),
    [
        (np.ones((1, 4), np.float32), 1, {}, "without its space"),
        (np.ones((1, 4)), 1, {"space": "space-a"}, "finite float32"),
        (np.ones(4, np.float32), 1, {"space": "space-a"}, r"float32 \[4\]"),
        (np.full((1, 4), np.nan, np.float32), 1, {"space": "space-a"}, "leave out rows that have no vector"),
        (np.ones((1, 4), np.float32), 0, {"space": "space-a"}, "k is at least 1"),
        (np.ones((1, 4), np.float32), 1, {"space": "space-a", "metric": "l2"}, "'inner' or 'cosine'"),
    ],
)
def test_a_question_that_cannot_be_right_is_refused(store, matrix, k, options, message):
    fill(store, "items", "a", 1.0)
    cut_over(store, 1, items="a")
    with pytest.raises(DeclarationError, match=message):
        nearest(store, "items:embedding", matrix, k, **options)


ONE = np.ones((1, DIM), np.float32)


def scores(store, space, feature="items:embedding", k=9):
    found = nearest(store, feature, ONE, k, space=f"space-{space}")
    return dict(zip(found.ids[0].tolist(), found.scores[0].tolist(), strict=True)), found.generation


def test_a_cutover_and_a_rollback_are_followed_at_the_next_call(store, make_store):
    fill(store, "items", "a", 1.0)
    fill(store, "items", "b", 2.0, ids=(2, 3))
    cut_over(store, 1, items="a")
    assert scores(store, "a") == ({1: 4.0, 2: 4.0}, 1)
    cut_over(another_process(store), 2, {"items": "a"}, items="b")
    assert scores(store, "b") == ({2: 8.0, 3: 8.0}, 2)
    with pytest.raises(SpaceError, match=r"'space-a'.*'space-b'"):
        scores(store, "a")
    cut_over(another_process(store), 3, {"items": "b"}, items="a")
    assert scores(store, "a") == ({1: 4.0, 2: 4.0}, 3)


def test_a_pinned_view_reads_its_space_until_it_is_retired(store, make_store):
    fill(store, "items", "a", 1.0)
    fill(store, "items", "b", 2.0)
    cut_over(store, 2, {"items": "a"}, items="b")
    assert scores(store, "a", "items@space-a:embedding") == ({1: 4.0, 2: 4.0}, 2)
    fill(another_process(store), "items", "a", 3.0, ids=[1], tick=2)
    assert scores(store, "a", "items@space-a:embedding") == ({1: 12.0, 2: 4.0}, 2)
    cut_over(another_process(store), 3, items="b")
    with pytest.raises(SpaceError, match="has no fill in space 'space-a'"):
        scores(store, "a", "items@space-a:embedding")


@pytest.mark.parametrize("ids", [[2, 5], list(range(MOST_IDS + 1))], ids=["few", "too many to be told"])
def test_a_tick_is_seen_at_the_next_call(store, make_store, ids):
    # given a reader with a copy of the fill, when another process writes a tick, again and again
    fill(store, "items", "a", 1.0)
    cut_over(store, 1, items="a")
    assert scores(store, "a") == ({1: 4.0, 2: 4.0}, 1)
    for tick in (2, 3, 2):
        fill(another_process(store), "items", "a", float(tick), ids=ids, tick=tick)
    expected = {1: 4.0, 2: 4.0} | dict.fromkeys(ids, 12.0)

    # then the next call has every row of them, new ones too
    assert scores(store, "a", k=len(expected)) == (expected, 1)


def test_more_ticks_than_are_kept_are_seen_all_the_same(store, make_store):
    fill(store, "items", "a", 1.0)
    cut_over(store, 1, items="a")
    scores(store, "a")
    writer = another_process(store)
    fill(writer, "items", "a", 2.0, ids=[1], tick=2)
    for tick in range(3, VERSIONS_KEPT + 4):
        fill(writer, "items", "a", 3.0, ids=[2], tick=tick)
    assert scores(store, "a") == ({1: 8.0, 2: 12.0}, 1)


def test_a_write_that_stopped_is_seen_when_it_was_repeated(store):
    # given rows that a stopped job wrote, without having told of them
    fill(store, "items", "a", 1.0)
    cut_over(store, 1, items="a")
    scores(store, "a")

    def stop(_rows):
        raise RuntimeError("stopped")

    args = (server_of(store), place_of("items", "a"), TickStamp(2, START, START), np.array([2]), 3 * ONE)
    with pytest.raises(RuntimeError, match="stopped"):
        write_fill(*args, on_chunk=stop)

    # when the next job repeats the write, which changes nothing
    assert write_fill(*args) == 0

    # then the reader sees the rows
    assert scores(store, "a") == ({1: 4.0, 2: 12.0}, 1)


def test_rows_that_were_removed_and_told_of_are_gone(store, redis_client):
    fill(store, "items", "a", 1.0, ids=(1, 2, 3))
    cut_over(store, 1, items="a")
    scores(store, "a")
    redis_client.delete(*entity_keys("shop", "user_id", np.array([1, 3])))
    record_change(another_process(store), "items@a", np.array([1, 3, 77]))
    assert scores(store, "a") == ({2: 4.0}, 1)


def test_rows_past_the_ttl_are_left_out(make_store):
    store = make_store()
    store.apply([user, embedding("items", timedelta(hours=1))])
    fill(store, "items", "a", 1.0, ids=[1], event_time=START)
    fill(store, "items", "a", 2.0, ids=[2], event_time=START + HOUR)
    cut_over(store, 1, items="a")
    with simulated(START + HOUR) as clock:
        assert scores(store, "a") == ({1: 4.0, 2: 8.0}, 1)
        clock.advance(1)
        assert scores(store, "a") == ({2: 8.0}, 1)
        clock.advance(HOUR)
        assert scores(store, "a") == ({}, 1)


def test_without_rows_there_are_no_neighbors(store):
    found = nearest(store, "items:embedding", ONE, 3, space="any")
    assert (found.ids.shape, found.scores.shape, found.space, found.generation) == ((1, 0), (1, 0), "", 0)
    cut_over(store, 1, items="empty")
    found = nearest(store, "items:embedding", ONE, 3, space="space-empty")
    assert (found.ids.shape, found.space, found.generation) == ((1, 0), "space-empty", 1)
    fill(store, "items", "empty", 1.0, ids=[5])
    assert scores(store, "empty") == ({5: 4.0}, 1)
    assert nearest(store, "items:embedding", ONE[:0], 3, space="space-empty").ids.shape == (0, 1)


def test_ids_may_be_strings(make_store):
    store = make_store()
    article = Entity(name="article", join_keys=["sku"], value_type=ValueType.STRING)
    view = FeatureView(
        name="articles",
        entities=[article],
        schema=[Field(name="sku", dtype=String), Field(name="embedding", dtype=Array(Float32))],
        source=PushSource(
            name="p", batch_source=FileSource(name="l", path="l.parquet", timestamp_field="event_timestamp")
        ),
        tags=embedding("x").tags,
    )
    store.apply([article, view])
    put(
        store,
        "a",
        np.array(["b", "ä", ""], object),
        np.array([[2.0] * 4, [1.0] * 4, [2.0] * 4], np.float32),
        1,
        "articles",
        "sku",
    )
    cut_over(store, 1, articles="a")
    assert nearest(store, "articles:embedding", ONE, 5, space="space-a").ids.tolist() == [["", "b", "ä"]]
    put(store, "a", np.array(["c", "ä"], object), np.full((2, 4), 3, np.float32), 2, "articles", "sku")
    assert nearest(store, "articles:embedding", ONE, 5, space="space-a").ids.tolist() == [["c", "ä", "", "b"]]


def test_the_rows_are_of_exactly_this_project(store, make_store):
    other = make_store("xshop")
    fill(other, "items", "a", 9.0, ids=[7])
    fill(store, "items", "a", 1.0)
    cut_over(store, 1, items="a")
    assert scores(store, "a") == ({1: 4.0, 2: 4.0}, 1)


def test_threads_see_whole_generations(store, make_store):
    """Given readers in threads, when cutovers and ticks pass, then an answer is of one generation and complete."""
    problems, done = [], threading.Event()

    def publish(generation):
        fill(writer, "items", f"g{generation}", float(generation), ids=range(1, 40))
        cut_over(writer, generation, {"items": f"g{generation - 1}"}, items=f"g{generation}")

    def reading():
        while not done.is_set():
            try:
                found = nearest(store, "items:embedding", read_vectors(store, "items:embedding", [1]), 40)
            except SpaceError:  # the cutover fell between the two reads
                continue
            if found.ids.shape != (1, 39) or set(found.scores[0].tolist()) != {4.0 * found.generation**2}:
                problems.append(found)

    writer = another_process(store)
    publish(1)
    threads = [threading.Thread(target=reading) for _ in range(3)]
    for thread in threads:
        thread.start()
    for generation in range(2, 40):
        publish(generation)
    done.set()
    for thread in threads:
        thread.join()
    assert problems == []


def test_an_unchanged_fill_costs_one_round_trip(store, redis_client):
    fill(store, "items", "a", 1.0)
    cut_over(store, 1, items="a")
    scores(store, "a")
    before = redis_client.info("commandstats")
    scores(store, "a")
    after = redis_client.info("commandstats")
    calls = {
        name: after[name]["calls"] - before.get(name, {"calls": 0})["calls"]
        for name in after
        if after[name] != before.get(name) and name not in ("cmdstat_info", "cmdstat_client|setinfo")
    }
    assert calls == {"cmdstat_get": 1, "cmdstat_hmget": 1}


def test_nothing_is_left_of_a_view_that_is_no_more(store, redis_client):
    fill(store, "items", "a", 1.0)
    fill(store, "users", "a", 1.0)
    cut_over(store, 1, items="a", users="a")
    remove_fill(server_of(store), place_of("users", "a"))
    assert list(redis_client.scan_iter("*changes*")) == [changes_key("shop", "items@a")]
    store.apply([user, embedding("users")], objects_to_delete=[store.get_feature_view("items")], partial=False)
    assert list(redis_client.scan_iter("*changes*")) == []


def test_vectors_are_a_tensor_without_a_copy(store):
    fill(store, "users", "a", 1.0)
    cut_over(store, 1, users="a")
    vectors = read_vectors(store, "users:embedding", [1, 9])
    tensor = vectors.torch()
    assert tensor.tolist() == vectors.values.tolist()
    vectors.values[0, 0] = 5
    assert tensor[0, 0] == 5

"""A session vector is what a tick of the same behaviors would have stored, in the space of the rest of its answer."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from feast import FeatureStore
from repo_fixture import DAY, HOUR, USERS, MakeRepo, SmallRepo, at, day, tiny_encoder
from session_fixture import SESSION, ask, declare_session, matrix, rows_of, session_repo
from ticks_fixture import started, tick_at

from feast_embeddings.materialize.online import FillRef, Manifest, OnlineServer, publish_manifest
from feast_embeddings.materialize.serving import metrics, session_encoders, sessions
from feast_embeddings.models.errors import ArtifactError, DeclarationError, OnlineStoreError, SpaceError
from feast_embeddings.transformations import session_embedding_view
from feast_embeddings.transformations.views import session_spec_of


def counted(name: str, **labels: str) -> float:
    return metrics.REQUEST_METRICS.get_sample_value(f"feast_embeddings_session_{name}_total", labels) or 0.0


PARTS = ("merge", "encode")


def timed(part: str) -> tuple[float, float]:
    """Requests so far, and the seconds that they spent in a part of the session view."""
    labels, name = {"view": "session_embedding", "part": part}, "feast_embeddings_session_seconds"
    count, total = (metrics.REQUEST_METRICS.get_sample_value(f"{name}_{what}", labels) for what in ("count", "sum"))
    return count or 0.0, total or 0.0


def test_a_session_is_bit_for_bit_what_a_tick_of_the_same_behaviors_stores(make_repo: MakeRepo) -> None:
    repo, store = session_repo(make_repo)
    behaviors = repo.behaviors(day(5)).between(day(4), day(5))
    with at(day(5)):
        at_request = matrix(ask(store, rows_of(behaviors, behaviors.entities.tolist()))["session_embedding"])
        before = repo.vectors().values[np.isin(USERS, behaviors.entities)]

        repo.run(day(5))

    stored = repo.vectors().values[np.isin(USERS, behaviors.entities)]
    assert at_request.tobytes() == stored.tobytes()
    assert not np.array_equal(before, stored)


def test_the_quick_way_agrees_with_the_exact_one(make_repo: MakeRepo) -> None:
    repo, _ = session_repo(make_repo)
    store = declare_session(repo, "session_quick")
    rows = rows_of(repo.behaviors(day(5)).between(day(4), day(5)), USERS.tolist())
    with at(day(5)):
        answer = ask(store, rows, SESSION, "session_quick:session_quick")
    np.testing.assert_allclose(matrix(answer["session_quick"]), matrix(answer["session_embedding"]), atol=1e-5)


def test_a_session_that_was_pushed_too_counts_once(make_repo: MakeRepo) -> None:
    repo, store = session_repo(make_repo)
    behaviors = repo.behaviors(day(5)).between(day(4), day(5))
    rows = rows_of(behaviors, behaviors.entities.tolist())
    with at(day(5)):
        before = matrix(ask(store, rows)["session_embedding"])
        repo.run(day(5))
        after = matrix(ask(store, rows)["session_embedding"])
    assert before.tobytes() == after.tobytes()


@pytest.mark.parametrize("full_names", [False, True])
def test_sync_and_async_reads_give_the_same_beside_other_features(make_repo: MakeRepo, full_names: bool) -> None:
    repo, store = session_repo(make_repo)
    rows = rows_of(repo.behaviors(day(5)).between(day(4), day(5)), USERS.tolist())
    features = [SESSION, "user_embedding:embedding", "history:history_items"]

    async def read() -> dict[str, list[object]]:
        try:
            return (await store.get_online_features_async(features, rows, full_feature_names=full_names)).to_dict()
        finally:
            await OnlineServer.of(store.config).close_async()

    with at(day(5)):
        sync = ask(store, rows, *features, full_feature_names=full_names)
        assert asyncio.run(read()) == sync
    name = "session_embedding__session_embedding" if full_names else "session_embedding"
    assert matrix(sync[name]).shape == (len(USERS), 8)
    assert not {"session_items", "history__history_times", "history_times"} & set(sync)


def test_rows_may_be_dictionaries_and_values_may_be_missing(make_repo: MakeRepo) -> None:
    repo, _ = session_repo(make_repo)
    store = declare_session(repo, "session_priced", exact=True, with_values=True)
    row = {"session_items": [101, 102], "session_types": ["view", "purchase"], "session_times": [day(4), day(4) + 1]}
    rows = [
        {"user_id": 1, **row, "session_values": [None, 2.5]},
        {"user_id": 2, **row, "session_values": [1.5, None]},
        {"user_id": 3, **{name: [] for name in row}, "session_values": []},
    ]
    features = ["session_priced:session_priced"]
    with at(day(5)):
        by_row = store.get_online_features(features, rows).to_dict()["session_priced"]
        columns = {name: [each[name] for each in rows] for name in rows[0]}
        assert store.get_online_features(features, columns).to_dict()["session_priced"] == by_row
        nothing = [{**rows[2], "user_id": 900}]
        assert store.get_online_features(features, nothing).to_dict()["session_priced"] == [None]
    assert [len(vector) for vector in by_row] == [8, 8, 8]


def test_without_a_stored_history_the_session_is_all_there_is(make_repo: MakeRepo) -> None:
    _, store = session_repo(make_repo)
    rows = {"user_id": [900, 901], "session_items": [[101, 102], None], "session_types": [["view", "purchase"], None]}
    with at(day(5)):
        rows["session_times"] = [[day(5) - 2, day(5) - 1], None]
        one, none = ask(store, rows)["session_embedding"]
    assert none is None
    assert np.any(np.array(one))


@pytest.mark.parametrize("empty", [[], None])
def test_without_a_session_the_stored_history_is_all_there_is(make_repo: MakeRepo, empty: object) -> None:
    repo, store = session_repo(make_repo)
    rows = rows_of(None, USERS.tolist()) | {"session_items": [empty] * len(USERS)}
    with at(day(4)):
        answer = ask(store, rows, SESSION, "user_embedding:embedding")
    known = repo.vectors().found
    assert [vector is not None for vector in answer["session_embedding"]] == known.tolist()
    assert answer["session_embedding"] == answer["embedding"]


def test_what_the_encoder_does_not_know_is_counted(make_repo: MakeRepo) -> None:
    _, store = session_repo(make_repo)
    before = {name: counted(name, view="session_embedding") for name in ("unknown_items", "vectors")}
    spent, began = [timed(part) for part in PARTS], time.monotonic()
    refused = counted("behaviors", view="session_embedding", outcome="refused")
    rows = {
        "user_id": [1],
        "session_items": [[101, 999_999, 999_998]],
        "session_types": [["view", "view", "view"]],
        "session_times": [[day(4), day(4), day(9)]],
    }
    with at(day(5)):
        ask(store, rows)
    assert counted("unknown_items", view="session_embedding") == before["unknown_items"] + 1
    assert counted("vectors", view="session_embedding") == before["vectors"] + 1
    assert counted("behaviors", view="session_embedding", outcome="refused") == refused + 1
    took = [timed(part) for part in PARTS]
    assert [count for count, _ in took] == [count + 1 for count, _ in spent]
    assert 0 < sum(seconds for _, seconds in took) - sum(seconds for _, seconds in spent) < time.monotonic() - began


# ── generations ──────────────────────────────────────────────────────────────────────────────────────────


def two_generations(make_repo: MakeRepo) -> tuple[SmallRepo, FeatureStore, list[FillRef]]:
    """A repo with a live and a retained generation, of two encoders."""
    repo = started(make_repo, "Full()")
    repo.encode_with(tiny_encoder(2))
    with at(day(4) + HOUR):
        repo.run(day(4) + HOUR, refresh=True)
        repo.run(day(4) + HOUR, "item_embedding", refresh=True)
    fills = [*repo.fills("live"), *repo.fills("retained")]
    return repo, declare_session(repo, exact=True), [FillRef(fill.fill, fill.space) for fill in fills]


def test_beside_cutovers_a_session_is_in_the_generation_of_its_answer(make_repo: MakeRepo) -> None:
    repo, store, fills = two_generations(make_repo)
    done, wrong = threading.Event(), []
    rows = rows_of(None, USERS[:3].tolist())
    history = repo.histories(day(4) + HOUR).take(np.arange(3, dtype=np.int64))
    expected = {
        repo.rows_of(ref.fill).vectors[:3].tobytes(): tiny_encoder(seed).encode(history).tobytes()
        for ref, seed in zip(fills, (2, 1), strict=True)
    }
    seen: set[bytes] = set()
    assert len(expected) == 2

    def read() -> None:
        while not done.is_set():
            answer = ask(store, rows, SESSION, "user_embedding:embedding")
            stored = matrix(answer["embedding"]).tobytes()
            seen.add(stored)
            if matrix(answer["session_embedding"]).tobytes() != expected[stored]:
                wrong.append(answer)

    with at(day(4) + HOUR), ThreadPoolExecutor(3) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        deadline = time.monotonic() + 60
        for generation in itertools.count(10):
            if generation >= 130 and (len(seen) == 2 or time.monotonic() > deadline):
                break  # a reader may come late on a busy machine
            live, kept = fills[generation % 2], fills[1 - generation % 2]
            manifest = Manifest("main", generation, {"user_embedding": live}, {"user_embedding": (kept,)})
            publish_manifest(repo.server, manifest)
        done.set()
        for reader in readers:
            reader.result()
    assert wrong == []
    assert len(seen) == 2


def test_alone_in_its_answer_it_follows_the_live_generation_at_once(make_repo: MakeRepo) -> None:
    repo, store, (live, kept) = two_generations(make_repo)
    rows = rows_of(None, USERS[:3].tolist())
    answers = []
    with at(day(4) + HOUR):
        for generation, ref in enumerate((live, kept, live, kept), start=10):
            publish_manifest(repo.server, Manifest("main", generation, {"user_embedding": ref}))
            answers.append(matrix(ask(store, rows)["session_embedding"]).tobytes())
    assert answers[0] == answers[2] != answers[1] == answers[3]


def test_a_pinned_session_stays_in_its_space(make_repo: MakeRepo) -> None:
    repo, _, (live, kept) = two_generations(make_repo)
    store = declare_session(repo, "session_before", space=kept.space, exact=True)
    rows = rows_of(None, USERS[:3].tolist())
    with at(day(4) + HOUR):
        found = matrix(ask(store, rows, "session_before:session_before")["session_before"])
        history = repo.histories(day(4) + HOUR).take(np.arange(3, dtype=np.int64))
    assert found.tobytes() == tiny_encoder(1).encode(history).tobytes()
    assert live.space != kept.space


def test_a_pin_on_a_space_that_is_not_served_says_so(make_repo: MakeRepo) -> None:
    repo, _ = session_repo(make_repo)
    store = declare_session(repo, "session_gone", space="0123456789abcdef")
    with pytest.raises(SpaceError, match="no fill in space '0123456789abcdef'"):
        ask(store, rows_of(None, [1]), "session_gone:session_gone")


# ── without an encoder, and loading one ──────────────────────────────────────────────────────────────────


def test_it_is_applied_without_an_encoder_and_a_request_says_what_to_do(make_repo: MakeRepo) -> None:
    repo = make_repo()
    repo.apply()
    store = declare_session(repo)
    with pytest.raises(SpaceError, match="no live generation of 'user_embedding' yet: run `feast-embeddings train`"):
        ask(store, rows_of(None, [1]))
    assert sessions.warm_up(store) == []


def test_where_the_encoder_is_missing_the_folder_is_named(make_repo: MakeRepo) -> None:
    repo = started(make_repo)
    repo.encode_with(tiny_encoder(77))  # a space that no other test has loaded
    with at(day(4) + DAY):
        repo.run(day(5), refresh=True)
        repo.run(day(5), "item_embedding", refresh=True)
    store = declare_session(repo)
    shutil.rmtree(repo.folder / "data" / "embeddings" / "encoders")
    with pytest.raises(ArtifactError, match="is not on this machine: session views need the folder"):
        ask(store, rows_of(None, [1]))


def test_threads_load_an_encoder_once(make_repo: MakeRepo) -> None:
    repo = make_repo()
    space = repo.encode_with(tiny_encoder(78))
    repo.workspace.declared_space(repo.spec())
    encoders, before = session_encoders.SessionEncoders(), counted("encoders_loaded", encoder="main")
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: encoders.get(repo.store.config, "main", space), range(32)))
    assert len({id(each) for each in found}) == 1
    assert counted("encoders_loaded", encoder="main") == before + 1


def test_warming_up_loads_what_the_next_request_needs(make_repo: MakeRepo) -> None:
    _, store = session_repo(make_repo)
    assert sessions.warm_up(store) == ["session_embedding"]
    before = counted("encoders_loaded", encoder="main")
    with at(day(5)):
        ask(store, rows_of(None, [1]))
    assert counted("encoders_loaded", encoder="main") == before


def test_a_server_that_starts_before_the_first_generation_only_warns(
    make_repo: MakeRepo, caplog: pytest.LogCaptureFixture
) -> None:
    repo, _ = session_repo(make_repo)
    shutil.rmtree(repo.folder / "data" / "embeddings" / "encoders")
    session_encoders.ENCODERS._loaded.clear()
    sessions.warm_up_quietly(repo.store.config)
    assert "Session views are not warm" in caplog.text


def test_outside_of_an_online_read_there_is_no_generation_to_answer_in(make_repo: MakeRepo) -> None:
    _, store = session_repo(make_repo)
    view = store.get_on_demand_feature_view("session_embedding")
    with pytest.raises(OnlineStoreError, match="answers online reads only"):
        view.feature_transformation.udf({"user_id": [1]})


# ── declaration ──────────────────────────────────────────────────────────────────────────────────────────


def test_the_declaration_survives_the_registry(make_repo: MakeRepo) -> None:
    _, store = session_repo(make_repo)
    spec = session_spec_of(store.get_on_demand_feature_view("session_embedding"))
    assert spec is not None
    assert (spec.view, spec.embedding, spec.encoder, spec.dim) == ("session_embedding", "user_embedding", "main", 8)


def test_a_history_of_another_view_is_refused(make_repo: MakeRepo) -> None:
    repo = make_repo()
    repo.apply()
    store = repo.store
    views = {name: store.get_feature_view(name) for name in ("history", "behaviors")}
    embedding = store.get_stream_feature_view("user_embedding")
    with pytest.raises(DeclarationError, match="history='behaviors' is not the history view of 'user_embedding'"):
        session_embedding_view("now", history=views["behaviors"], behaviors=views["behaviors"], embedding=embedding)
    with pytest.raises(DeclarationError, match="embedding='item_embedding' embeds no histories"):
        session_embedding_view("now", **views, embedding=store.get_stream_feature_view("item_embedding"))


def test_ticks_go_on_beside_it(make_repo: MakeRepo) -> None:
    repo, store = session_repo(make_repo, "Incremental(half_life='7d')")
    tick_at(repo, 5)
    with at(day(5)):
        answer = ask(store, rows_of(None, USERS.tolist()), SESSION, "user_embedding:embedding")
    history = tiny_encoder(1).encode(repo.histories(day(5)))
    assert matrix(answer["session_embedding"]).tobytes() == history.tobytes()
    assert not np.array_equal(matrix(answer["embedding"]), history)

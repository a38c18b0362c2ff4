"""Stopped jobs that the next one takes up, and generations: cutovers, waiting, rollbacks."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from repo_fixture import VIEWS, MakeRepo, SmallRepo, StoppedError, at, day, rows, stopping_at, tiny_encoder
from ticks_fixture import active_in, encoded_by_hand, started, tick_at

from feast_embeddings.materialize.online import OnlineServer, manifest_key
from feast_embeddings.materialize.ticks.cutover import Cutovers

# ── taken up, or recorded anew ───────────────────────────────────────────────────────────────────────────────


def test_a_tick_whose_behaviors_changed_before_any_effect_is_recorded_anew(make_repo: MakeRepo) -> None:
    repo = started(make_repo)
    with at(day(5)), stopping_at("members"), pytest.raises(StoppedError):
        repo.run(day(5))
    abandoned = repo.workspace.ledger.open_tick("user_embedding")
    repo.deliver(rows(user=[None, 1], item=[101, 130], at=[day(4.5), day(4.6)]), "more")
    with at(day(5)):
        outcome = repo.run(day(5))
    assert any("recorded anew" in notice for notice in outcome.notices)
    assert repo.workspace.ledger.tick("user_embedding", abandoned.number).state == "abandoned"
    assert repo.last_tick().number == abandoned.number + 1
    assert repo.vectors().values[0].tobytes() == encoded_by_hand(repo, 5)[0].tobytes()
    assert repo.counts()["read"] == len(repo.behaviors(day(5))) + 1


def test_a_tick_that_is_staged_is_finished_as_it_was_recorded(make_repo: MakeRepo) -> None:
    repo = started(make_repo)
    with at(day(5)), stopping_at("staged"), pytest.raises(StoppedError):
        repo.run(day(5))
    wanted = encoded_by_hand(repo, 5)
    repo.deliver(rows(user=[1], item=[130], at=[day(4.6)]), "more")
    with at(day(5)):
        assert any("took up tick" in notice for notice in repo.run(day(5)).notices)
    assert repo.vectors().values[0].tobytes() == wanted[0].tobytes()


def test_a_refresh_taken_up_does_not_stand_in_for_one_with_a_new_encoder(make_repo: MakeRepo) -> None:
    repo = started(make_repo)
    with at(day(5)), stopping_at("staged"), pytest.raises(StoppedError):
        repo.run(day(5), refresh=True)
    space = repo.encode_with(tiny_encoder(2))
    with at(day(5)):
        repo.run(day(5), refresh=True)
        repo.run(day(5), "item_embedding", refresh=True)
    assert repo.vectors().space == space
    assert repo.vectors().values.tobytes() == encoded_by_hand(repo, 5, seed=2).tobytes()


# ── generations ──────────────────────────────────────────────────────────────────────────────────────────────


def _rollback(repo: SmallRepo) -> None:
    store = repo.store
    Cutovers(repo.workspace, OnlineServer.of(store.config), store.registry).rollback("main")


def test_a_new_encoder_waits_for_all_of_its_views(make_repo: MakeRepo) -> None:
    repo = started(make_repo, "Hybrid(full_every='30d')")
    old = repo.vectors().space
    new = repo.encode_with(tiny_encoder(2))
    tick_at(repo, 5)
    assert repo.vectors().space == repo.vectors("item_embedding").space == old
    np.testing.assert_array_equal(
        repo.vectors().values[active_in(repo, 0, 4)], encoded_by_hand(repo, 4)[active_in(repo, 0, 4)]
    )
    tick_at(repo, 6)  # goes into the live fill and the waiting one
    tick_at(repo, 6, "item_embedding")
    assert repo.vectors().space == repo.vectors("item_embedding").space == new
    active = active_in(repo, 5, 6)
    np.testing.assert_array_equal(repo.vectors().values[active], encoded_by_hand(repo, 6, seed=2)[active])
    np.testing.assert_array_equal(repo.vectors().values[~active], encoded_by_hand(repo, 5, seed=2)[~active])


def test_the_retained_generation_goes_on_receiving_ticks_and_a_rollback_is_fresh(make_repo: MakeRepo) -> None:
    repo = started(make_repo)
    old = repo.vectors().space
    new = repo.encode_with(tiny_encoder(2))
    with at(day(5)):
        repo.materialize(day(5))
    assert repo.vectors().space == new
    tick_at(repo, 6)
    active = active_in(repo, 5, 6)
    (retained,) = repo.fills("retained")
    np.testing.assert_array_equal(repo.rows_of(retained.fill).vectors[active], encoded_by_hand(repo, 6)[active])
    with at(day(6)):
        _rollback(repo)
    assert repo.vectors().space == repo.vectors("item_embedding").space == old
    np.testing.assert_array_equal(repo.vectors().values[active], encoded_by_hand(repo, 6)[active])
    tick_at(repo, 7)
    active = active_in(repo, 6, 7)
    np.testing.assert_array_equal(repo.vectors().values[active], encoded_by_hand(repo, 7)[active])
    with at(day(7)):
        _rollback(repo)
    assert repo.vectors().space == new
    np.testing.assert_array_equal(repo.vectors().values[active], encoded_by_hand(repo, 7, seed=2)[active])


def test_no_policy_undoes_a_rollback_to_another_space(make_repo: MakeRepo) -> None:
    repo = started(make_repo)
    old = repo.vectors().space
    new = repo.encode_with(tiny_encoder(2))
    with at(day(5)):
        repo.materialize(day(5))
        _rollback(repo)
    with at(day(6)):
        outcome = repo.run(day(6))
        repo.run(day(6), "item_embedding")
    assert repo.vectors().space == repo.vectors("item_embedding").space == old
    assert any(new in notice and "feast materialize" in notice for notice in outcome.notices)
    with at(day(7)):
        repo.materialize(day(7))
    assert repo.vectors().space == repo.vectors("item_embedding").space == new


def test_a_refresh_leaves_items_that_are_live_in_their_space_so_that_a_rollback_finds_the_users(
    make_repo: MakeRepo,
) -> None:
    repo = started(make_repo)
    before = repo.vectors().values
    with at(day(5)):
        assert repo.run(day(5), "item_embedding", refresh=True).units == 0
        repo.materialize(day(5))
        _rollback(repo)
    np.testing.assert_array_equal(repo.vectors().values, before)


@pytest.mark.parametrize("step", ["cutover-recorded", "cutover-switched", "cutover-logged"])
def test_a_rollback_first_finishes_the_cutover_that_a_stopped_job_left(make_repo: MakeRepo, step: str) -> None:
    repo = started(make_repo)
    old, new = repo.vectors().space, repo.encode_with(tiny_encoder(2))
    with at(day(5)), stopping_at(step), pytest.raises(StoppedError):
        repo.materialize(day(5))
    with at(day(5)):
        _rollback(repo)
    assert repo.vectors().space == repo.vectors("item_embedding").space == old
    with at(day(6)):
        repo.run(day(6))
    assert repo.vectors().space == old
    assert repo.vectors().generation == repo.workspace.ledger.live_generation("main").generation
    assert [fill.space for fill in repo.fills("live")] == [old]
    assert [fill.space for fill in repo.fills("retained")] == [new]


def test_two_views_that_are_ready_at_once_cut_over_once(make_repo: MakeRepo) -> None:
    repo = started(make_repo)
    repo.encode_with(tiny_encoder(2))
    with at(day(5)):
        repo.run(day(5), refresh=True)
        with stopping_at("written"), pytest.raises(StoppedError):
            repo.run(day(5), "item_embedding", refresh=True)
        jobs = [threading.Thread(target=repo.run, args=(day(5), view)) for view in VIEWS]
        for job in jobs:
            job.start()
        for job in jobs:
            job.join()
    generations = repo.workspace.ledger.generations("main")
    assert [generation.cutover_us is not None for generation in generations] == [True, True]
    assert repo.vectors().generation == 2


def test_a_tick_taken_up_leaves_out_a_fill_that_was_retired_meanwhile(make_repo: MakeRepo) -> None:
    repo = started(make_repo)
    with at(day(5)):
        repo.run(day(5), refresh=True)
    (retained,) = repo.fills("retained")
    with at(day(6)), stopping_at("recorded"), pytest.raises(StoppedError):
        repo.run(day(6))
    with repo.redis() as client:
        client.delete(manifest_key(repo.store.project, "main"))
    with at(day(6)):
        repo.run(day(6), "item_embedding", refresh=True)  # its cutover retires the generation before
        assert repo.workspace.ledger.fill(retained.fill).state == "retired"
        before = repo.rows_of(retained.fill).vectors
        repo.run(day(6))
    np.testing.assert_array_equal(repo.rows_of(retained.fill).vectors, before)
    assert repo.last_tick().end_us == day(6)
    np.testing.assert_array_equal(
        repo.vectors().values[active_in(repo, 5, 6)], encoded_by_hand(repo, 6)[active_in(repo, 5, 6)]
    )

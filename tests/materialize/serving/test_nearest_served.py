"""Nearest neighbors and aligned encoders behind real jobs: ticks, refreshes, rollbacks, erasure, the command line."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from repo_fixture import ITEMS, USERS, MakeRepo, SmallRepo, StoppedError, at, day, stopping_at, tiny_encoder
from ticks_fixture import active_in, started, tick_at
from typer.testing import CliRunner

from feast_embeddings.materialize import Neighbors, nearest
from feast_embeddings.materialize.cli import app, main
from feast_embeddings.materialize.online import OnlineServer
from feast_embeddings.materialize.ticks import Cutovers
from feast_embeddings.materialize.upkeep import forget
from feast_embeddings.models import AlignedEncoder, Alignment, load_encoder, read_manifest, save_encoder
from feast_embeddings.models.errors import SpaceError


def _users_near(repo: SmallRepo) -> Neighbors:
    return nearest(repo.store, "user_embedding:embedding", repo.vectors(), len(USERS))


def _assert_as_read(repo: SmallRepo) -> None:
    """Every user beside every user scores as the vectors that an online read returns at this moment."""
    vectors, found = repo.vectors(), _users_near(repo)
    wide = vectors.values.astype(np.float64)
    wanted = (wide @ wide.T).astype(np.float32)
    wanted[~vectors.found] = np.nan
    assert (found.space, found.generation) == (vectors.space, vectors.generation)
    assert set(found.ids[vectors.found][0].tolist()) == set(USERS[vectors.found].tolist())
    scores = np.take_along_axis(wanted, np.searchsorted(USERS, found.ids), axis=1)
    np.testing.assert_allclose(found.scores, scores, rtol=1e-6, atol=1e-7)
    assert (np.diff(found.scores[vectors.found], axis=1) <= 0).all()


def test_ticks_refreshes_and_rollbacks_are_followed(make_repo: MakeRepo) -> None:
    repo = started(make_repo, "Incremental(alpha=0.5)")
    _assert_as_read(repo)
    before = _users_near(repo)
    for days in (5, 6):
        tick_at(repo, days)
        assert active_in(repo, days - 1, days).any()
        _assert_as_read(repo)
    assert before.scores.tobytes() != _users_near(repo).scores.tobytes()
    old = repo.vectors()
    repo.encode_with(tiny_encoder(2))
    with at(day(6)):
        repo.materialize(day(6))
    _assert_as_read(repo)
    with pytest.raises(SpaceError, match=rf"{old.space}.*{repo.vectors().space}"):
        nearest(repo.store, "item_embedding:embedding", old, 3)
    store = repo.store
    Cutovers(repo.workspace, OnlineServer.of(store.config), store.registry).rollback("main")
    tick_at(repo, 7)
    assert repo.vectors().space == old.space
    _assert_as_read(repo)


@pytest.mark.parametrize("step", ["chunk", "written", "logged"])
def test_a_tick_that_stopped_is_seen_once_it_was_taken_up(make_repo: MakeRepo, step: str) -> None:
    repo = started(make_repo)
    _assert_as_read(repo)
    with at(day(5)), stopping_at(step), pytest.raises(StoppedError):
        repo.run(day(5))
    tick_at(repo, 5)
    _assert_as_read(repo)


def test_an_erased_entity_is_no_ones_neighbor(make_repo: MakeRepo) -> None:
    repo = started(make_repo)
    before = _users_near(repo)
    assert 3 in before.ids
    with at(day(5)):
        forget(repo.store, "user", 3)
    found = _users_near(repo)
    assert 3 not in found.ids
    assert found.ids.shape[1] == before.ids.shape[1] - 1


def _turned(seed: int) -> AlignedEncoder:
    """The tiny encoder in other coordinates: what a perfect new training would be."""
    turned = np.linalg.qr(np.random.default_rng(seed).normal(size=(8, 8)))[0].astype(np.float32)
    return AlignedEncoder(tiny_encoder(1), torch.from_numpy(turned), Alignment("?", "?", 0, 0, 0, 0, 0))


def test_an_aligned_encoder_is_served_near_the_old_vectors(make_repo: MakeRepo) -> None:
    # given a live space, and a new encoder that says the same in other coordinates
    repo = started(make_repo)
    before, items = repo.vectors(), repo.vectors("item_embedding")
    save_encoder(_turned(5), repo.folder / "new")
    kept = repo.folder / "old"
    save_encoder(tiny_encoder(1), kept)

    # when it is aligned, applied and materialized
    declared = repo.folder / "data" / "encoders" / "main"
    done = CliRunner().invoke(app, ["align", str(kept), str(repo.folder / "new"), str(declared)])
    assert done.exit_code == 0, done.output
    assert "common neighbors" in done.output
    repo.apply()
    with at(day(4)):
        repo.materialize(day(4))

    # then its own space is served, whose vectors are near the old ones, and never mixed with them
    manifest = read_manifest(declared)
    assert repo.vectors().space == manifest.space != before.space
    assert {before.space, _turned(5).space} < set(json.dumps(manifest.config["alignment"]).split('"'))
    np.testing.assert_allclose(repo.vectors().values, before.values, atol=1e-5)
    np.testing.assert_allclose(repo.vectors("item_embedding").values, items.values, atol=1e-5)
    with pytest.raises(SpaceError, match=before.space):
        nearest(repo.store, "item_embedding:embedding", before, 3)
    found = nearest(repo.store, "item_embedding:embedding", repo.vectors(), len(ITEMS))
    assert found.ids.shape == (len(USERS), len(ITEMS))
    tick_at(repo, 5)
    assert load_encoder(declared).space == repo.vectors().space


def test_encoders_without_anything_in_common_are_refused_with_their_figures(
    make_repo: MakeRepo, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    repo = make_repo()
    for seed in (1, 2):
        save_encoder(tiny_encoder(seed), repo.folder / str(seed))
    monkeypatch.setattr("sys.argv", ["feast-embeddings", "align", "1", "2", "out"])
    with pytest.raises(SystemExit):
        main()
    told = capsys.readouterr().err
    assert told.startswith("SpaceError: Space ")
    assert "30 shared items, relative residual" in told
    assert not (repo.folder / "out").exists()

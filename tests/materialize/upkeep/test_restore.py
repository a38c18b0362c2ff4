"""Recovery: what a restore puts into an empty Redis is what was lost, and the ticks go on as if nothing had been."""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np
import pytest
from repo_fixture import (
    USERS,
    VIEWS,
    MakeRepo,
    SmallRepo,
    StoppedError,
    at,
    day,
    rows,
    shop,
    stopping_at,
    tiny_encoder,
)
from ticks_fixture import started, tick_at
from typer.testing import CliRunner

from feast_embeddings.materialize.cli import app
from feast_embeddings.materialize.ledger import held, view_resource
from feast_embeddings.materialize.online import Manifest, publish_manifest, read_manifest
from feast_embeddings.materialize.upkeep.erase import forget
from feast_embeddings.materialize.upkeep.restore import Restored, restore
from feast_embeddings.models.errors import LeaseError, LedgerError, OnlineStoreError

CREATED = 'created_time="created"'


def _lived(make_repo: MakeRepo, policy: str, *, contract: str = "", context: int = 10) -> SmallRepo:
    """At day 6: a retained generation and a live one, of encoders with different contexts, and ticks into both."""
    repo = make_repo(policy=policy, contract=contract)
    repo.deliver(shop(9), "shop")
    for end, encoder in ((2, tiny_encoder(1, context=context)), (4, tiny_encoder(2, context=4))):
        repo.encode_with(encoder)
        with at(day(end)):
            for view in VIEWS:
                repo.run(day(end), view, refresh=True)
    if contract:
        late = rows(user=[3, 30], item=[101, 102], at=[day(1.5), day(3.5)], created=[day(5.5)] * 2)
        repo.deliver(late, "late")
    for end in (5, 6):
        tick_at(repo, end)
    return repo


def _lose(repo: SmallRepo) -> None:
    with repo.redis() as client:
        client.delete(*repo._keys(client))


def _held(repo: SmallRepo) -> dict[bytes, Any]:
    """Every entity's hash, and every manifest, byte by byte; not the notes for readers' copies."""
    with repo.redis() as client:
        found = {key: client.type(key) for key in repo._keys(client)}
        hashes = {key: client.hgetall(key) for key, kind in found.items() if kind == b"hash" and b"feast-" not in key}
        return hashes | {key: client.get(key) for key, kind in found.items() if kind == b"string"}


def _no_encoder(*_: object) -> None:
    raise AssertionError("a restore needs no encoder")


@pytest.mark.parametrize(
    ("policy", "contract", "context"),
    [
        ("Incremental(alpha=0.5)", "", 10),
        ("Incremental(half_life='2d', context='new')", CREATED, 3),
        ("Hybrid(alpha=0.5, full_every='30d')", CREATED, 10),
    ],
)
def test_what_is_restored_is_what_was_lost_and_ticks_go_on_alike(
    make_repo: MakeRepo, monkeypatch: pytest.MonkeyPatch, policy: str, contract: str, context: int
) -> None:
    repo = _lived(make_repo, policy, contract=contract, context=context)
    assert {fill.state for fill in repo.fills()} >= {"live", "retained"}
    before, seen, frozen = _held(repo), repo.snapshot(), repo.freeze()
    for end in (7, 9):
        tick_at(repo, end)
    undisturbed, read = _held(repo), repo.snapshot()

    repo.thaw(frozen)
    _lose(repo)
    with at(day(7)), pytest.raises(OnlineStoreError, match="`feast-embeddings restore`"):
        repo.run(day(7))
    with monkeypatch.context() as patch:
        patch.setattr("feast_embeddings.materialize.files.workspace.load_encoder", _no_encoder)
        restored = restore(repo.store)
    assert restored.generations == {"main": 2}
    assert _held(repo) == before
    assert repo.snapshot() == seen
    for end in (7, 9):
        tick_at(repo, end)
    assert _held(repo) == undisturbed
    assert repo.snapshot() == read


def test_a_restore_can_be_stopped_and_repeated(make_repo: MakeRepo) -> None:
    repo = _lived(make_repo, "Incremental(alpha=0.5)")
    before = _held(repo)
    _lose(repo)
    for step in ("restored-chunk", "restored-rows"):
        with stopping_at(step), pytest.raises(StoppedError):
            restore(repo.store)
        assert not repo.vectors().found.any(), "no read sees a part"
    restore(repo.store)
    assert _held(repo) == before
    assert set(restore(repo.store).rows.values()) == {0}
    assert _held(repo) == before


@pytest.mark.parametrize(
    ("step", "refresh"),
    [("members", False), ("chunk", False), ("logged", False), ("chunk", True), ("cutover-switched", True)],
)
def test_what_a_stopped_job_had_left_is_finished_after_a_restore(make_repo: MakeRepo, step: str, refresh: bool) -> None:
    repo = _lived(make_repo, "Incremental(alpha=0.5)")
    frozen = repo.freeze()
    tick_at(repo, 7, refresh=refresh)
    undisturbed = _held(repo)
    repo.thaw(frozen)
    with at(day(7)), stopping_at(step), pytest.raises(StoppedError):
        repo.run(day(7), refresh=refresh)
    _lose(repo)
    restore(repo.store)
    tick_at(repo, 7)
    assert _held(repo) == undisturbed


def test_a_fill_that_waits_for_its_cutover_is_restored_too(make_repo: MakeRepo) -> None:
    repo = started(make_repo, "Hybrid(alpha=0.5, full_every='30d')")
    repo.encode_with(tiny_encoder(2))
    with at(day(5)):
        repo.run(day(5), refresh=True)  # the items have no vectors in its space yet
    tick_at(repo, 6)
    assert repo.fills("ready")
    before = _held(repo)
    _lose(repo)
    restore(repo.store)
    assert _held(repo) == before
    with at(day(6)):
        repo.run(day(6), "item_embedding", refresh=True)
    assert repo.vectors().space == repo.fills("live")[0].space
    assert repo.vectors().found.sum() == len(repo.behaviors(day(6)).entities)


def test_the_erased_stay_away(make_repo: MakeRepo) -> None:
    repo = _lived(make_repo, "Incremental(alpha=0.5)")
    with at(day(6)):
        forget(repo.store, "user", 3)
    before = _held(repo)
    _lose(repo)
    restore(repo.store)
    assert _held(repo) == before
    assert not repo.vectors().found[USERS == 3].any()


# ── refused ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_redis_that_is_newer_or_foreign_is_left_as_it_is(make_repo: MakeRepo) -> None:
    repo = _lived(make_repo, "Incremental(alpha=0.5)")
    stored = read_manifest(repo.server, "main")
    publish_manifest(repo.server, Manifest("main", stored.generation + 1, stored.fills, {}))
    before = _held(repo)
    with pytest.raises(OnlineStoreError, match=r"serves generation 3 .* would be generation 2"):
        restore(repo.store)
    assert _held(repo) == before


def test_rows_of_ticks_that_the_ledger_does_not_know_are_refused(make_repo: MakeRepo) -> None:
    repo = _lived(make_repo, "Incremental(alpha=0.5)")
    ledger = repo.folder / "data" / "embeddings"
    shutil.copytree(ledger, repo.folder / "backup")
    tick_at(repo, 8)
    shutil.rmtree(ledger)
    shutil.copytree(repo.folder / "backup", ledger)
    before = _held(repo)
    with pytest.raises(OnlineStoreError, match=r"holds rows of tick \d+ .* last one is 4"):
        restore(repo.store)
    assert _held(repo) == before


def test_a_log_that_is_gone_is_said(make_repo: MakeRepo) -> None:
    repo = _lived(make_repo, "Incremental(alpha=0.5)")
    _lose(repo)
    log = repo.workspace.log(repo.spec())
    shutil.rmtree(log.folder)
    log.create()
    with pytest.raises(LedgerError, match="has none of them"):
        restore(repo.store)
    assert not repo.vectors().found.any()


def test_no_tick_runs_meanwhile(make_repo: MakeRepo) -> None:
    repo = started(make_repo)
    resource = held(repo.workspace.ledger, view_resource(repo.project, "item_embedding"))
    with resource, pytest.raises(LeaseError, match="is being worked on by"):
        restore(repo.store)


def test_a_repo_that_was_never_live_has_nothing_to_restore(make_repo: MakeRepo) -> None:
    repo = make_repo()
    repo.deliver(shop(2), "shop")
    repo.encode_with(tiny_encoder(1))
    found = restore(repo.store)
    assert found == Restored(notices=["encoder 'main' has never been live: nothing to restore"])


def test_the_command_restores_and_says_what(make_repo: MakeRepo) -> None:
    repo = started(make_repo)
    before = repo.vectors()
    _lose(repo)
    done = CliRunner().invoke(app, ["restore", "--repo", str(repo.folder)])
    assert done.exit_code == 0, done.output
    assert "Generation 1 of encoder 'main' is live" in done.output
    assert f"history: {int(before.found.sum())} rows written" in done.output
    np.testing.assert_array_equal(repo.vectors().values, before.values)

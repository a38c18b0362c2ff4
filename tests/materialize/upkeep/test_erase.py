"""Erasure: after it no read returns the entity, and nothing that was under way or comes late brings it back."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import FeatureStore
from repo_fixture import (
    USERS,
    MakeRepo,
    SmallRepo,
    StoppedError,
    at,
    day,
    moment,
    rows,
    shop,
    stopping_at,
    tiny_encoder,
)
from ticks_fixture import started, tick_at
from typer.testing import CliRunner

from feast_embeddings.materialize.cli import app
from feast_embeddings.materialize.ledger import Tombstones, cutover_resource, held, view_resource
from feast_embeddings.materialize.online import entity_keys
from feast_embeddings.materialize.serving import nearest
from feast_embeddings.materialize.upkeep.erase import Receipt, forget
from feast_embeddings.models.errors import DeclarationError, LeaseError
from feast_embeddings.transformations import Histories, activity_view

GONE = 3
OTHERS = USERS != GONE
CREATED = 'created_time="created"'


def _two_generations(make_repo: MakeRepo, policy: str = "Hybrid(alpha=0.5, full_every='30d')") -> SmallRepo:
    """At day 5, with a live and a retained generation of different spaces, and a quarantined row of each user."""
    repo = make_repo(policy=policy, contract=CREATED)
    bad = rows(user=USERS.tolist(), item=[None] * len(USERS), at=[day(0.5)] * len(USERS))
    repo.deliver(pa.concat_tables([shop(10), bad]), "shop")
    for end, seed in ((2, 1), (3, 2)):
        repo.encode_with(tiny_encoder(seed))
        with at(day(end)):
            repo.run(day(end), refresh=True)
            repo.run(day(end), "item_embedding", refresh=True)
    for end in (4, 5):
        tick_at(repo, end)
    return repo


def _forget(repo: SmallRepo, days: float, who: int = GONE) -> Receipt:
    with at(day(days)):
        return forget(repo.store, "user", who)


def _assert_gone(repo: SmallRepo) -> None:
    for fill in repo.fills("live", "retained", "ready", "building"):
        assert not repo.rows_of(fill.fill).found[~OTHERS].any(), fill
    assert not repo.histories().lengths[~OTHERS].any()
    assert not repo.vectors().found[~OTHERS].any()
    assert GONE not in repo.log()["user_id"].to_pylist()
    staged = repo.workspace.log(repo.spec()).folder / "staged"
    for file in staged.glob("*.arrow"):
        assert GONE not in pa.ipc.open_file(str(file)).read_all()["id"].to_pylist()
    assert str(GONE) not in repo.workspace.quarantine().read()["entity"].to_pylist()


def _of_others(repo: SmallRepo) -> list[bytes]:
    """All that is known of everyone else, bit by bit."""
    log, batch = repo.log(), repo.histories().take(np.flatnonzero(OTHERS))
    kept = log.filter(pa.array(np.asarray(log["user_id"]) != GONE))
    fills = repo.fills("live", "retained")
    return [
        *(repo.rows_of(fill.fill).vectors[OTHERS].tobytes() for fill in fills),
        *(repo.rows_of(fill.fill).tick[OTHERS].tobytes() for fill in fills),
        *(column.tobytes() for column in (batch.offsets, batch.items, batch.times, batch.values)),
        str(kept.to_pydict()).encode(),
    ]


def _balances(counts: dict[str, int]) -> bool:
    return counts["read"] == sum(number for what, number in counts.items() if what != "read")


# ── what is removed ──────────────────────────────────────────────────────────────────────────────────────────


def test_an_erased_entity_is_nowhere_and_everyone_else_is_as_before(make_repo: MakeRepo) -> None:
    repo = _two_generations(make_repo)
    assert repo.vectors().found[~OTHERS].all()
    logged = repo.log()["user_id"].to_pylist().count(GONE)
    before = _of_others(repo)
    (key,) = entity_keys(repo.project, "user_id", np.array([GONE]))
    with repo.redis() as client:
        client.hset(key, "_ts:profile", b"of an ordinary view")
        client.hset(neighbor := key[: -len(repo.project)] + b"x" + repo.project.encode(), "_ts:profile", b"other")
        fields = client.hkeys(key)

    receipt = _forget(repo, 5)

    _assert_gone(repo)
    assert _of_others(repo) == before
    with repo.redis() as client:
        assert not client.exists(key)
        assert client.hkeys(neighbor) == [b"_ts:profile"], "a project whose name ends alike"
    assert receipt.removed["embedding log of user_embedding"] == logged
    assert receipt.removed["quarantine of user_embedding"] == 1
    names = {field[4:].decode() for field in fields if field.startswith(b"_ts:")}
    assert {place for place in receipt.removed if place.startswith("Redis")} == {f"Redis: {name}" for name in names}
    assert "your table data/behaviors: delete its rows there" in receipt.left


def test_a_copy_of_the_fill_in_another_process_learns_of_it(make_repo: MakeRepo) -> None:
    repo = started(make_repo)
    asked = repo.vectors()
    assert GONE in nearest(repo.store, "user_embedding:embedding", asked, len(USERS)).ids
    with at(day(4)):
        forget(FeatureStore("."), "user", GONE)
    found = nearest(repo.store, "user_embedding:embedding", asked, len(USERS)).ids
    assert set(found[0].tolist()) == set(USERS[OTHERS & asked.found].tolist())


def test_a_second_erasure_finds_nothing(make_repo: MakeRepo) -> None:
    repo = started(make_repo)
    assert _forget(repo, 4).total > 0
    before = repo.snapshot()
    assert _forget(repo, 4).total == 0
    assert repo.snapshot() == before


def test_an_item_is_erased_from_its_vectors_for_good(make_repo: MakeRepo) -> None:
    repo = started(make_repo)
    with at(day(4)):
        forget(repo.store, "item", "101")
        assert not repo.vectors("item_embedding").found[0]
        assert repo.vectors("item_embedding").found[1:].all()
        repo.encode_with(tiny_encoder(2))
        repo.run(day(4), "item_embedding", refresh=True)
        repo.run(day(4), refresh=True)
    assert not repo.vectors("item_embedding").found[0]


# ── what cannot bring it back ────────────────────────────────────────────────────────────────────────────────


def test_no_late_behavior_tick_or_refresh_brings_it_back(make_repo: MakeRepo) -> None:
    repo = _two_generations(make_repo)
    _forget(repo, 5.5)
    late = rows(user=[GONE] * 4, at=[day(1.5), day(5.2), day(5.8), None], created=[day(5.7), day(5.9), day(5.4), None])
    repo.deliver(late, "late")
    rest = shop(10).to_pandas()
    repo.deliver(rows(at=[day(9.9)]), "rest")  # a file must not be empty
    dropped = rest[(rest["user"] != GONE) | (rest["at"] < moment(day(5.5)))]
    repo.deliver(pa.Table.from_pandas(dropped, preserve_index=False), "shop")
    for end in (6, 7):
        tick_at(repo, end)
        _assert_gone(repo)
    number = repo.last_tick().number - 1
    assert repo.counts(number)["erased"] >= 3
    assert _balances(repo.counts(number))
    assert _balances(repo.counts())
    tick_at(repo, 8, refresh=True)
    _assert_gone(repo)
    assert _balances(repo.counts())


@pytest.mark.parametrize(
    ("step", "refresh"),
    [("members", False), ("staged", False), ("logged", False), ("staged", True), ("cutover-switched", True)],
)
def test_no_retry_brings_it_back(make_repo: MakeRepo, step: str, refresh: bool) -> None:
    repo = started(make_repo, "Hybrid(alpha=0.5)")
    with at(day(6)), stopping_at(step), pytest.raises(StoppedError):
        repo.run(day(6), refresh=refresh)
    _forget(repo, 6)
    with at(day(6)):
        repo.run(day(6))
    _assert_gone(repo)
    assert repo.last_tick().end_us == day(6)
    ended = repo.vectors().values[OTHERS].tobytes()

    undisturbed = started(make_repo, "Hybrid(alpha=0.5)")
    with at(day(6)):
        undisturbed.run(day(6), refresh=refresh)
    assert ended == undisturbed.vectors().values[OTHERS].tobytes()


def test_an_erasure_that_was_stopped_after_its_first_step_holds_already(make_repo: MakeRepo) -> None:
    repo = started(make_repo)
    with at(day(5)):
        Tombstones(repo.workspace.ledger, "user_id").record(GONE, day(5))
    before = repo.vectors().values.copy()
    tick_at(repo, 5)
    assert repo.vectors().values[~OTHERS].tobytes() == before[~OTHERS].tobytes()
    assert _forget(repo, 5).total > 0
    _assert_gone(repo)


def test_materializing_the_behaviors_view_or_a_push_brings_back_nothing_old(make_repo: MakeRepo) -> None:
    repo = started(make_repo)
    _forget(repo, 5)
    asked = {"features": ["behaviors:item_id"], "entity_rows": [{"user_id": GONE}, {"user_id": 1}]}
    repo.store.materialize(moment(day(0)), moment(day(5)), ["behaviors"])
    assert [item is None for item in repo.store.get_online_features(**asked).to_dict()["item_id"]] == [True, False]
    for days, item in ((4.5, 104), (5.5, 105)):
        columns = {"user_id": [GONE], "item_id": [item], "behavior_type": ["view"], "value": [1.0]}
        repo.store.write_to_online_store("behaviors", pd.DataFrame(columns | {"at": [moment(day(days))]}))
        found = repo.store.get_online_features(**asked).to_dict()["item_id"][0]
        assert found == (None if days < 5 else item)


def test_what_happens_after_the_erasure_is_a_new_life(make_repo: MakeRepo) -> None:
    repo = started(make_repo, "Incremental(alpha=0.5)")
    repo.deliver(rows(user=[GONE] * 2, item=[102, 103], at=[day(4.9), day(5.5)]), "more")
    _forget(repo, 5)
    tick_at(repo, 6)
    lived = Histories(repo.behaviors(day(6))).as_of(USERS[~OTHERS], day(6), 10)
    assert lived.times.min() > day(5)
    wanted = tiny_encoder(1).encode(lived)
    assert repo.vectors().values[~OTHERS].tobytes() == wanted.tobytes(), "nothing of the old vector is blended in"
    assert _forget(repo, 7).total > 0
    _assert_gone(repo)


# ── the past ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_historical_retrieval_knows_nothing_of_it(make_repo: MakeRepo) -> None:
    repo = started(make_repo)
    for end in (5, 6):
        tick_at(repo, end)
    asked = pd.DataFrame({"user_id": [GONE, 1, GONE, 1], "event_timestamp": [moment(day(d)) for d in (5.5, 5.5, 7, 7)]})
    features = ["user_embedding:embedding", "history:history_items"]

    def ask() -> pd.DataFrame:
        return repo.store.get_historical_features(asked, features).to_df()

    before = ask()
    assert before["embedding"].notna().all()
    _forget(repo, 6)
    after = ask()
    assert after["embedding"].isna().tolist() == [True, False, True, False]
    assert after["history_items"].isna().tolist() == [True, False, True, False]
    for name in ("embedding", "history_items"):
        assert [list(value) for value in after[name][1::2]] == [list(value) for value in before[name][1::2]]


# ── who may, and how ─────────────────────────────────────────────────────────────────────────────────────────


def test_no_tick_and_no_cutover_runs_meanwhile(make_repo: MakeRepo, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = started(make_repo)
    view = held(repo.workspace.ledger, view_resource(repo.project, "user_embedding"))
    with view, pytest.raises(LeaseError, match="is being worked on by"):
        _forget(repo, 4)
    monkeypatch.setattr("feast_embeddings.materialize.upkeep.standstill.CUTOVER_WAIT_S", 0)
    with held(repo.workspace.ledger, cutover_resource(repo.project, "main")), pytest.raises(LeaseError):
        _forget(repo, 4)
    assert repo.vectors().found[~OTHERS].all()
    assert Tombstones(repo.workspace.ledger, "user_id").marks().num_rows == 0


def test_no_job_that_counts_behaviors_runs_meanwhile(make_repo: MakeRepo) -> None:
    repo = started(make_repo)
    behaviors = repo.store.get_feature_view("behaviors")
    FeatureStore(".").apply([activity_view("activity", repo.store.get_entity("user"), behaviors, ["1d"])])
    with held(repo.workspace.ledger, view_resource(repo.project, "activity")):
        with pytest.raises(LeaseError, match=r"'activity' of project .* is being worked on by"):
            _forget(repo, 4)
        with pytest.raises(LeaseError, match=r"'activity' of project .* is being worked on by"):
            repo.materialize(day(4), ["activity"])


def test_what_cannot_be_erased_is_said(make_repo: MakeRepo) -> None:
    repo = started(make_repo)
    with pytest.raises(DeclarationError, match=r"declares no entity 'users'; its entities: .*user"):
        forget(repo.store, "users", 1)
    for bad in ("ann", str(1 << 63), "1_0", " 3", "+3", "03", "３"):
        with pytest.raises(DeclarationError, match="has integer ids, and"):
            forget(repo.store, "user", bad)


def test_the_command_prints_a_receipt(make_repo: MakeRepo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    repo = started(make_repo)
    command = ["forget", "--entity", "user", "--id", str(GONE), "--repo", str(repo.folder)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    for words in ("Erased user 3", "embedding log of user_embedding", "Redis: history", "Not changed: your table"):
        assert words in done.output, words
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 0
    assert "Nothing was left of it here." in again.output
    _assert_gone(repo)
    assert GONE in pq.read_table(repo.folder / "data/behaviors")["user"].to_pylist(), "the team's own table"

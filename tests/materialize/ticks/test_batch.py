"""Ticks on a real repo: what they compute, what the stock commands do, and that every behavior counts once."""

from __future__ import annotations

import numpy as np
import pytest
from repo_fixture import (
    ITEMS,
    USERS,
    MakeRepo,
    StoppedError,
    at,
    batch_bytes,
    day,
    rows,
    shop,
    stopping_at,
    tiny_encoder,
)
from ticks_fixture import active_in, encoded_by_hand, started, tick_at

from feast_embeddings.models.errors import OnlineStoreError, TickError
from feast_embeddings.transformations import Histories

LATE = 'created_time="created"'

# ── what a tick computes ─────────────────────────────────────────────────────────────────────────────────────


def test_a_refresh_encodes_every_user_and_item(make_repo: MakeRepo) -> None:
    repo = started(make_repo)
    users, items = repo.vectors(), repo.vectors("item_embedding")
    known = np.isin(USERS, repo.behaviors(day(4)).entities)
    assert users.found.tolist() == known.tolist()
    assert users.values.tobytes() == encoded_by_hand(repo, 4).tobytes()
    assert items.values.tobytes() == tiny_encoder(1).encode_items(ITEMS)[0].tobytes()
    assert (users.generation, items.generation) == (1, 1)
    assert users.space == items.space


@pytest.mark.parametrize(
    ("policy", "alpha"),
    [("Incremental(alpha=0.25)", 0.25), ("Incremental(half_life='2d')", None), ("Incremental()", 0)],
)
def test_a_tick_blends_the_vectors_of_active_users_and_leaves_the_rest(
    make_repo: MakeRepo, policy: str, alpha: float | None
) -> None:
    repo = started(make_repo, policy)
    wanted, updated = encoded_by_hand(repo, 4), np.full(len(USERS), 4)
    met = np.isin(USERS, repo.behaviors(day(4)).entities)
    for end in (5, 6, 7):
        tick_at(repo, end)
        active, fresh = active_in(repo, end - 1, end), encoded_by_hand(repo, end)
        weights = np.float32(2.0) ** ((updated - end) / np.float32(2)) if alpha is None else np.full(len(USERS), alpha)
        weights = np.where(met, weights, 0).astype(np.float32)[:, None]
        blended = weights * wanted + (np.float32(1) - weights) * fresh
        wanted = np.where(active[:, None], blended, wanted)
        updated, met = np.where(active, end, updated), met | active
        assert 0 < active.sum() < len(USERS)
        np.testing.assert_array_equal(repo.vectors().values, wanted)


def test_a_tick_of_new_behaviors_alone_encodes_only_those(make_repo: MakeRepo) -> None:
    repo = started(make_repo, "Incremental(alpha=0.5, context='new')")
    before = repo.vectors().values
    tick_at(repo, 5)
    active = active_in(repo, 4, 5)
    known = np.isin(USERS, repo.behaviors(day(4)).entities)
    fresh = encoded_by_hand(repo, 5, since=4)
    half = np.where(known, 0.5, 0).astype(np.float32)[:, None]
    wanted = np.where(active[:, None], half * before + (np.float32(1) - half) * fresh, before)
    np.testing.assert_array_equal(repo.vectors().values, wanted)


def test_histories_online_are_those_of_all_behaviors(make_repo: MakeRepo) -> None:
    repo = started(make_repo)
    for end in (5, 7):  # the second job runs two ticks
        tick_at(repo, end)
        wanted = Histories(repo.behaviors(day(end))).as_of(USERS, day(end), 10)
        assert batch_bytes(repo.histories()) == batch_bytes(wanted)


def test_histories_stay_long_enough_for_every_encoder_that_is_served(make_repo: MakeRepo) -> None:
    repo = started(make_repo, "Hybrid(full_every='30d')")
    repo.encode_with(tiny_encoder(2, context=3))
    tick_at(repo, 5)
    tick_at(repo, 6)  # the live encoder still is the one of context 10
    np.testing.assert_array_equal(
        repo.vectors().values[active_in(repo, 5, 6)], encoded_by_hand(repo, 6)[active_in(repo, 5, 6)]
    )
    tick_at(repo, 6, "item_embedding")
    np.testing.assert_array_equal(
        repo.vectors().values[active_in(repo, 5, 6)], encoded_by_hand(repo, 6, seed=2, context=3)[active_in(repo, 5, 6)]
    )
    assert batch_bytes(repo.histories()) == batch_bytes(Histories(repo.behaviors(day(6))).as_of(USERS, day(6), 10))


def test_incremental_work_grows_with_the_active_users(make_repo: MakeRepo) -> None:
    repo = started(make_repo)
    with at(day(5)):
        outcome = repo.run(day(5))
    assert outcome.encoded == outcome.rows == active_in(repo, 4, 5).sum()


def test_a_tick_in_which_nobody_behaved_changes_nothing(make_repo: MakeRepo) -> None:
    repo = started(make_repo, days=8)
    before = repo.vectors().values.tobytes()
    tick_at(repo, 9)
    assert repo.vectors().values.tobytes() == before
    assert (repo.last_tick().end_us, repo.last_tick().rows) == (day(9), 0)


# ── the stock commands ───────────────────────────────────────────────────────────────────────────────────────


def test_materialize_incremental_twice_writes_nothing_the_second_time(
    make_repo: MakeRepo, capsys: pytest.CaptureFixture[str]
) -> None:
    repo = started(make_repo)
    with at(day(5)):
        repo.incremental(day(5))
        capsys.readouterr()
        before, tick = repo.snapshot(), repo.last_tick()
        repo.incremental(day(5))
    assert "user_embedding: nothing is due up to 2024-03-06 00:00:00 UTC: 0 rows written" in capsys.readouterr().out
    assert repo.snapshot() == before
    assert repo.last_tick() == tick


def test_materialize_twice_is_the_same_refresh_twice(make_repo: MakeRepo) -> None:
    repo = started(make_repo, "Incremental(alpha=0.5)")
    tick_at(repo, 5)
    for _ in range(2):
        with at(day(6)):
            repo.materialize(day(6))
        assert repo.vectors().values.tobytes() == encoded_by_hand(repo, 6).tobytes(), "a refresh discards blends"
        assert repo.last_tick().end_us == day(6)


def test_reencoding_at_an_equal_time_reaches_the_online_store(make_repo: MakeRepo) -> None:
    repo = started(make_repo)
    space = repo.encode_with(tiny_encoder(2))
    with at(day(4)):
        repo.materialize(day(4))
    assert repo.vectors().space == repo.vectors("item_embedding").space == space
    assert repo.vectors().values.tobytes() == encoded_by_hand(repo, 4, seed=2).tobytes()


@pytest.mark.parametrize(
    ("end", "refresh", "words"),
    [
        (3.5, True, ("2024-03-05 00:00:00", "2024-03-04 12:00:00", "go back in time")),
        (9, True, ("2024-03-10 00:00:00", "in the future")),
        (9, False, ("2024-03-10 00:00:00", "in the future")),
    ],
)
def test_an_end_that_cannot_be_is_refused(make_repo: MakeRepo, end: float, refresh: bool, words: tuple) -> None:
    repo = started(make_repo)
    before, tick = repo.snapshot(), repo.last_tick()
    with at(day(5)), pytest.raises(TickError) as caught:
        repo.run(day(end), refresh=refresh)
    assert all(word in str(caught.value) for word in ("user_embedding", *words)), caught.value
    assert (repo.snapshot(), repo.last_tick()) == (before, tick)


def test_an_emptied_redis_is_noticed_before_anything_is_blended(make_repo: MakeRepo) -> None:
    repo = started(make_repo, "Incremental(alpha=0.5)")
    with at(day(5)), stopping_at("recorded"), pytest.raises(StoppedError):
        repo.run(day(5))
    with repo.redis() as client:
        client.delete(*repo._keys(client))
    before = repo.log().to_pydict()
    with at(day(5)), pytest.raises(OnlineStoreError, match=r"generation 1 of encoder 'main'.*feast materialize"):
        repo.run(day(5))
    assert repo.log().to_pydict() == before
    with at(day(5)):
        repo.materialize(day(5))
    assert repo.vectors().values.tobytes() == encoded_by_hand(repo, 5).tobytes()


# ── every behavior counts once ───────────────────────────────────────────────────────────────────────────────


def test_late_behaviors_are_applied_in_the_next_tick_and_counted(make_repo: MakeRepo) -> None:
    repo = started(make_repo, contract=LATE)
    tick_at(repo, 5)
    late = rows(user=[3, 3, 7], item=[101, 102, 103], at=[day(1.5), day(4.5), day(2)], created=[day(5.1)] * 3)
    repo.deliver(late, "late")
    tick_at(repo, 6)
    counts = repo.counts(repo.last_tick().number)
    ordinary = len(repo.behaviors(day(6)).between(day(5), day(6)))
    assert counts == {"read": ordinary + 3, "applied": ordinary + 3, "deduplicated": 0}
    wanted = Histories(repo.behaviors(day(6))).as_of(USERS, day(6), 10)
    assert batch_bytes(repo.histories()) == batch_bytes(wanted)
    changed = active_in(repo, 5, 6) | np.isin(USERS, [3, 7])
    np.testing.assert_array_equal(repo.vectors().values[changed], encoded_by_hand(repo, 6)[changed])
    tick_at(repo, 7)
    assert repo.counts()["read"] == len(repo.behaviors(day(7)))


def test_behaviors_delivered_again_are_deduplicated_across_ticks(make_repo: MakeRepo) -> None:
    repo = started(make_repo, contract=LATE)
    tick_at(repo, 5)
    first = shop(8).filter(
        (np.array(shop(8)["at"].cast("int64")) >= day(4)) & (np.array(shop(8)["at"].cast("int64")) < day(5))
    )
    before, history = repo.vectors().values.tobytes(), batch_bytes(repo.histories())
    at_created = first.schema.get_field_index("created")
    again = first.set_column(at_created, "created", rows(at=[day(5.2)] * len(first))["created"])
    repo.deliver(again, "again")
    tick_at(repo, 5.5)  # no tick is due yet
    tick_at(repo, 6)
    counts = repo.counts(repo.last_tick().number)
    assert counts["deduplicated"] == len(first) > 0
    assert counts["read"] == counts["applied"] + counts["deduplicated"]
    unchanged = ~active_in(repo, 5, 6)
    assert np.frombuffer(before, np.float32).reshape(-1, 8)[unchanged].tobytes() == (
        repo.vectors().values[unchanged].tobytes()
    )
    assert history != batch_bytes(repo.histories())
    wanted = Histories(repo.behaviors(day(6))).as_of(USERS, day(6), 10)
    assert batch_bytes(repo.histories()) == batch_bytes(wanted)


@pytest.mark.parametrize("contract", ["", LATE], ids=["by event time", "with created time"])
def test_every_behavior_read_is_applied_deduplicated_or_quarantined_once(make_repo: MakeRepo, contract: str) -> None:
    repo = started(make_repo, contract=contract)
    bad = rows(
        user=[None, 2, 3, 4, 5, 6],
        item=[101, None, 103, 104, 105, 106],
        event=["view", "view", "wish", "view", "view", "view"],
        price=[1.0, 1.0, 1.0, float("nan"), float("inf"), 1.0],
        id=[f"bad {number}" for number in range(6)],
        at=[day(4.5)] * 5 + [None],
        created=[day(4.6)] * 6,
    )
    repo.deliver(bad, "bad")
    for end in (5, 6, 7):
        tick_at(repo, end)
    with at(day(8)):
        repo.run(day(8), refresh=True)
    ledger, numbers = repo.workspace.ledger, range(1, repo.last_tick().number + 1)
    for number in numbers:
        counts = ledger.counts("user_embedding", number)
        assert counts["read"] == sum(count for what, count in counts.items() if what != "read"), (number, counts)
    reasons = {
        "entity missing": 1,
        "item missing": 1,
        "behavior type unknown": 1,
        "value not a number": 1,
        "value infinite": 1,
        "event time missing": 1,
    }
    assert repo.workspace.quarantine().counts("user_embedding") == reasons
    total = repo.counts()
    assert total["read"] == shop(8).num_rows + 6
    assert {what: count for what, count in total.items() if what.startswith("quarantined")} == {
        f"quarantined: {reason}": count for reason, count in reasons.items()
    }


def test_a_behavior_of_the_future_waits_for_its_time(make_repo: MakeRepo) -> None:
    repo = started(make_repo)
    repo.deliver(rows(user=[1, 1], at=[day(6.5), day(30)], created=[day(4)] * 2), "future")
    tick_at(repo, 5)
    assert repo.counts()["read"] == len(repo.behaviors(day(5)))
    assert day(6.5) not in repo.histories().times
    tick_at(repo, 7)
    assert day(6.5) in repo.histories().times
    assert repo.counts()["read"] == len(repo.behaviors(day(7)))

"""Items that the encoder never saw, on a real repo: what they are served, that it counts once, and what undoes it."""

from __future__ import annotations

import runpy
from typing import Any

import numpy as np
import pandas as pd
import pytest
from repo_fixture import ITEMS, MakeRepo, StoppedError, at, day, moment, stopping_at, tiny_encoder
from ticks_fixture import started, tick_at
from unseen_fixture import NEW, OTHER, PLAIN, both, came, following, placed, read, users_before

from feast_embeddings.materialize.serving import nearest
from feast_embeddings.materialize.ticks.milestones import ITEM_TICK
from feast_embeddings.materialize.upkeep import forget, restore
from feast_embeddings.models.errors import DeclarationError

STRANGER = 77
"""Of no behaviors before its first one with a new item."""

# ── what an unseen item is served ────────────────────────────────────────────────────────────────────────────


def test_an_unseen_item_stands_where_the_users_stood_who_came_to_it_before_they_came(make_repo: MakeRepo) -> None:
    repo = following(make_repo)
    came(repo, [1, 2, 2, 4], 4.5)
    before = users_before(repo, [1, 2, 2, 4])
    assert not read(repo).found.any()
    tick_at(repo, 5)
    assert not read(repo).found.any(), "the item's own tick has not run"
    tick_at(repo, 5, "item_embedding")
    found = read(repo)
    assert found.found.tolist() == [True, False]
    assert found.values[0].tobytes() == placed(before).tobytes()
    assert found.space == repo.vectors().space


def test_later_ticks_add_to_the_others_as_if_all_had_come_at_once(make_repo: MakeRepo) -> None:
    repo = following(make_repo)
    came(repo, [1, 2, 2], 4.5)
    came(repo, [7], 5.5)
    came(repo, [3, 1], 6.5)
    came(repo, [4], 6.6, OTHER)
    first = users_before(repo, [1, 2, 2])
    both(repo, 5)
    second = users_before(repo, [7])
    tick_at(repo, 6)
    third, other = users_before(repo, [3, 1]), users_before(repo, [4])
    tick_at(repo, 7)
    tick_at(repo, 7, "item_embedding")  # follows both of them
    assert read(repo).values[0].tobytes() == placed(np.concatenate([first, second, third])).tobytes()
    assert read(repo).values[1].tobytes() == placed(other).tobytes()


def test_the_stock_command_runs_the_ticks_of_items_after_those_of_users(make_repo: MakeRepo) -> None:
    repo = following(make_repo)
    came(repo, [1, 2], 4.5)
    before = users_before(repo, [1, 2])
    with at(day(5)):
        repo.incremental(day(5))
    assert read(repo).values[0].tobytes() == placed(before).tobytes()


def test_a_user_without_a_vector_counts_for_nothing(make_repo: MakeRepo) -> None:
    repo = following(make_repo)
    came(repo, [STRANGER, 2], 4.5)
    came(repo, [STRANGER], 4.6, OTHER)
    before = users_before(repo, [2])
    both(repo, 5)
    assert read(repo).found.tolist() == [True, False]
    assert read(repo).values[0].tobytes() == placed(before).tobytes()
    came(repo, [STRANGER], 5.5, OTHER)  # by now it has one
    before = users_before(repo, [STRANGER])
    both(repo, 6)
    assert read(repo).values[1].tobytes() == placed(before).tobytes()


def test_trained_items_keep_the_vectors_of_the_encoder(make_repo: MakeRepo) -> None:
    repo = following(make_repo)
    came(repo, [1, 2], 4.5)
    for days in (5, 6, 7):
        both(repo, days)
    assert repo.vectors("item_embedding").values.tobytes() == tiny_encoder(1).encode_items(ITEMS)[0].tobytes()


def test_without_the_declaration_an_unseen_item_has_no_vector(make_repo: MakeRepo) -> None:
    repo = started(make_repo)
    came(repo, [1, 2], 4.5)
    both(repo, 5)
    assert not read(repo).found.any()


def test_what_was_followed_is_not_followed_again(make_repo: MakeRepo) -> None:
    repo = following(make_repo)
    came(repo, [1, 2], 4.5)
    both(repo, 5)
    before, log = read(repo).values.tobytes(), repo.log("item_embedding")
    with at(day(5)):
        outcome = repo.run(day(5), "item_embedding")
    assert (outcome.units, read(repo).values.tobytes()) == (0, before)
    assert repo.log("item_embedding").equals(log)


# ── stops and losses ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_tick_that_was_stopped_anywhere_ends_bit_equal(make_repo: MakeRepo) -> None:
    repo = following(make_repo)
    came(repo, [1, 2, 2], 4.5)
    came(repo, [3, 1], 5.5)
    both(repo, 5)
    tick_at(repo, 6)
    frozen = repo.freeze()

    def end() -> tuple[Any, ...]:
        tick_at(repo, 6, "item_embedding")
        return repo.snapshot(), read(repo).values.tobytes()

    wanted = end()
    for step in ITEM_TICK:
        repo.thaw(frozen)
        with stopping_at(step), pytest.raises(StoppedError):
            tick_at(repo, 6, "item_embedding")
        assert end() == wanted, step


def test_what_a_voided_tick_was_to_follow_is_followed_by_the_next_one(make_repo: MakeRepo) -> None:
    repo = following(make_repo)
    came(repo, [1, 2], 4.5)
    before = users_before(repo, [1, 2])
    tick_at(repo, 5)
    with stopping_at("summed"), pytest.raises(StoppedError):
        tick_at(repo, 5, "item_embedding")
    with repo.redis() as client:
        client.delete(*repo._keys(client))
    with at(day(5)):
        repo.materialize(day(5), ["item_embedding"])  # nothing was staged, and Redis was lost: voided
        restore(repo.store)
    tick_at(repo, 5, "item_embedding")
    assert repo.workspace.ledger.tick("item_embedding", 2).state == "abandoned"
    assert read(repo).values[0].tobytes() == placed(before).tobytes()


def test_a_restored_redis_serves_the_same_and_goes_on_the_same(make_repo: MakeRepo) -> None:
    repo = following(make_repo)
    came(repo, [1, 2, 2], 4.5)
    came(repo, [3], 5.5)
    both(repo, 5)
    frozen, before = repo.freeze(), read(repo).values.tobytes()
    both(repo, 6)
    wanted = read(repo).values.tobytes()
    repo.thaw(frozen)
    with repo.redis() as client:
        client.delete(*repo._keys(client))
    with at(day(5)):
        restore(repo.store)
    assert read(repo).values.tobytes() == before
    both(repo, 6)
    assert read(repo).values.tobytes() == wanted


# ── spaces ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_each_space_knows_its_own_users_only(make_repo: MakeRepo) -> None:
    repo = following(make_repo)
    came(repo, [1, 2], 4.5)
    first = users_before(repo, [1, 2])
    both(repo, 5)
    old = users_before(repo, [3])
    repo.encode_with(tiny_encoder(2))
    with at(day(5)):
        repo.materialize(day(5))
    assert not read(repo).found.any(), "a new space starts anew"
    new = users_before(repo, [3])
    came(repo, [3], 5.5)
    both(repo, 6)
    assert read(repo).values[0].tobytes() == placed(new, seed=2).tobytes()
    (retained,) = repo.fills("retained", view="item_embedding")
    log = repo.log("item_embedding").to_pandas()
    kept = log[(log["fill"] == retained.fill) & (log["item_id"] == NEW)]
    assert kept["embedding"].iloc[-1].tobytes() == placed(np.concatenate([first, old])).tobytes()


def test_an_item_that_the_next_encoder_knows_gets_its_vector(make_repo: MakeRepo) -> None:
    repo = following(make_repo)
    came(repo, [1, 2], 4.5)
    both(repo, 5)
    items = np.append(ITEMS, NEW)
    repo.encode_with(tiny_encoder(2, items=items))
    with at(day(5)):
        repo.materialize(day(5))
    came(repo, [3], 5.5)
    both(repo, 6)
    wanted = tiny_encoder(2, items=items).encode_items(np.array([NEW], np.int64))[0]
    assert read(repo, [NEW]).values.tobytes() == wanted.tobytes()


# ── reads ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_historical_reads_and_neighbors_know_what_online_reads_returned(make_repo: MakeRepo) -> None:
    repo = following(make_repo)
    came(repo, [1, 2], 4.5)
    came(repo, [3], 5.5)
    seen = {4.9: None}
    for days in (5, 6):
        both(repo, days)
        seen[days + 0.5] = read(repo, [NEW]).values[0].tolist()
    asked = pd.DataFrame({"item_id": NEW, "event_timestamp": [moment(day(days)) for days in seen]})
    job = repo.store.get_historical_features(asked, ["item_embedding:embedding"])
    found = [None if value is None else list(value) for value in job.to_df()["embedding"]]
    assert found == list(seen.values())
    near = nearest(repo.store, "item_embedding:embedding", read(repo, [NEW]), len(ITEMS) + 1, metric="cosine")
    assert near.ids[0, 0] == NEW


def test_an_erased_item_stays_away(make_repo: MakeRepo) -> None:
    repo = following(make_repo)
    came(repo, [1, 2], 4.5)
    both(repo, 5)
    with at(day(5)):
        forget(repo.store, "item", NEW)
    assert not read(repo).found.any()
    assert not any(str(NEW) in str(row) for row in repo.log("item_embedding")["item_id"].to_pylist())
    came(repo, [3], 5.5)
    came(repo, [3], 5.6, OTHER)
    both(repo, 6)
    assert read(repo).found.tolist() == [False, True]


# ── policies and declarations ────────────────────────────────────────────────────────────────────────────────


def test_refreshes_of_a_view_that_has_no_other_ticks_are_followed(make_repo: MakeRepo) -> None:
    repo = following(make_repo, "Full(every='1d')")
    came(repo, [1, 2], 4.5)
    came(repo, [3], 5.5)
    first = users_before(repo, [1, 2])
    both(repo, 5)
    second = users_before(repo, [3])
    both(repo, 6)
    assert read(repo).values[0].tobytes() == placed(np.concatenate([first, second])).tobytes()


@pytest.mark.parametrize(
    ("unseen", "words"),
    [("behaviors", "holds no vectors of users"), ("history", "holds no vectors"), ("other", "one space only")],
)
def test_a_view_that_cannot_be_followed_is_refused(make_repo: MakeRepo, unseen: str, words: str) -> None:
    repo = make_repo()
    file = repo.folder / "definitions.py"
    other = 'other = embedding_view("other", entity=user, inputs=Inputs(behaviors, history), policy=Full(), '
    following = PLAIN.replace("encoder=main", f"encoder=main, unseen={unseen}")
    text = file.read_text().replace(PLAIN, f"{other}encoder=EncoderRef('b', dim=8))\n{following}")
    file.write_text(text)
    with pytest.raises(DeclarationError, match=words):
        runpy.run_path(str(file))

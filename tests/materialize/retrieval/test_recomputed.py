"""Histories and activity in the past: what was served, and nothing that came later."""

import numpy as np
import pandas as pd
import pytest
from served_fixture import BEHAVIORS, build, day, items, us

from feast_embeddings.models.errors import DeclarationError

pytestmark = pytest.mark.filterwarnings("ignore:On demand feature view is an experimental feature:RuntimeWarning")


@pytest.fixture
def repo(tmp_path):
    return build(tmp_path / "repo")


def test_a_history_is_what_the_last_published_tick_had_written(repo):
    repo.refresh(1, {1: 1.0})
    repo.tick(1, 2, {1: 1.0, 2: 2.0})
    repo.tick(2, 3, {1: 1.0})
    names = [f"history:history_{name}" for name in ("items", "types", "times", "values")]

    result = repo.ask(names, [(1, day(1.4)), (1, day(1.5)), (1, day(2.6)), (2, day(2.4)), (2, day(2.5)), (1, day(9))])

    # noon of the day is when each is published; the purchase taken back on day 2 had been in the histories
    assert items(result) == [None, [10, 11], [10, 11, 12], None, [20], [11, 12, 13]]
    assert list(result["history_types"][5]) == [1, 0, 0]
    assert list(result["history_times"][2]) == [us(0.25), us(0.5), us(1.5)]
    assert np.isnan(result["history_values"][4][0])
    assert result["history_values"][2].dtype == np.float32


def test_a_refresh_forgets_what_was_taken_back(repo):
    repo.refresh(1, {1: 1.0})
    repo.tick(1, 3, {1: 1.0, 2: 2.0})
    repo.refresh(4, {1: 1.0, 2: 2.0})

    assert items(repo.ask(["history:history_items"], [(1, day(3.6)), (1, day(4.6))])) == [[11, 12, 13], [12, 13, 14]]


def test_a_late_behavior_is_in_the_histories_from_the_tick_that_applied_it(tmp_path):
    late = pd.DataFrame([(1, 15, "view", 0.0, 0.75, 2.5)], columns=BEHAVIORS.columns)
    repo = build(tmp_path / "repo", created=True, behaviors=pd.concat([BEHAVIORS, late], ignore_index=True))
    repo.refresh(1, {1: 1.0})
    repo.tick(1, 2, {1: 1.0, 2: 2.0}, created_from=1)
    repo.tick(2, 3, {1: 1.0}, created_from=2)

    result = repo.ask(["history:history_items"], [(1, day(1.6)), (1, day(2.6)), (1, day(3.6))])

    assert items(result) == [[10, 11], [10, 11, 12], [15, 12, 13]]


@pytest.mark.parametrize("created", [False, True])
def test_a_history_is_as_long_as_the_tick_that_wrote_it_kept(tmp_path, created):
    repo = build(tmp_path / "repo", created=created, behaviors=BEHAVIORS.assign(kind="view"))
    ledger = repo.workspace.ledger
    ledger.update_tick(repo.refresh(1, {1: 1.0}), kept=3)
    ledger.update_tick(repo.tick(1, 1.4, {2: 2.0}, created_from=1), kept=1)  # user 1 did nothing

    assert items(repo.ask(["history:history_items"], [(1, day(2)), (2, day(2))])) == [[10, 11], [20]]


def test_plain_behaviors_give_the_same_histories_from_one_reading(tmp_path):
    plain = BEHAVIORS.assign(kind="view")
    exact, quick = (
        build(tmp_path / name, created=created, behaviors=plain) for name, created in (("a", True), ("b", False))
    )
    rows = [(user, day(number / 4)) for user in (1, 2, 3) for number in range(24)]
    answers = []
    for repo in (exact, quick):
        with_rules = repo.store.get_feature_view("behaviors")
        with_rules.tags["feast_embeddings.cleaning"] = '{"cancellations": false}'
        repo.store.apply([with_rules])
        repo.refresh(1, {1: 1.0})
        repo.tick(1, 2, {1: 1.0, 2: 2.0}, created_from=1)
        repo.tick(2, 3, {1: 1.0}, created_from=2)
        repo.refresh(4, {1: 1.0, 2: 2.0})
        answers.append(items(repo.ask(["history:history_items"], rows)))

    assert answers[0] == answers[1]
    assert answers[0][23] == [11, 13, 14]


def test_activity_counts_up_to_the_time_asked_for_and_nothing_later(repo):
    names = [f"activity:{name}" for name in ("view_7d", "buy_7d", "view_1d", "recency_seconds")]

    result = repo.ask(names, [(1, day(2.5)), (1, day(3)), (1, day(0.25)), (7, day(3)), (2, day(2))])

    # day 2.5: the purchase of day 0.5 is taken back at that very time, so it still counts strictly before it
    assert result["buy_7d"].fillna(-1).tolist() == [1, 0, -1, -1, 0]
    assert result["view_7d"].fillna(-1).tolist() == [2, 3, -1, -1, 1]
    assert result["view_1d"].fillna(-1).tolist() == [1, 1, -1, -1, 1]
    assert result["recency_seconds"].fillna(-1).tolist() == [86_400, 21_600, -1, -1, 64_800]


def test_activity_by_created_time_is_refused(tmp_path):
    repo = build(tmp_path / "repo", created=True)

    with pytest.raises(DeclarationError, match="'activity' counts by event time"):
        repo.ask(["activity:view_7d"], [(1, day(2))], filter_by_created_timestamp=True)

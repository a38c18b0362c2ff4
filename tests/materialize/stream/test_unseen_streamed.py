"""Items that the encoder never saw, of behaviors that come as a stream: item ticks follow its micro-batches."""

from __future__ import annotations

import numpy as np
import pytest
from repo_fixture import HOUR, MakeRepo, SmallRepo, StoppedError, at, day, stopping_at
from stream_fixture import SINCE, behavior, by_hand, send, streamed
from ticks_fixture import tick_at
from unseen_fixture import NEW, OTHER, following, placed, read, users_before

pytestmark = pytest.mark.filterwarnings("ignore:Stream feature views are experimental:RuntimeWarning")


def micro_batches(repo: SmallRepo) -> tuple[np.ndarray, np.ndarray]:
    """Two of them; vectors of the users that came to NEW, and to OTHER, before they came."""
    first, other = users_before(repo, [3, 4, 3]), users_before(repo, [6])
    with at(day(SINCE + 1)) as clock:
        send(repo, [behavior(user, NEW, SINCE + 0.1 + number / 10) for number, user in enumerate((3, 4, 3))])
        send(repo, [behavior(6, OTHER, SINCE + 0.2), behavior(6, 110, SINCE + 0.3)])
        with by_hand(repo) as lane:
            assert lane.tick() is not None
        clock.advance(HOUR)
        second = users_before(repo, [3])
        send(repo, [behavior(3, NEW, SINCE + 0.6)])
        with by_hand(repo) as lane:
            assert lane.tick() is not None
    return np.concatenate([first, second]), other


def test_one_tick_of_items_follows_the_micro_batches_that_were_published(make_repo: MakeRepo) -> None:
    repo = following(make_repo, start=streamed)
    before, other = micro_batches(repo)
    assert not read(repo).found.any()
    tick_at(repo, SINCE + 2, "item_embedding")
    assert read(repo).values[0].tobytes() == placed(before).tobytes()
    assert read(repo).values[1].tobytes() == placed(other).tobytes()
    ticks = len(repo.workspace.ledger.applied_ticks("item_embedding"))
    tick_at(repo, SINCE + 3, "item_embedding")
    assert len(repo.workspace.ledger.applied_ticks("item_embedding")) == ticks == 2


def test_a_stopped_one_follows_each_micro_batch_once(make_repo: MakeRepo) -> None:
    repo = following(make_repo, start=streamed)
    before, _ = micro_batches(repo)
    for step in ("recorded", "summed", "written"):
        with stopping_at(step), pytest.raises(StoppedError):
            tick_at(repo, SINCE + 2, "item_embedding")
    tick_at(repo, SINCE + 2, "item_embedding")
    assert read(repo).values[0].tobytes() == placed(before).tobytes()

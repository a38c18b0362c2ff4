"""A Redis that was lost in the middle of a stream is filled again, and the stream goes on as if nothing had been."""

from __future__ import annotations

from typing import Any

import pytest
from repo_fixture import HOUR, MakeRepo, SmallRepo, StoppedError, at, day, stopping_at
from stream_fixture import SINCE, by_hand, clicks, send, streamed

from feast_embeddings.materialize.upkeep import restore

pytestmark = pytest.mark.filterwarnings("ignore:Stream feature views are experimental:RuntimeWarning")


def _lived(repo: SmallRepo, *, lost: bool, died_at: str | None = None) -> dict[str, Any]:
    sent = clicks(48, 3, SINCE, SINCE + 0.5)
    with at(day(SINCE + 1)) as clock:
        with by_hand(repo) as lane:
            for number in range(3):
                send(repo, sent[number * 12 : number * 12 + 12])
                lane.tick()
                clock.advance(HOUR)
        send(repo, sent[36:])
        if died_at is not None:
            with pytest.raises(StoppedError), stopping_at(died_at), by_hand(repo) as lane:
                lane.tick()
        if lost:
            with repo.redis() as client:
                kept = [key for key in client.scan_iter() if b":behaviors:" not in key and b":partitions" not in key]
                client.delete(*(key for key in kept if repo.project.encode() in key))
            restore(repo.store)
        with by_hand(repo) as lane:
            lane.tick()
    seen = repo.snapshot()
    return {name: value for name, value in seen.items() if not name.endswith("log")}


@pytest.mark.parametrize("died_at", [None, "members", "staged", "logged"])
def test_what_was_lost_is_restored_and_the_stream_goes_on_alike(make_repo: MakeRepo, died_at: str | None) -> None:
    repo = streamed(make_repo, "Incremental(alpha=0.4)")
    frozen = repo.freeze()
    undisturbed = _lived(repo, lost=False, died_at=died_at)
    repo.thaw(frozen)
    assert _lived(repo, lost=True, died_at=died_at) == undisturbed

"""Small files become few, and nothing that reads return changes."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from repo_fixture import USERS, MakeRepo, SmallRepo, at, day
from stream_fixture import SINCE, by_hand, clicks, send, streamed

from feast_embeddings.materialize.files.appended import part_range, parts_of, rows_of_ticks
from feast_embeddings.materialize.files.compaction import Compacted, Compaction
from feast_embeddings.materialize.ledger import compaction_resource, held, paused
from feast_embeddings.materialize.stream import replay_stream
from feast_embeddings.materialize.ticks import listening
from feast_embeddings.materialize.upkeep import forget

pytestmark = pytest.mark.filterwarnings("ignore:Stream feature views are experimental:RuntimeWarning")
TICKS = 12


@pytest.fixture
def repo(make_repo: MakeRepo) -> SmallRepo:
    """A repo whose stream has had a dozen micro-batches."""
    made = streamed(make_repo, "Incremental(alpha=0.4)")
    sent = clicks(TICKS * 6, 1, SINCE, SINCE + 0.5)
    with at(day(SINCE + 1)) as clock, by_hand(made) as lane:
        for number in range(TICKS):
            send(made, sent[number * 6 : number * 6 + 6])
            assert lane.tick() is not None
            clock.advance(1_000_000)
    return made


def compact(repo: SmallRepo, **options: Any) -> Compacted:
    """What a compaction does on the day of the micro-batches."""
    with at(day(SINCE + 1) + 3_600_000_000):
        return compaction(repo, **options).run()


def compaction(repo: SmallRepo, **options: Any) -> Compaction:
    log, behaviors = repo.workspace.log(repo.spec()), repo.folder / "data" / "behaviors"
    stream = repo.workspace.ledger
    return Compaction(stream, repo.project, "user_embedding", log, behaviors, **{"fewest": 4, "grace_s": 0} | options)


def seen(repo: SmallRepo) -> dict[str, Any]:
    """Everything a reader could see."""
    log = repo.behaviors(day(SINCE + 2))
    return {**repo.snapshot(), "behaviors": log.table.sort_by("event_time").to_pydict()}


def files(repo: SmallRepo) -> tuple[list[Path], list[Path]]:
    log = repo.workspace.log(repo.spec()).folder / "live"
    return sorted(log.glob("*.parquet")), sorted((repo.folder / "data" / "behaviors").glob("stream-*"))


def test_rows_and_reads_are_unchanged_and_files_are_few(repo: SmallRepo) -> None:
    before = seen(repo)
    assert [len(each) for each in files(repo)] == [TICKS + 2, TICKS]
    done = compact(repo)
    assert (done.merged, done.made) == (2 * TICKS, 2)
    assert [len(each) for each in files(repo)] == [3, 1]
    assert seen(repo) == before
    replayed = replay_stream(repo.store)
    assert sum(each.ticks for each in replayed) >= TICKS
    assert all(not each.diverged for each in replayed)
    assert compact(repo) == Compacted()


def test_merged_files_are_merged_again_with_what_comes_later(repo: SmallRepo) -> None:
    compact(repo)
    with at(day(SINCE + 1) + 60_000_000), by_hand(repo) as lane:
        for number in range(5):
            send(repo, clicks(4, 10 + number, SINCE, SINCE + 0.5))
            lane.tick()
    before = seen(repo)
    compact(repo)
    assert [len(each) for each in files(repo)] == [3, 1]
    assert seen(repo) == before
    replayed = replay_stream(repo.store)
    assert sum(each.ticks for each in replayed) >= TICKS
    assert all(not each.diverged for each in replayed)


def test_files_that_readers_may_have_listed_stay_for_a_while(repo: SmallRepo) -> None:
    before = seen(repo)
    compact(repo, grace_s=60)
    assert len(files(repo)[0]) == TICKS + 3
    assert repo.vectors().values.tobytes() == before["user_embedding read"]
    (merged,) = (path for path in files(repo)[0] if path.stem.count(".") == 1)
    os.utime(merged, (time.time() - 120, time.time() - 120))
    compact(repo, grace_s=60)
    assert len(files(repo)[0]) == 3
    assert seen(repo) == before


def test_a_stop_between_writing_and_removing_is_tidied_up(repo: SmallRepo, monkeypatch: pytest.MonkeyPatch) -> None:
    before = seen(repo)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", _no_unlink)
        with pytest.raises(KeyboardInterrupt):
            compact(repo)
    compact(repo)
    assert [len(each) for each in files(repo)] == [3, 1]
    assert seen(repo) == before


def _no_unlink(self: Path, missing_ok: bool = False) -> None:
    if self.suffix == ".parquet" and not self.name.startswith("."):
        raise KeyboardInterrupt


def test_who_reads_while_files_are_put_together_finds_each_behavior_once(repo: SmallRepo) -> None:
    folder = repo.folder / "data" / "behaviors"
    single = files(repo)[1][2]
    kept, (number, _) = single.read_bytes(), part_range(single, "user_embedding")
    ticks = list(range(number - 1, number + 2))
    before = rows_of_ticks(folder, "user_embedding", ticks)
    compact(repo)
    single.write_bytes(kept)  # the merged file is there, this one not gone yet
    assert before is not None
    assert rows_of_ticks(folder, "user_embedding", ticks).equals(before)
    assert all(not each.diverged for each in replay_stream(repo.store))


def test_a_pause_keeps_it_out(repo: SmallRepo) -> None:
    with paused(repo.workspace.ledger, repo.project, "user_embedding"):
        assert compact(repo) == Compacted()


@pytest.mark.parametrize("merged", [True, False])
def test_who_is_forgotten_is_gone_from_files_merged_before_or_after(repo: SmallRepo, merged: bool) -> None:
    if merged:
        compact(repo)
    rows = _appended(repo).count(USERS[2])
    receipt = forget(repo.store, "user", str(USERS[2]))
    assert receipt.removed["behaviors that the stream of user_embedding appended"] == rows > 0
    assert merged or compact(repo).made
    assert USERS[2] not in _appended(repo)
    assert USERS[2] not in repo.log()["user_id"].to_pylist()
    assert USERS[2] not in repo.behaviors(day(SINCE + 2)).entities
    assert all(not each.diverged for each in replay_stream(repo.store))


def _appended(repo: SmallRepo) -> list[int]:
    parts = parts_of(repo.folder / "data" / "behaviors", "user_embedding")
    return [user for part in parts for user in pq.read_table(part, partitioning=None)["user"].to_pylist()]


def test_a_refresh_reads_nothing_before_a_compaction_that_was_at_work_has_ended(repo: SmallRepo) -> None:
    # given a compaction that is at work when a refresh is recorded
    ledger, steps = repo.workspace.ledger, list[str]()
    begun, ended = threading.Event(), threading.Event()

    def compacting() -> None:
        with held(ledger, compaction_resource(repo.project, "user_embedding")):
            begun.set()
            ended.wait(0.3)
            steps.append("compacted")

    def listener(step: str) -> None:
        if step == "recorded":
            other.start()
            assert begun.wait(10)
        steps.append(step)

    other = threading.Thread(target=compacting)
    with at(day(SINCE + 2)), listening(listener):
        repo.run(day(SINCE + 2), refresh=True)
    other.join()
    # then the refresh has waited for it
    assert steps.index("recorded") < steps.index("compacted") < steps.index("staged")

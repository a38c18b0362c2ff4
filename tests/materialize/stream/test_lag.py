"""Lag is real: whatever holds a worker up, it says how long the oldest behavior has been waiting, and is not ready."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from repo_fixture import MakeRepo, SmallRepo, StoppedError, stopping_at
from sources_fixture import KafkaWorld
from stream_fixture import SINCE, as_rows, behavior, by_hand, send, streamed
from typer.testing import CliRunner
from watched_fixture import Watched, held_up, problems, until, watched

from feast_embeddings.materialize.cli import app
from feast_embeddings.materialize.clock import now_us
from feast_embeddings.materialize.ledger import paused
from feast_embeddings.materialize.stream.declared import SourceOptions
from feast_embeddings.materialize.stream.source import partition_of

ONE, OTHER = (next(user for user in range(1, 13) if partition_of(user, 2) == lane) for lane in range(2))
MAX_LAG_S = 1.0
SLACK_S = 0.1
"""Redis and Kafka keep milliseconds, and people are shown tenths of a second."""


@dataclass
class Feed:
    """A source of a worker, and who sends to it; a file cannot be sent to any more."""

    source: SourceOptions
    send: Callable[[list[dict[str, Any]]], None]


def feed_of(kind: str, repo: SmallRepo, tmp_path: Path) -> Feed:
    if kind == "redis":
        return Feed(SourceOptions(), lambda behaviors: send(repo, behaviors))
    if kind == "kafka":
        world = KafkaWorld()
        source = SourceOptions("kafka", world.brokers, world.topic)
        return Feed(source, lambda behaviors: world.send([each["user"] for each in behaviors], behaviors))
    path = tmp_path / "recorded.parquet"
    both = [behavior(user, 101, SINCE + 0.1) for user in (ONE, OTHER)]
    pq.write_table(as_rows(both), path)
    return Feed(SourceOptions("parquet", path=str(path), speed=1.0), lambda _: None)


def check_age(seen: Watched, since_us: tuple[int, int]) -> None:
    """Everything that tells the age of the oldest behavior tells it right; it came within ``since_us``."""

    def right(age_s: float, asked_us: int) -> bool:
        least, most = (asked_us - since_us[1]) / 1e6, (now_us() - since_us[0]) / 1e6
        return least - SLACK_S <= age_s <= most + SLACK_S

    asked_us = now_us()
    assert right(seen.value("stream_lag_seconds"), asked_us)
    status, found = problems(seen.port, "/readyz")
    assert (status, list(found)) == (503, ["lag"])
    said = re.search(r"came ([0-9.]+) s ago, more than 1 s", found["lag"])
    assert said is not None
    assert right(float(said[1]), asked_us)
    shown = re.search(r"([0-9.]+) s", seen.screen().partition("Lag")[2])
    assert shown is not None
    assert right(float(shown[1]), asked_us)
    assert problems(seen.port, "/healthz") == (200, {})


def check_served(seen: Watched) -> None:
    """Nothing waits any more, soon."""
    until(lambda: seen.value("stream_lag_behaviors") == 0)
    assert [seen.value(f"stream_{name}") for name in ("lag_seconds", "queued_behaviors")] == [0, 0]
    assert problems(seen.port, "/readyz") == (200, {})
    assert "0.0 ms" in seen.screen().partition("Lag")[2]


@pytest.mark.parametrize("kind", ["redis", "kafka", "parquet"])
def test_a_worker_that_is_held_up_says_how_long_the_oldest_behavior_of_all_lanes_waits(
    kind: str, make_repo: MakeRepo, tmp_path: Path
) -> None:
    repo = streamed(make_repo)
    feed, began_us = feed_of(kind, repo, tmp_path), now_us()
    feed.send([behavior(ONE, item, SINCE + 0.1) for item in (101, 102)])
    sent_us = now_us()
    with held_up() as held, watched(repo, feed.source, max_lag_s=MAX_LAG_S) as seen:
        assert held.there.wait(30)
        since_us = (began_us, now_us() if kind == "parquet" else sent_us)  # a row comes when its file is opened
        time.sleep(2 * MAX_LAG_S)
        check_age(seen, since_us)
        feed.send([behavior(OTHER, 101, SINCE + 0.1)])
        until(lambda: seen.value("stream_ticks_total") == 1)  # the other lane goes on
        feed.send([behavior(ONE, item, SINCE + 0.2) for item in (103, 104)])
        time.sleep(1)
        check_age(seen, since_us)
        waiting = 1 if kind == "parquet" else 4
        assert [seen.value(f"stream_{name}_behaviors") for name in ("lag", "queued")] == [waiting, waiting]
        held.free.set()
        check_served(seen)
        assert seen.samples("stream_behaviors_total")["applied", "user_embedding"] == waiting + 1


@pytest.mark.parametrize("kind", ["redis", "kafka"])
def test_what_comes_during_a_pause_waits_as_well(kind: str, make_repo: MakeRepo, tmp_path: Path) -> None:
    repo = streamed(make_repo)
    feed, ledger = feed_of(kind, repo, tmp_path), repo.workspace.ledger
    with watched(repo, feed.source, max_lag_s=MAX_LAG_S) as seen:
        until(lambda: problems(seen.port, "/readyz") == (200, {}))
        with paused(ledger, repo.project, "user_embedding"):
            began_us = now_us()
            feed.send([behavior(ONE, 101, SINCE + 0.1)])
            since_us = (began_us, now_us())
            time.sleep(2 * MAX_LAG_S)
            check_age(seen, since_us)
            with watched(repo, feed.source) as late:  # it began during the pause, and cannot know
                time.sleep(1)
                assert "nobody looked" in problems(late.port, "/readyz")[1]["lag"]
        check_served(seen)


def test_status_tells_what_waits_though_nobody_works_on_it(make_repo: MakeRepo) -> None:
    repo = streamed(make_repo)

    def told() -> tuple[str, float | None]:
        done = CliRunner().invoke(app, ["status"], catch_exceptions=False)
        row = re.search(r"user_embedding\s+│\s+(\d)\s+│ (none|[0-9.]+ s)", done.output.partition("Streams in Redis")[2])
        assert row is not None, done.output
        return row[1], None if row[2] == "none" else float(row[2][:-2])

    began_us = now_us()
    send(repo, [behavior(ONE, 101, SINCE + 0.1), behavior(OTHER, 101, SINCE + 0.1)])
    sent_us = now_us()
    for left_at in (None, "recorded", "written"):
        if left_at is not None:  # by a worker that died there
            with pytest.raises(StoppedError), stopping_at(left_at), by_hand(repo) as lane:
                lane.tick()
        time.sleep(0.5)
        asked_us = now_us()
        workers, age_s = told()
        assert workers == "0"
        assert age_s is not None
        assert (asked_us - sent_us) / 1e6 - SLACK_S <= age_s <= (now_us() - began_us) / 1e6 + SLACK_S
    with by_hand(repo):
        assert told() == ("0", None)

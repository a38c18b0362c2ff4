"""Micro-batches become ticks: recorded first, applied once, whatever dies, comes twice, late, or out of order."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from repo_fixture import HOUR, USERS, MakeRepo, SmallRepo, StoppedError, at, day, stopping_at, tiny_encoder
from stream_fixture import PARTITIONS, SINCE, behavior, by_hand, clicks, send, streamed

from feast_embeddings.materialize.files import PoisonMessages
from feast_embeddings.materialize.ledger import Ledger
from feast_embeddings.materialize.online import stream_key
from feast_embeddings.materialize.stream import replay_stream
from feast_embeddings.materialize.stream.judge import TOO_LATE
from feast_embeddings.materialize.stream.push import append_behaviors
from feast_embeddings.materialize.ticks import held_back, listening
from feast_embeddings.models.errors import DeclarationError, HeldError
from feast_embeddings.transformations import Histories

STEPS = ("recorded", "members", "staged", "window", "chunk", "written", "logged", "published")
pytestmark = pytest.mark.filterwarnings("ignore:Stream feature views are experimental:RuntimeWarning")


def expected(repo: SmallRepo, days: float) -> np.ndarray:
    """Vectors of everybody by hand, of all that the behavior log holds."""
    return tiny_encoder(1).encode(Histories(repo.behaviors(day(days))).as_of(USERS, day(days), 10))


def totals(repo: SmallRepo) -> dict[str, int]:
    with by_hand(repo) as lane:
        return lane.ledger.stream_counts("user_embedding")


def test_a_click_changes_the_vector_and_joins_the_behavior_log(make_repo: MakeRepo) -> None:
    repo = streamed(make_repo)
    before = repo.vectors().values
    send(repo, [behavior(3, 110, SINCE + 0.1), behavior(5, 111, SINCE + 0.2)])
    with at(day(SINCE + 1)), by_hand(repo) as lane:
        tick = lane.tick()
    assert tick is not None
    changed = (repo.vectors().values != before).any(axis=1)
    assert set(USERS[changed]) == {3, 5}
    log = repo.behaviors(day(SINCE + 1))
    assert {(3, 110), (5, 111)} <= set(zip(np.repeat(log.entities, np.diff(log.offsets)), log.items, strict=True))
    found = np.isin(USERS, [3, 5])
    np.testing.assert_array_equal(repo.vectors().values[found], expected(repo, SINCE + 1)[found])


@pytest.mark.parametrize(
    ("policy", "deaths"),
    [
        ("Incremental(alpha=0.5)", [[step] for step in STEPS] + [["members", "staged", "written"]]),
        ("Incremental(alpha=0.5, context='new')", [["staged"], ["chunk"]]),
        ("Incremental()", [["chunk"]]),
    ],
)
def test_wherever_the_worker_dies_the_next_one_ends_in_the_same_bits(
    make_repo: MakeRepo, policy: str, deaths: list[list[str]]
) -> None:
    sent = clicks(24, 1, SINCE, SINCE + 0.5)
    repo = streamed(make_repo, policy)
    frozen = repo.freeze()
    undisturbed = _streaming(repo, sent, [])
    for steps in deaths:
        repo.thaw(frozen)
        assert _streaming(repo, sent, steps) == undisturbed, steps


def _streaming(repo: SmallRepo, sent: list[dict[str, Any]], deaths: list[str]) -> dict[str, Any]:
    """Apply behaviors in three micro-batches, the worker dying at steps on the way; what readers may see."""
    with at(day(SINCE + 1)) as clock:
        for number in range(3):
            send(repo, sent[number * 8 : number * 8 + 8])
            if number == 1:
                for step in deaths:
                    with pytest.raises(StoppedError), stopping_at(step), by_hand(repo) as lane:
                        lane.tick()
            with by_hand(repo) as lane:
                while lane.tick() is not None:
                    pass
            clock.advance(HOUR)
        with by_hand(repo) as lane:
            counts = lane.ledger.stream_counts("user_embedding")
    seen = repo.snapshot()
    logs = {name: seen.pop(name) for name in list(seen) if name.endswith("log")}
    columns = [logs["user_embedding log"][name] for name in ("fill", "tick", "user_id", "embedding")]
    return {**seen, "log": list(zip(*columns, strict=True)), "counts": counts}


def test_a_behavior_delivered_again_is_counted_and_not_applied(make_repo: MakeRepo) -> None:
    repo = streamed(make_repo)
    sent = clicks(20, 2, SINCE, SINCE + 0.5)
    with at(day(SINCE + 1)):
        for part in (sent[:12], sent[6:], sent, sent[::-1]):
            send(repo, part)
            with by_hand(repo) as lane:
                lane.tick()
        counts = totals(repo)
    assert counts == {"read": 12 + 14 + 40, "applied": 20, "deduplicated": 46} | _late(counts)
    np.testing.assert_array_equal(_active(repo, sent), _active(repo, sent, expected(repo, SINCE + 1)))


def test_the_next_worker_recognizes_what_ticks_applied_that_the_ledger_has_forgotten(make_repo: MakeRepo) -> None:
    repo = streamed(make_repo)
    sent = clicks(40, 1, SINCE, SINCE + 0.5)
    with by_hand(repo) as lane:
        for start in range(0, 40, 10):
            send(repo, sent[start : start + 10])
            lane.tick()
        assert lane.ledger.prune("user_embedding", lane.ledger.stream_end_us("user_embedding") or 0) == 3
    with by_hand(repo) as lane:
        send(repo, sent)
        lane.tick()
        counts = lane.ledger.stream_counts("user_embedding")
    assert (counts["read"], counts["applied"], counts["deduplicated"]) == (80, 40, 40)


def test_what_a_dead_worker_recorded_is_not_trimmed_before_it_is_finished(make_repo: MakeRepo) -> None:
    repo = streamed(make_repo)
    send(repo, clicks(20, 1, SINCE, SINCE + 0.5))
    for step in ("recorded", "members"):
        with pytest.raises(StoppedError), stopping_at(step), by_hand(repo) as lane:
            lane.tick()
    with repo.redis() as client:
        keys = [stream_key(repo.project, "behaviors", partition) for partition in range(PARTITIONS)]
        assert sum(client.xpending(key, "user_embedding")["pending"] for key in keys) == 20
    with by_hand(repo):
        pass
    with repo.redis() as client:
        assert sum(client.xpending(key, "user_embedding")["pending"] for key in keys) == 0


def test_no_micro_batch_is_recorded_while_a_refresh_holds_them_back(make_repo: MakeRepo) -> None:
    repo = streamed(make_repo)
    send(repo, clicks(20, 1, SINCE, SINCE + 0.5))
    ledger = repo.workspace.ledger
    with at(day(SINCE + 1)), by_hand(repo) as lane:
        with held_back(ledger, repo.project, "user_embedding"), pytest.raises(HeldError):
            lane.tick()
        assert ledger.micro_batches("user_embedding") == ledger.open_micro_batches("user_embedding") == []
    with at(day(SINCE + 1)), by_hand(repo) as lane:
        while lane.tick() is not None:
            pass
    assert totals(repo)["applied"] == 20


def test_a_cutover_ends_however_busy_the_stream_is(make_repo: MakeRepo, monkeypatch: pytest.MonkeyPatch) -> None:
    # given a stream that has something to apply whenever a cutover looks
    repo = streamed(make_repo)
    finish_cutover, outcomes = Ledger.finish_cutover, list[str]()

    with at(day(SINCE + 2)) as clock, by_hand(repo) as lane:

        def tick() -> str:
            send(repo, clicks(3, len(outcomes) + 1, SINCE + 1, SINCE + 2))
            clock.advance(1_000_000)
            try:
                lane.tick()
            except HeldError:
                return "held"
            return "applied"

        def finish(*arguments: Any, **named: Any) -> bool:
            outcomes.append(tick())
            return finish_cutover(*arguments, **named)

        def listener(step: str) -> None:
            if step in ("cutover-switched", "cutover-logged"):
                outcomes.append(tick())

        tick()
        monkeypatch.setattr(Ledger, "finish_cutover", finish)
        repo.encode_with(tiny_encoder(2))
        with listening(listener):
            repo.run(day(SINCE + 2), "item_embedding", refresh=True)
            repo.run(day(SINCE + 2), refresh=True)
    # then it is held back for the last moment alone, and what it applied before is live, to the bit
    assert outcomes == ["applied", "applied", "held"]
    assert [fill.space for fill in repo.fills("live")] != [fill.space for fill in repo.fills("retained")]
    assert all(not each.diverged for each in replay_stream(repo.store))


def test_a_stream_refuses_behavior_types_in_another_order_before_it_records_a_tick(make_repo: MakeRepo) -> None:
    # given a contract whose types were re-ordered and applied while the stream stood still
    repo = streamed(make_repo)
    declared = repo.folder / "definitions.py"
    text = declared.read_text()
    types = 'types=(BehaviorType("view"), BehaviorType("purchase"))'
    assert types in text
    declared.write_text(text.replace(types, 'types=(BehaviorType("purchase"), BehaviorType("view"))'))
    repo.apply()
    send(repo, clicks(5, 1, SINCE, SINCE + 0.5))
    # then no worker begins: purchases would be read as views
    with at(day(SINCE + 1)), pytest.raises(DeclarationError, match="only be added at the end"), by_hand(repo):
        pass
    assert repo.workspace.ledger.micro_batches("user_embedding") == []


def test_published_times_grow_also_on_a_host_whose_clock_is_behind(make_repo: MakeRepo) -> None:
    repo = streamed(make_repo)
    ticks = []
    for number, host in enumerate((day(SINCE + 1), day(SINCE + 1) - 3_600_000_000, day(SINCE + 1) + 1_000_000)):
        with at(host), by_hand(repo) as lane:
            send(repo, clicks(5, number, SINCE, SINCE + 0.5))
            ticks.append(lane.tick())
    published = [repo.workspace.ledger.tick("user_embedding", tick.number).published_us or 0 for tick in ticks if tick]
    assert len(published) == 3
    assert published == sorted(set(published))
    assert all(not each.diverged for each in replay_stream(repo.store))


def test_order_within_and_between_micro_batches_does_not_count(make_repo: MakeRepo) -> None:
    sent = clicks(30, 3, SINCE, SINCE + 0.5)
    found = []
    repo = streamed(make_repo)
    frozen = repo.freeze()
    for seed in range(3):
        repo.thaw(frozen)
        random.Random(seed).shuffle(sent)  # noqa: S311 - a shuffle
        with at(day(SINCE + 1)), by_hand(repo) as lane:
            for start in range(0, 30, 10):
                send(repo, sent[start : start + 10])
                lane.tick()
        found.append(repo.vectors().values.tobytes())
    assert len(set(found)) == 1
    np.testing.assert_array_equal(_active(repo, sent), _active(repo, sent, expected(repo, SINCE + 1)))


def test_late_behaviors_are_applied_and_counted_and_too_late_ones_refused(make_repo: MakeRepo) -> None:
    repo = streamed(make_repo)
    with at(day(SINCE + 1)), by_hand(repo, lateness_us=18 * HOUR) as lane:
        send(repo, [behavior(3, 110, SINCE + 0.9)])
        lane.tick()
        send(repo, [behavior(3, 111, SINCE + 0.5), behavior(3, 112, SINCE + 0.1), behavior(3, 113, SINCE + 2)])
        lane.tick()
        counts = lane.ledger.stream_counts("user_embedding")
    assert counts == {
        "read": 4, "applied": 2, "late": 1, f"quarantined: {TOO_LATE}": 1, "quarantined: event time in the future": 1,
    }  | {"deduplicated": 0}  # fmt: skip
    quarantined = repo.workspace.quarantine().read("user_embedding")
    assert set(quarantined["item"].to_pylist()) == {"112", "113"}


def test_poison_is_kept_with_its_bytes_and_the_stream_goes_on(make_repo: MakeRepo) -> None:
    repo = streamed(make_repo)
    with repo.redis() as client:
        append_behaviors(client, repo.project, "behaviors", 2, [1, 1], [b"\x00\xffnothing", b'{"user":'])
    send(repo, [behavior(3, 110, SINCE + 0.1)])
    with at(day(SINCE + 1)), by_hand(repo) as lane:
        lane.tick()
        counts = lane.ledger.stream_counts("user_embedding")
    assert counts == {"read": 3, "applied": 1, "deduplicated": 0, "quarantined: poison message": 2}
    kept = PoisonMessages(repo.workspace.state / "quarantine" / "messages").read("user_embedding")
    assert kept["payload"].to_pylist() == [b"\x00\xffnothing", b'{"user":']
    assert all("JSON" in reason for reason in kept["reason"].to_pylist())


def test_the_cleaning_rules_know_what_was_applied_before(make_repo: MakeRepo) -> None:
    repo = streamed(make_repo, rules="max_per_day=3")
    with at(day(SINCE + 1)), by_hand(repo) as lane:
        for part in range(3):
            send(repo, [behavior(3, 101 + part * 2 + n, SINCE + 0.1 + part / 10 + n / 100) for n in range(2)])
            lane.tick()
        counts = lane.ledger.stream_counts("user_embedding")
    assert (counts["applied"], counts["quarantined: bot"]) == (3, 3)


def _active(repo: SmallRepo, sent: list[dict[str, Any]], vectors: np.ndarray | None = None) -> np.ndarray:
    rows = np.isin(USERS, [each["user"] for each in sent])
    return (repo.vectors().values if vectors is None else vectors)[rows]


def _late(counts: dict[str, int]) -> dict[str, int]:
    return {"late": counts["late"]} if "late" in counts else {}

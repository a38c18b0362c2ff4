"""Laws that every source of behaviors obeys."""

from __future__ import annotations

import contextlib
import time

import numpy as np
import pytest
from sources_fixture import PARTITIONS, USERS, World, drain, numbers

from feast_embeddings.materialize.clock import now_us
from feast_embeddings.materialize.ledger import ranges_from_json, ranges_to_json
from feast_embeddings.materialize.stream.source import (
    Delivery,
    Source,
    lane_partitions,
    partition_of,
)
from feast_embeddings.models.errors import LeaseError

N = 60
CLOCK_US = 1000


def by_place(deliveries: list[Delivery]) -> dict[tuple[int, int], bytes]:
    return {
        (partition, offset): payload
        for each in deliveries
        for partition, offset, payload in zip(
            each.partitions.tolist(), each.offsets.tolist(), each.payloads, strict=True
        )
    }


def test_everything_published_is_delivered_once_and_in_the_order_of_its_partition(world: World) -> None:
    world.publish(N)
    source = world.open()
    found = drain(source, N, most=16)
    source.close()
    assert sorted(numbers(found)) == list(range(N))
    for partition in range(PARTITIONS):
        offsets = np.concatenate([each.offsets[each.partitions == partition] for each in found])
        assert (np.diff(offsets) > 0).all()
        sent = [
            n
            for n, p in zip(numbers(found), np.concatenate([d.partitions for d in found]), strict=True)
            if p == partition
        ]
        assert sent == sorted(sent)


def test_a_batch_is_bounded_and_an_empty_source_answers_in_time(world: World) -> None:
    world.publish(N)
    source = world.open()
    found = drain(source, N, most=8)
    assert max(map(len, found)) <= 8
    assert source.next_batch(8, 0.05) is None
    source.close()


def test_a_recorded_range_is_read_again_with_the_same_bytes(world: World) -> None:
    world.publish(N)
    source = world.open()
    first, *_ = found = drain(source, N, most=16)
    recorded = ranges_from_json(ranges_to_json(first.ranges))
    assert by_place([source.replay(recorded)]) == by_place([first])
    source.close()
    fresh = world.open()
    assert by_place([fresh.replay(recorded)]) == by_place([first])
    assert by_place(found).items() >= by_place([first]).items()
    fresh.close()


def test_what_was_not_committed_comes_again_after_a_crash(world: World) -> None:
    world.publish(N)
    lost = world.open()
    before = drain(lost, N, most=16)
    taken_over = world.open()  # the first one never closes: its worker is dead
    assert by_place(drain(taken_over, N)) == by_place(before)
    taken_over.close()
    lost.close()


def test_a_worker_that_does_not_know_it_lost_its_lane_takes_nothing_from_the_next(world: World) -> None:
    world.publish(N)
    asleep = world.open()
    taken_over = world.open()
    with contextlib.suppress(LeaseError):
        asleep.next_batch(N, 0.2)
    assert sorted(numbers(drain(taken_over, N))) == list(range(N))
    taken_over.close()
    asleep.close()


@pytest.mark.parametrize("told", ["the source", "the ledger alone"])
def test_a_lane_resumes_exactly_where_it_was(world: World, told: str) -> None:
    world.publish(N)
    source = world.open()
    done = source.next_batch(24, 5)
    assert done is not None
    rest = drain(source, N - len(done))
    if told == "the source":
        source.commit(done.positions)
    source.close()
    resumed = world.open(after=done.positions if told == "the ledger alone" else None)
    assert by_place(drain(resumed, N - len(done))) == by_place(rest)
    resumed.close()


def test_what_comes_later_is_delivered_later_and_the_lag_says_how_much_waits(world: World) -> None:
    world.publish(N)
    source = world.open()
    found = drain(source, N)
    source.commit(source.snapshot())
    source.close()
    world.publish(10)
    resumed = world.open()
    assert sum(resumed.lag().values()) == 10
    later = drain(resumed, 10)
    assert sorted(numbers(found) + numbers(later)) == list(range(N + 10))
    assert sum(resumed.lag().values()) == 0
    resumed.close()


def test_what_is_not_committed_waits_since_it_came_whether_it_was_delivered_or_not(world: World) -> None:
    began_us = now_us() - CLOCK_US
    world.publish(N // 2)
    time.sleep(0.3)
    later_us = now_us() - CLOCK_US
    world.publish(N // 2)
    source = world.open()
    assert began_us <= _oldest(source) <= now_us()
    first, found = _oldest(source), drain(source, N, most=16)
    assert abs(_oldest(source) - first) <= CLOCK_US
    early = [(n, place) for n, place in zip(numbers(found), _places(found), strict=True) if n < N // 2]
    source.commit({partition: offset for _, (partition, offset) in early})
    assert later_us <= _oldest(source) <= now_us()
    source.close()
    taken_over = world.open()  # by whoever comes after a worker that died with the rest
    assert later_us <= _oldest(taken_over) <= now_us()
    drain(taken_over, N - len(early))
    taken_over.commit(taken_over.snapshot())
    assert taken_over.oldest_us() is None
    taken_over.close()


def _oldest(source: Source) -> int:
    found = source.oldest_us()
    assert found is not None
    return found


def _places(deliveries: list[Delivery]) -> list[tuple[int, int]]:
    pairs = (zip(each.partitions.tolist(), each.offsets.tolist(), strict=True) for each in deliveries)
    return [place for each in pairs for place in each]


def test_lanes_share_the_partitions_without_overlap(world: World) -> None:
    world.publish(N)
    for lane in range(2):
        partitions = lane_partitions(lane, 2, PARTITIONS)
        wanted = [number for number in range(N) if partition_of(number % USERS, PARTITIONS) in partitions]
        source = world.open(partitions=partitions)
        assert sorted(numbers(drain(source, len(wanted)))) == wanted
        assert source.next_batch(10, 0.1) is None
        source.close()


def test_an_older_position_takes_nothing_back(world: World) -> None:
    world.publish(N)
    source = world.open()
    first = source.next_batch(24, 5)
    assert first is not None
    rest = drain(source, N - len(first))
    source.commit(source.snapshot())
    source.commit(first.positions)
    source.close()
    resumed = world.open(
        after={partition: last for each in (first, *rest) for partition, last in each.positions.items()}
    )
    assert resumed.next_batch(10, 0.2) is None
    resumed.close()

"""The clock: real time moves on, simulated time obeys."""

import threading
import time
from contextlib import suppress

import pytest

from feast_embeddings.materialize.clock import now_us, simulated


def test_real_time_is_strictly_increasing_across_threads():
    # given several threads that read the clock as fast as they can
    readings: list[list[int]] = [[] for _ in range(4)]
    threads = [
        threading.Thread(target=lambda mine=mine: mine.extend(now_us() for _ in range(2000))) for mine in readings
    ]

    # when they run at once
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    # then no reading repeats, and each thread sees time move on
    assert len({us for mine in readings for us in mine}) == 8000
    assert all(mine == sorted(mine) for mine in readings)


def test_real_time_is_microseconds_since_the_epoch():
    assert abs(now_us() - time.time() * 1e6) < 1e6


def test_simulated_time_moves_only_when_told():
    with simulated(1_000) as clock:
        assert (now_us(), now_us()) == (1_000, 1_000)
        clock.advance(5)
        clock.set(2_000)
        clock.set(2_000)
        assert now_us() == clock.now_us == 2_000
    assert now_us() > 2_000


def test_simulated_time_never_goes_backwards():
    with simulated(1_000) as clock:
        with pytest.raises(ValueError, match="cannot go back to 999 us"):
            clock.set(999)
        with pytest.raises(ValueError, match="cannot go back"):
            clock.advance(-1)
        assert now_us() == 1_000


def test_simulations_nest_and_end_with_an_error():
    with simulated(10):
        with suppress(KeyError), simulated(20):
            assert now_us() == 20
            raise KeyError
        assert now_us() == 10
    assert now_us() > 1_000_000

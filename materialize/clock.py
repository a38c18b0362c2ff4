"""The one clock of the package: real time, or a replay's simulated time.

Times are int64 microseconds since the epoch, UTC. The clock is process-wide, so every thread of a replay
sees the same time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

_lock = threading.Lock()
_last_us = 0
_simulations: list[SimulatedClock] = []


class SimulatedClock:
    """Time that moves only when told to, and never backwards."""

    def __init__(self, start_us: int) -> None:
        self._now_us = start_us

    @property
    def now_us(self) -> int:
        """The simulated time, in microseconds since the epoch, UTC."""
        return self._now_us

    def set(self, us: int) -> None:
        """Moves to ``us``.

        Raises:
            ValueError: ``us`` is before the simulated time.
        """
        with _lock:
            if us < self._now_us:
                raise ValueError(
                    f"The simulated clock stands at {self._now_us} us and cannot go back to {us} us; "
                    "start another simulation for an earlier time."
                )
            self._now_us = us

    def advance(self, us: int) -> None:
        """Moves ``us`` microseconds ahead.

        Raises:
            ValueError: ``us`` is negative.
        """
        self.set(self._now_us + us)


def now_us() -> int:
    """The time in microseconds since the epoch, UTC.

    Real time is strictly increasing within the process, even when the system's clock steps back.
    Within :func:`simulated` it is the simulated time, which stands still until it is moved.
    """
    global _last_us  # noqa: PLW0603 - the process has one clock
    with _lock:
        if _simulations:
            return _simulations[-1].now_us
        _last_us = max(time.time_ns() // 1000, _last_us + 1)
        return _last_us


@contextmanager
def simulated(start_us: int) -> Iterator[SimulatedClock]:
    """Replaces the process-wide clock by a simulated one that starts at ``start_us``.

    Simulations nest: the innermost one rules, and the one before it returns when it ends.
    """
    clock = SimulatedClock(start_us)
    with _lock:
        _simulations.append(clock)
    try:
        yield clock
    finally:
        with _lock:
            _simulations.remove(clock)


def us_of(moment: datetime) -> int:
    """An aware time in microseconds since the epoch, UTC; a naive one is taken as UTC."""
    aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return round(aware.timestamp() * 1_000_000)


def iso(us: int) -> str:
    """A time in microseconds as people read it."""
    return datetime.fromtimestamp(us / 1_000_000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")

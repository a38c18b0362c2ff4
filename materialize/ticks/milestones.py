"""Named points of a job. A replay listens to read while a tick publishes; a test, to stop the job there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Listener = Callable[[str], None]

TICK = ("recorded", "members", "staged", "window", "chunk", "written", "logged", "published")
ITEM_TICK = ("recorded", "members", "summed", "staged", "window", "chunk", "written", "logged", "published")
CATCH_UP = ("caught-up-staged", "chunk", "caught-up", "caught-up-all")
CUTOVER = ("cutover-recorded", "cutover-switched", "cutover-logged", "cutover-done")
RETIREMENT = ("retiring", "retired")

_listeners: list[Listener] = []


def reached(step: str) -> None:
    """Tell the listeners that a job of this process has come to ``step``; what they raise stops the job."""
    for listener in _listeners:
        listener(step)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Call ``listener`` with the name of every step reached inside the ``with`` block."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)

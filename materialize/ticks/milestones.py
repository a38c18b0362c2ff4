"""How far a job has come: named points of it, and bars for people.

A replay listens to read while a tick publishes; a test, to stop the job there. Bars appear on what takes longer than
two seconds, on a terminal only.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn, TypeVar

from tqdm import tqdm

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


T = TypeVar("T")


def progress(items: Sequence[T], description: str, unit: str) -> Iterator[T]:
    """Iterate over ``items`` with a bar that appears after two seconds."""
    return iter(bar(items, description, unit))


def bar(items: Iterable[T], description: str, unit: str) -> tqdm[T]:
    """A bar over ``items`` that appears after two seconds; silent where standard error is not a terminal."""
    return tqdm(items, desc=description, unit=unit, delay=2, leave=False, disable=not sys.stderr.isatty(), ncols=100)


def counter(total: int, description: str, unit: str) -> tqdm[NoReturn]:
    """Like :func:`bar`, moved by ``update(n)``."""
    silent = not sys.stderr.isatty()
    return tqdm(desc=description, unit=unit, total=total, delay=2, leave=False, disable=silent, ncols=100)

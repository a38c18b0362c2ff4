"""Progress bars on what takes longer than two seconds, on a terminal only."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import NoReturn, TypeVar

from tqdm import tqdm

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

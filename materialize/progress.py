"""Progress bars on what takes longer than two seconds, on a terminal only."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def progress(items: Sequence[T], description: str, unit: str) -> Iterator[T]:
    """Iterate over ``items`` with a bar that appears after two seconds."""
    return iter(bar(items, description, unit))


def bar(items: Iterable[T] | None, description: str, unit: str, total: int | None = None) -> tqdm[T]:
    """A bar that appears after two seconds; silent where standard error is not a terminal."""
    return tqdm(
        items,
        desc=description,
        unit=unit,
        total=total,
        delay=2,
        leave=False,
        disable=not sys.stderr.isatty(),
        ncols=100,
    )

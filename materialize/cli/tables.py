"""Tables that are read whole: in a terminal as wide as it is, piped with every row on a line of its own."""

from __future__ import annotations

from typing import Final

from rich.console import Console
from rich.table import Column, Table

_NO_END: Final = 100_000


def console() -> Console:
    """The standard output; where that is no terminal, lines have no end to be broken at."""
    found = Console()
    return found if found.is_terminal else Console(width=_NO_END)


def table(title: str, *columns: str) -> Table:
    """A table whose cells are wrapped where the terminal is narrow, and never cut."""
    return Table(*(Column(name, overflow="fold") for name in columns), title=title, title_justify="left")

"""What `make structure` and `make trace` count."""

import inspect
import threading
from pathlib import Path

import numpy as np
import structure
from structure import Module, Source
from touched import touched

from feast_embeddings.models import ItemIndex

TEXT = '''"""What it is.

More.
"""

import os  # counts

# does not
LIMIT = 3
"""What the limit is of."""


def f():
    """Does it."""
    return """
    two more
    """


@app.command()
def g(a, *b, c=1, **d): ...
'''


def test_lines_of_code_are_neither_blank_nor_prose() -> None:
    assert Module("models/x.py", TEXT).code_lines == 8


def test_functions_are_measured_without_decorators_and_stars() -> None:
    functions = Module("models/x.py", TEXT).functions
    assert [(each.name, each.lines, each.parameters, each.is_command) for each in functions] == [
        ("f", 5, 0, False),
        ("g", 1, 2, True),
    ]


def test_trees_stand_side_by_side() -> None:
    before = Source({"models/x.py": TEXT, "models/__init__.py": ""})
    after = Source({"models/a/x.py": TEXT, "models/a/y.py": "import feast_embeddings.models.a.x"})
    lines = structure.table({"old": structure.figures(before), "now": structure.figures(after)}).splitlines()
    assert lines[:4] == [
        "| figure | old | now |",
        "| --- | --- | --- |",
        "| modules in models/ | 1 | – |",
        "| modules in models/a/ | – | 2 |",
    ]
    assert "| lines of code in models/ | 8 | 9 |" in lines
    assert "| longest file | 21 (models/x.py) | 21 (models/a/x.py) |" in lines


def test_a_function_of_any_thread_touches_its_module() -> None:
    module = Path(inspect.getfile(ItemIndex)).resolve().relative_to(structure.ROOT).as_posix()

    def elsewhere() -> None:
        thread = threading.Thread(target=lambda: ItemIndex.of(np.array([3, 1])))
        thread.start()
        thread.join()

    assert module in touched(elsewhere)
    assert touched(lambda: None) == []

"""The page on the architecture has a section for each package, and names every module once."""

from __future__ import annotations

import re
from collections import Counter

from structure import ROOT

_SECTION = re.compile(r"^#{2,3} (models|transformations|materialize)/(?:(\w+)/)?$")
_MODULE = re.compile(r"^- `([\w/]+\.py)`: ")


def named() -> Counter[str]:
    """Modules that the page names, by their paths."""
    folder, found = "", Counter[str]()
    for line in (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            section = _SECTION.match(line)
            doors = line == "### Feast's doors"
            folder = "/".join(part for part in section.groups() if part) if section else "materialize" if doors else ""
        elif folder and (module := _MODULE.match(line)):
            found[f"{folder}/{module.group(1)}"] += 1
    return found


def test_every_module_is_named_once() -> None:
    folders = ("models", "transformations", "materialize")
    there = {str(path.relative_to(ROOT)) for folder in folders for path in (ROOT / folder).rglob("*.py")}
    assert named() == Counter(path for path in there if not path.endswith("__init__.py"))

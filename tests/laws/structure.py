"""The source as data: its modules, what each imports, how long things get. Parses files and imports none of them.

``make structure`` prints the figures, ``make structure AGAINST=REV`` beside those of another revision. All imports
count, those inside functions and those for types alone too. What they are held to stands in `rooms.py`.
"""

from __future__ import annotations

import argparse
import ast
import io
import subprocess
import tarfile
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

import rooms

ROOT = Path(__file__).parents[2]
NAMESPACE = "feast_embeddings"
PRODUCT = ("models", "transformations", "materialize", "feature_repo")
DATA = "data"
"""A folder of what tests read: programs that earlier heads ran are among it."""
AROUND = ("tests", "benchmarks", "examples")
_NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


@dataclass(frozen=True)
class Import:
    """One name that a module imports.

    Attributes:
        module: Dotted name as written, without ``feast_embeddings.`` where it is of this package.
        name: What is taken from ``module``; none for ``import module``.
        bound: The name that it has in the importing module.
    """

    module: str
    name: str | None
    bound: str

    @property
    def path(self) -> str:
        """Dotted name of what is imported, be it a module or something in it."""
        return f"{self.module}.{self.name}" if self.name else self.module


@dataclass(frozen=True)
class Function:
    """A function or method: its lines with decorators left out; its parameters without self, cls, * and **."""

    name: str
    lines: int
    parameters: int
    is_command: bool


class Module:
    """A file of Python."""

    def __init__(self, path: str, text: str) -> None:
        self.path, self.text = path, text
        self.tree = ast.parse(text)
        parts = PurePosixPath(path).with_suffix("").parts
        self.is_face = parts[-1] == "__init__"
        self.name = ".".join(parts[:-1] if self.is_face else parts)
        self.is_product = parts[0] in PRODUCT

    @cached_property
    def imports(self) -> list[Import]:
        """Every import, wherever it stands."""
        return list(self._imports())

    def _imports(self) -> Iterator[Import]:
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield Import(_own(alias.name), None, alias.asname or alias.name.split(".")[0])
            elif isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    yield Import(_own(node.module or ""), alias.name, alias.asname or alias.name)

    @cached_property
    def functions(self) -> list[Function]:
        """Every function, nested ones and methods too."""
        nodes = (node for node in ast.walk(self.tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
        return [_function(node, self._registered) for node in nodes]

    @cached_property
    def _registered(self) -> set[str]:
        """Names of functions that are handed to ``app.command(…)``."""
        calls = (node for node in ast.walk(self.tree) if isinstance(node, ast.Call) and _makes_command(node.func))
        return {argument.id for call in calls for argument in call.args if isinstance(argument, ast.Name)}

    @cached_property
    def promised(self) -> list[str]:
        """What ``__all__`` names."""
        for node in self.tree.body:
            if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]:
                return list(ast.literal_eval(node.value))
        return []

    @cached_property
    def code_lines(self) -> int:
        """Lines that hold code: no blank ones, no comments, no docstrings."""
        tokens = tokenize.generate_tokens(io.StringIO(self.text).readline)
        held = {line for token in tokens if token.type not in _NO_CODE for line in _lines(token.start[0], token.end[0])}
        for node in ast.walk(self.tree):
            if (
                isinstance(node, ast.Expr)
                and isinstance(node.value, ast.Constant)
                and isinstance(node.value.value, str)
            ):
                held.difference_update(_lines(node.lineno, node.end_lineno or node.lineno))
        return len(held)


class Source:
    """All modules of a tree."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        self.modules = [Module(path, text) for path, text in sorted(texts.items())]
        self.product = [module for module in self.modules if module.is_product]
        self.by_name = {module.name: module for module in self.product}

    @classmethod
    def of_folder(cls, root: Path) -> Source:
        """The tree as it lies in ``root``."""
        files = (
            path for folder in (*PRODUCT, *AROUND) for path in (root / folder).rglob("*.py") if DATA not in path.parts
        )
        return cls({path.relative_to(root).as_posix(): path.read_text(encoding="utf-8") for path in files})

    @classmethod
    def of_revision(cls, root: Path, revision: str) -> Source:
        """The tree as it was committed."""
        packed = subprocess.run(["git", "archive", revision], cwd=root, capture_output=True, check=True).stdout
        texts = {}
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            for member in archive:
                is_source = member.name.endswith(".py") and member.name.split("/")[0] in (*PRODUCT, *AROUND)
                if is_source and (file := archive.extractfile(member)) is not None:
                    texts[member.name] = file.read().decode()
        return cls(texts)

    def target(self, imported: Import) -> tuple[str, str | None] | None:
        """The product's module that an import names, and what it takes from it; none for other libraries."""
        if imported.path in self.by_name:
            return imported.path, None
        return (imported.module, imported.name) if imported.module in self.by_name else None

    def imported_by(self, module: Module) -> set[str]:
        """Names of the product's modules that ``module`` imports."""
        return {target[0] for target in map(self.target, module.imports) if target is not None}

    @cached_property
    def between_modules(self) -> dict[str, set[str]]:
        """The product's modules, and those that each imports."""
        return {module.name: self.imported_by(module) for module in self.product}

    @cached_property
    def between_rooms(self) -> dict[str, set[str]]:
        """The product's packages, and those that each imports; a module beside packages counts as one."""
        rooms: dict[str, set[str]] = {}
        for name, targets in self.between_modules.items():
            rooms.setdefault(room(name), set()).update(room(target) for target in targets if room(target) != room(name))
        return rooms

    @cached_property
    def sizes(self) -> Counter[str]:
        """Modules per folder of the product, ``__init__`` and ``__main__`` not counted."""
        paths = (PurePosixPath(module.path) for module in self.product)
        return Counter(path.parent.as_posix() for path in paths if not path.stem.startswith("__"))


def room(name: str) -> str:
    """The package, or the module beside packages, that a product's module belongs to: ``materialize.online``."""
    return ".".join(name.split(".")[:2])


def circles(graph: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Groups of nodes each of which can be reached from every other, the largest first."""
    reached = {node: _reached(graph, node) for node in graph}
    groups = {frozenset(other for other in reached[node] if node in reached.get(other, ())) for node in graph}
    return sorted((sorted(group) for group in groups if group), key=lambda group: (-len(group), group))


def against_the_order(source: Source) -> list[tuple[str, str]]:
    """Imports (importing module, imported module) that the declared orders do not allow."""
    return [
        (name, target)
        for name, targets in source.between_modules.items()
        for target in sorted(targets)
        if rooms.ORDER.forbids(room(name), room(target))
    ]


def figures(source: Source) -> dict[str, str]:
    """What ``make structure`` prints."""
    functions = [(function, module) for module in source.product for function in module.functions]
    longest = max(source.product, key=lambda module: module.text.count("\n"))
    long_function, its_file = max(functions, key=lambda found: found[0].lines)
    wide_function, its_place = max(functions, key=lambda found: found[0].parameters)
    too_wide = sum(function.parameters > rooms.MOST_PARAMETERS for function, _ in functions)
    code = {folder: _code_lines(source, folder) for folder in PRODUCT[:3]}
    found = {f"modules in {folder}/": str(count) for folder, count in sorted(source.sizes.items())}
    return found | {
        "modules without a place in the order": str(sum(not rooms.ORDER.knows(room(name)) for name in source.by_name)),
        "imports against the order": str(len(against_the_order(source))),
        "circles of modules": _sizes(circles(source.between_modules)),
        "circles of packages": _sizes(circles(source.between_rooms)),
        "longest file": f"{longest.text.count(chr(10))} ({longest.path})",
        "longest function": f"{long_function.lines} ({its_file.path}: {long_function.name})",
        "most parameters": f"{wide_function.parameters} ({its_place.path}: {wide_function.name})",
        f"functions of more than {rooms.MOST_PARAMETERS} parameters": str(too_wide),
        "lines of code in models/": f"{code['models']:,}",
        "lines of code in transformations/": f"{code['transformations']:,}",
        "lines of code in materialize/ without demo/": f"{code['materialize']:,}",
        "lines of code in all three": f"{sum(code.values()):,}",
    }


def table(columns: Mapping[str, Mapping[str, str]]) -> str:
    """Figures side by side, as a table of Markdown; "–" where a tree has no such figure."""
    folders = sorted({row for figures in columns.values() for row in figures if row.startswith("modules in ")})
    others = [row for figures in columns.values() for row in figures if row not in folders]
    lines = [["figure", *columns], ["---"] * (len(columns) + 1)]
    lines += [
        [row, *(figures.get(row, "–") for figures in columns.values())] for row in dict.fromkeys([*folders, *others])
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main() -> None:
    """Print the figures of this tree, and of another revision's beside them."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--against", metavar="REV", help="a revision to stand beside this tree")
    parser.add_argument("--root", type=Path, default=ROOT, help="another checkout instead of this one")
    options = parser.parse_args()
    columns = {"now": figures(Source.of_folder(options.root))}
    if options.against:
        columns = {options.against: figures(Source.of_revision(options.root, options.against))} | columns
    print(table(columns))


def _own(module: str) -> str:
    return module.removeprefix(f"{NAMESPACE}.")


def _lines(first: int, last: int) -> range:
    return range(first, last + 1)


def _makes_command(node: ast.expr) -> bool:
    """Whether an expression is ``….command(…)``, or a decorator ``….command`` without a call."""
    node = node.func if isinstance(node, ast.Call) else node
    return isinstance(node, ast.Attribute) and node.attr == "command"


def _function(node: ast.FunctionDef | ast.AsyncFunctionDef, registered: set[str]) -> Function:
    names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    bound = bool(names) and names[0] in ("self", "cls")
    is_command = node.name in registered or any(_makes_command(decorator) for decorator in node.decorator_list)
    lines = (node.end_lineno or node.lineno) - node.lineno + 1
    return Function(node.name, lines, len(names) - bound, is_command)


def _reached(graph: Mapping[str, Iterable[str]], start: str) -> set[str]:
    found: set[str] = set()
    left = list(graph[start])
    while left:
        node = left.pop()
        if node not in found:
            found.add(node)
            left.extend(graph.get(node, ()))
    return found


def _code_lines(source: Source, folder: str) -> int:
    own = (module for module in source.product if module.path.startswith(f"{folder}/"))
    return sum(module.code_lines for module in own if not module.path.startswith("materialize/demo/"))


def _sizes(found: list[list[str]]) -> str:
    return f"{len(found)} (of {', '.join(str(len(group)) for group in found)})" if found else "0"


if __name__ == "__main__":
    main()

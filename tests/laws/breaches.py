"""The laws of the layout: each takes the source and yields what breaks it, one line a breach."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import Final

import rooms
from structure import Import, Module, Source, circles, room

_PUBLIC_BY_CONVENTION: Final = {"_replace", "_asdict", "_fields", "_make"}
_UNSAFE_MODULES: Final = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
_UNSAFE_CALLS: Final = {("torch", "load"), ("torch", "save"), ("pd", "read_pickle"), ("pandas", "read_pickle")}

Law = Callable[[Source], Iterator[str]]


def no_circles(source: Source) -> Iterator[str]:
    """No module can be reached from itself by imports, nor any package."""
    for group in (*circles(source.between_modules), *circles(source.between_rooms)):
        yield f"{' and '.join(group)} import each other"


def folder_sizes(source: Source) -> Iterator[str]:
    """A folder holds few enough modules to be seen at a glance."""
    for folder, count in source.sizes.items():
        if count > rooms.MOST_MODULES:
            yield f"{folder}/ holds more than {rooms.MOST_MODULES} modules"


def module_names(source: Source) -> Iterator[str]:
    """A module's name says what it holds, and stands in one package."""
    places: dict[str, set[str]] = {}
    for module in source.product:
        path = PurePosixPath(module.path)
        if not path.stem.startswith("__"):
            places.setdefault(path.stem, set()).add(path.parent.as_posix())
        yield from (f"{module.path} is named {part}" for part in rooms.SAY_NOTHING.intersection(path.parent.parts))
    for name, found in places.items():
        if name in rooms.SAY_NOTHING:
            yield from (f"{folder}/{name}.py is named {name}" for folder in found)
        if len(found) > 1:
            yield f"{name}.py stands in {', '.join(sorted(found))}"


def libraries(source: Source) -> Iterator[str]:
    """A library is known in its own rooms only."""
    for module in source.product:
        paths = {imported.path for imported in module.imports}
        for library, allowed in rooms.LIBRARIES.items():
            if any(_within(path, library) for path in paths) and not any(_within(module.name, own) for own in allowed):
                yield f"{module.path} imports {library}"


def private_names(source: Source) -> Iterator[str]:
    """No module takes another's private name, be it ours or a library's.

    Names of the form ``object._name`` are found in the product, where ``object`` is not the module's own instance
    and the module itself neither defines nor sets such a name.
    """
    for module in source.modules:
        used = {part for imported in module.imports for part in imported.path.split(".") if _is_private(part)}
        if module.is_product:
            used |= _foreign_attributes(module)
        yield from (f"{module.path} uses {name}" for name in used)


def faces(source: Source) -> Iterator[str]:
    """Whoever is outside a package takes from its ``__init__`` alone, and only what ``__all__`` promises.

    Tests below ``tests/materialize/online/`` are inside of ``materialize.online``, and so on.
    """
    for module in source.modules:
        home = room(module.name.removeprefix("tests."))
        for imported in module.imports:
            target, name = source.target(imported) or (home, None)
            face = room(target)
            if face == home:
                continue
            if target != face and _promised_as(imported, source, face, target):
                continue  # a function or module that the face promises under its own name
            if target != face:
                yield f"{module.path} imports {target}, not the face of {face}"
            elif source.by_name[face].is_face:
                taken = {name} if name else _attributes_of(module, imported.bound)
                strange = taken.difference(source.by_name[face].promised)
                yield from (f"{module.path} takes {each} from {face}, which does not promise it" for each in strange)


def promises(source: Source) -> Iterator[str]:
    """A package's ``__all__`` and the names that its ``__init__`` imports from this package or defines are the same."""
    for module in source.product:
        if module.is_face:
            bound, promised = _bound(module, source), set(module.promised)
            yield from (f"{module.path} binds {name} and does not promise it" for name in bound - promised)
            yield from (f"{module.path} promises {name} and does not bind it" for name in promised - bound)


def parameters(source: Source) -> Iterator[str]:
    """A function takes few enough parameters to be called without looking them up; commands of typer are exempt."""
    for module in source.product:
        in_commands = _within(module.name, "materialize.cli")
        for function in module.functions:
            if function.parameters > rooms.MOST_PARAMETERS and not (in_commands and function.is_command):
                yield f"{module.path}: {function.name} takes more than {rooms.MOST_PARAMETERS} parameters"


def lengths(source: Source) -> Iterator[str]:
    """Files and functions stay short, those of tests, benchmarks and examples too."""
    for module in source.modules:
        if len(module.text.splitlines()) > rooms.LONGEST_FILE:
            yield f"{module.path} is longer than {rooms.LONGEST_FILE} lines"
        for function in module.functions:
            if function.lines > rooms.LONGEST_FUNCTION:
                yield f"{module.path}: {function.name} is longer than {rooms.LONGEST_FUNCTION} lines"


def no_pickle(source: Source) -> Iterator[str]:
    """Nothing is loaded that could run code."""
    for module in source.product:
        roots = {imported.module.split(".")[0] for imported in module.imports}
        yield from (f"{module.path} imports {name}" for name in roots & _UNSAFE_MODULES)
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                if (node.value.id, node.attr) in _UNSAFE_CALLS:
                    yield f"{module.path} uses {node.value.id}.{node.attr}"
            elif isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False":
                yield f"{module.path} allows pickle"


LAWS: Final[dict[str, Law]] = {
    "circles": no_circles,
    "folder sizes": folder_sizes,
    "module names": module_names,
    "libraries": libraries,
    "private names": private_names,
    "faces": faces,
    "promises": promises,
    "parameters": parameters,
    "lengths": lengths,
    "pickle": no_pickle,
}


def _promised_as(imported: Import, source: Source, face: str, target: str) -> bool:
    """Whether ``from face import name`` takes a promised name that a module of the package has as well."""
    below = target.removeprefix(f"{face}.")
    return imported.module == face and source.by_name[face].is_face and below in source.by_name[face].promised


def _within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in _PUBLIC_BY_CONVENTION


def _foreign_attributes(module: Module) -> set[str]:
    """Private attributes of objects that are not the module's own instances, and that it nowhere defines or sets."""
    own, used = {function.name for function in module.functions}, set()
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute):
            if isinstance(node.ctx, ast.Store):
                own.add(node.attr)
            elif _is_private(node.attr) and ast.unparse(node.value) not in ("self", "cls", "super()"):
                used.add(node.attr)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            own.add(node.id)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr":
            used |= {text for text in map(_text_of, node.args[1:2]) if _is_private(text)}
    return used - own


def _text_of(node: ast.expr) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def _attributes_of(module: Module, name: str) -> set[str]:
    """What a module takes from something that it knows by ``name``."""
    attributes = (node for node in ast.walk(module.tree) if isinstance(node, ast.Attribute))
    return {node.attr for node in attributes if isinstance(node.value, ast.Name) and node.value.id == name}


def _bound(face: Module, source: Source) -> set[str]:
    """Public names of our own that an ``__init__`` imports, defines or sets."""
    names = {imported.bound for imported in face.imports if source.target(imported) is not None}
    for node in face.tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return {name for name in names if not name.startswith("_")}

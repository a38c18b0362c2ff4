"""Laws of the source itself: what may import what, what outside code may rely on, how long things get."""

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMESPACE = "feast_embeddings"
MAY_IMPORT = {
    "models": {"models"},
    "transformations": {"models", "transformations"},
    "materialize": {"models", "transformations", "materialize"},
    "feature_repo": {"models", "transformations", "materialize", "feature_repo"},
}
UNSAFE_MODULES = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
UNSAFE_CALLS = {("torch", "load"), ("torch", "save"), ("pd", "read_pickle"), ("pandas", "read_pickle")}
LONGEST_FILE = 400
LONGEST_FUNCTION = 60

SOURCES = sorted(path for folder in MAY_IMPORT for path in (ROOT / folder).rglob("*.py"))
CHECKED = SOURCES + sorted(path for folder in ("tests", "benchmarks") for path in (ROOT / folder).rglob("*.py"))


def short(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imported(tree: ast.AST) -> Iterator[str]:
    """Dotted names of every import, the ones inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def folders_imported(tree: ast.AST) -> set[str]:
    parts = (name.split(".") for name in imported(tree))
    return {part[1] for part in parts if part[0] == NAMESPACE and len(part) > 1}


def broken_rules(source: str, folder: str) -> list[str]:
    """What ``source``, standing in ``folder``, imports or calls although it must not."""
    tree = ast.parse(source)
    roots = {name.split(".")[0] for name in imported(tree)}
    found = [f"imports {name}" for name in sorted(folders_imported(tree) - MAY_IMPORT[folder])]
    found += [f"imports {name}" for name in sorted(roots & (UNSAFE_MODULES | set(MAY_IMPORT)))]
    if folder == "models":
        found += [f"imports {name}" for name in sorted(roots & {"feast", "redis"})]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            called = (node.value.id, node.attr)
            found += [f"uses {'.'.join(called)}"] if called in UNSAFE_CALLS else []
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            found += [] if isinstance(node.value, ast.Constant) and node.value.value is False else ["allows pickle"]
    return found


@pytest.mark.parametrize("path", SOURCES, ids=short)
def test_a_source_file_keeps_the_rules_of_its_folder(path: Path) -> None:
    folder = path.relative_to(ROOT).parts[0]
    assert broken_rules(path.read_text(encoding="utf-8"), folder) == []


@pytest.mark.parametrize(
    ("folder", "source", "expected"),
    [
        ("models", "from feast_embeddings.transformations import contract", ["imports transformations"]),
        ("models", "def f():\n    from feast_embeddings import materialize", ["imports materialize"]),
        ("models", "import redis.asyncio", ["imports redis"]),
        ("models", "from feast import Entity", ["imports feast"]),
        ("transformations", "import feast_embeddings.materialize.ledger.database", ["imports materialize"]),
        ("materialize", "from feast_embeddings.feature_repo import definitions", ["imports feature_repo"]),
        ("materialize", "import transformations.contract", ["imports transformations"]),
        ("materialize", "import pickle", ["imports pickle"]),
        ("models", "weights = torch.load(path)", ["uses torch.load"]),
        ("models", "np.load(path, allow_pickle=True)", ["allows pickle"]),
    ],
)
def test_a_breach_of_the_rules_is_found(folder: str, source: str, expected: list[str]) -> None:
    assert broken_rules(source, folder) == expected


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_every_name_a_folder_promises_exists(folder: str) -> None:
    module = importlib.import_module(f"{NAMESPACE}.{folder}")
    promised = getattr(module, "__all__", [])
    assert [name for name in promised if not hasattr(module, name)] == []
    assert len(promised) == len(set(promised))


def test_models_load_neither_feast_nor_redis() -> None:
    """Not even through a library: an encoder can be used where neither is installed."""
    modules = [".".join([NAMESPACE, *path.relative_to(ROOT).with_suffix("").parts]) for path in SOURCES]
    models = [name.removesuffix(".__init__") for name in modules if name.startswith(f"{NAMESPACE}.models.")]
    program = f"import sys, {', '.join(models)}; print(*{{'feast', 'redis'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


@pytest.mark.parametrize("path", CHECKED, ids=short)
def test_files_and_functions_stay_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGEST_FILE
    functions = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    lengths = {node.name: (node.end_lineno or node.lineno) - node.lineno + 1 for node in functions}
    assert {name: length for name, length in lengths.items() if length > LONGEST_FUNCTION} == {}

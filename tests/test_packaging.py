"""The built wheel holds all of the package, and nothing that could shadow somebody else's."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[1]
NAMESPACE = "feast_embeddings"
FOLDERS = ("feature_repo", "transformations", "models", "materialize")
MADE_BY_RUNS = {"__pycache__", "data"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[PurePosixPath]:
    """Names in a wheel built, without any network, from a copy of the tree."""
    copy = tmp_path_factory.mktemp("source")
    unwanted = shutil.ignore_patterns(*MADE_BY_RUNS)
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, copy / folder, ignore=unwanted)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--no-index",
    ]
    done = subprocess.run(
        [*build, "--no-build-isolation", "--wheel-dir", str(copy / "dist"), str(copy)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (built,) = (copy / "dist").glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        return {PurePosixPath(name) for name in archive.namelist()}


def expected_files() -> set[PurePosixPath]:
    """Every file of the four folders, as the wheel names it: code, py.typed, Lua, yaml, .feastignore."""
    files = (path.relative_to(ROOT) for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file())
    return {PurePosixPath(NAMESPACE, path.as_posix()) for path in files if not MADE_BY_RUNS & set(path.parts)}


def test_the_wheel_holds_every_file_of_the_tree(wheel: set[PurePosixPath]) -> None:
    """A package or a kind of data file that pyproject.toml forgets to list fails here."""
    assert sorted(expected_files() - wheel) == []


def test_the_wheel_holds_nothing_else(wheel: set[PurePosixPath]) -> None:
    package = {name for name in wheel if name.parts[0] == NAMESPACE}
    assert sorted(package - expected_files()) == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_each_folder_is_shipped_typed(wheel: set[PurePosixPath], folder: str) -> None:
    assert {PurePosixPath(NAMESPACE, folder, name) for name in ("__init__.py", "py.typed")} <= wheel


def test_only_the_namespace_lies_at_the_top(wheel: set[PurePosixPath]) -> None:
    """`transformations` and `models` are names of other people's packages."""
    tops = {name.parts[0] for name in wheel}
    assert {top for top in tops if not top.endswith(".dist-info")} == {NAMESPACE}


def test_the_licence_travels_along(wheel: set[PurePosixPath]) -> None:
    assert any(name.name == "LICENSE" for name in wheel)

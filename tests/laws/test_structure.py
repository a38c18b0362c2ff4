"""Laws of the source itself: where everything lives, what may import what, how long things get."""

import os
import subprocess
import sys
from collections.abc import Mapping
from functools import cache

import pytest
import rooms
from breaches import LAWS
from structure import NAMESPACE, ROOT, Source, against_the_order, circles


@cache
def source() -> Source:
    return Source.of_folder(ROOT)


@cache
def breaches(law: str) -> set[str]:
    return set(LAWS[law](source()))


@pytest.mark.parametrize("law", LAWS)
def test_the_source_keeps_the_law(law: str) -> None:
    found = sorted(breaches(law).difference(rooms.EXCEPTIONS.get(law, ())))
    assert not found, "\n".join([f"{len(found)} breaches of the law of {law}:", *found])


@pytest.mark.parametrize("law", LAWS)
def test_no_exception_outlives_its_breach(law: str) -> None:
    outlived = sorted(set(rooms.EXCEPTIONS.get(law, ())) - breaches(law))
    assert not outlived, "\n".join([f"take out of the exceptions of the law of {law}:", *outlived])


def test_exceptions_are_of_laws_that_exist() -> None:
    assert set(rooms.EXCEPTIONS) <= set(LAWS)


def test_packages_import_only_from_those_below_them() -> None:
    """The layers of pyproject.toml, which must name every package."""
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()", "--no-cache"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT / "typings")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_models_load_neither_feast_nor_redis() -> None:
    """Not even through a library: an encoder can be used where neither is installed."""
    models = [f"{NAMESPACE}.{name}" for name in source().by_name if name.split(".")[0] == "models"]
    program = f"import sys, {', '.join(models)}; print(*{{'feast', 'redis'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


LONG = "\n".join(["def long():", *["    print()"] * 60])
BREACHES: list[tuple[str, Mapping[str, str], list[str]]] = [
    (
        "circles",
        {
            "models/a.py": "def late():\n    from feast_embeddings.models import b",
            "models/b.py": "if TYPE_CHECKING:\n    from feast_embeddings.models.a import x",
        },
        ["models.a and models.b import each other"] * 2,
    ),
    (
        "circles",
        {
            "models/a/x.py": "import feast_embeddings.models.b.x",
            "models/b/x.py": "",
            "models/b/y.py": "from feast_embeddings.models.a import x",
        },
        ["models.a and models.b import each other"],
    ),
    (
        "folder sizes",
        {f"models/a/m{number}.py": "" for number in range(16)} | {"models/a/__init__.py": ""},
        ["models/a/ holds more than 15 modules"],
    ),
    ("module names", {"models/utils.py": ""}, ["models/utils.py is named utils"]),
    ("module names", {"models/misc/x.py": ""}, ["models/misc/x.py is named misc"]),
    ("module names", {"models/a/x.py": "", "materialize/x.py": ""}, ["x.py stands in materialize, models/a"]),
    ("libraries", {"models/x.py": "import feast.infra"}, ["models/x.py imports feast"]),
    ("libraries", {"materialize/online2.py": "import redis"}, ["materialize/online2.py imports redis"]),
    (
        "libraries",
        {"materialize/ticks/x.py": "def f():\n    from pyarrow import parquet"},
        ["materialize/ticks/x.py imports pyarrow.parquet"],
    ),
    ("private names", {"tests/x.py": "from feast.utils import _redis_key"}, ["tests/x.py uses _redis_key"]),
    ("private names", {"models/x.py": "def f(a):\n    return a._b + a._replace()"}, ["models/x.py uses _b"]),
    ("private names", {"models/x.py": "b = getattr(a, '_b', None)"}, ["models/x.py uses _b"]),
    ("private names", {"models/x.py": "class A:\n    def _b(self): return self._c\n    def d(self, a): a._b"}, []),
    (
        "faces",
        {
            "materialize/a/__init__.py": "__all__ = []",
            "materialize/a/x.py": "y = 1",
            "materialize/b.py": "from feast_embeddings.materialize.a.x import y",
            "tests/materialize/a/x.py": "from feast_embeddings.materialize.a.x import y",
            "tests/materialize/b/x.py": "from feast_embeddings.materialize.a import x",
        },
        [
            "materialize/b.py imports materialize.a.x, not the face of materialize.a",
            "tests/materialize/b/x.py imports materialize.a.x, not the face of materialize.a",
        ],
    ),
    (
        "faces",
        {
            "models/__init__.py": "__all__ = ['train']",
            "examples/x.py": "from feast_embeddings.models import train, tune",
            "examples/y.py": "import feast_embeddings.models as m\nm.train(m.tune)",
        },
        [f"examples/{name}.py takes tune from models, which does not promise it" for name in "xy"],
    ),
    (
        "promises",
        {"models/a/__init__.py": "from feast_embeddings.models.a.x import y\n__all__ = ['z']", "models/a/x.py": ""},
        [
            "models/a/__init__.py binds y and does not promise it",
            "models/a/__init__.py promises z and does not bind it",
        ],
    ),
    (
        "parameters",
        {
            "models/x.py": "class A:\n    def f(self, a, b, /, c, d, *e, f, g, h=1, **i): ...",
            "models/y.py": "def f(a, b, /, c, d, *e, f, g, h=1, i=2): ...",
            "materialize/cli/x.py": "@app.command()\ndef f(a, b, c, d, e, f, g, h): ...",
            "materialize/cli/y.py": "def f(a, b, c, d, e, f, g, h): ...\ndef register(app): app.command('f')(f)",
            "materialize/cli/z.py": "def f(a, b, c, d, e, f, g, h): ...",
        },
        ["materialize/cli/z.py: f takes more than 7 parameters", "models/y.py: f takes more than 7 parameters"],
    ),
    ("lengths", {"tests/x.py": "\n" * 401}, ["tests/x.py is longer than 400 lines"]),
    ("lengths", {"models/x.py": LONG}, ["models/x.py: long is longer than 60 lines"]),
    ("pickle", {"models/x.py": "import pickle"}, ["models/x.py imports pickle"]),
    ("pickle", {"models/x.py": "weights = torch.load(path)"}, ["models/x.py uses torch.load"]),
    ("pickle", {"models/x.py": "np.load(path, allow_pickle=True)"}, ["models/x.py allows pickle"]),
]


@pytest.mark.parametrize(("law", "texts", "expected"), BREACHES)
def test_a_breach_of_a_law_is_found(law: str, texts: Mapping[str, str], expected: list[str]) -> None:
    """… and what keeps it is not."""
    assert sorted(LAWS[law](Source(texts))) == expected


@pytest.mark.parametrize(
    ("importing", "imported", "breaks"),
    [
        ("materialize.ledger.x", "materialize.online.y", True),
        ("materialize.online.x", "materialize.ledger.y", False),
        ("materialize.engine", "materialize.online_store", True),
        ("materialize.cli.x", "materialize.engine", False),
        ("materialize.ticks.x", "materialize.ticks.y", False),
        ("models.encoder.x", "transformations.behaviors.y", True),
        ("transformations.sources.x", "models.errors", False),
        ("materialize.cli.x", "materialize", False),
        ("feature_repo.definitions", "feature_repo.more", False),
    ],
)
def test_the_order_is_read_from_the_contracts(importing: str, imported: str, breaks: bool) -> None:
    """The figures count with it."""
    paths = {name: f"{name.replace('.', '/')}.py" for name in (importing, imported)}
    tree = Source({paths[importing]: f"import {NAMESPACE}.{imported}", paths[imported]: ""})
    assert against_the_order(tree) == ([(importing, imported)] if breaks else [])


def test_circles_are_told_apart() -> None:
    graph = {"a": {"b"}, "b": {"a", "c"}, "c": {"d"}, "d": {"e"}, "e": {"c"}, "f": {"a"}, "g": {"g"}}
    assert circles(graph) == [["c", "d", "e"], ["a", "b"], ["g"]]

"""The README keeps its word: commands exist, its declarations declare, its figures are those that were written."""

from __future__ import annotations

import itertools
import json
import re
import sys
from pathlib import Path

import pytest
from feast import Entity, ValueType
from feast.repo_config import load_repo_config
from feast.repo_operations import apply_total
from typer.main import get_command

import feast_embeddings.materialize as materialize_names
import feast_embeddings.transformations as transformations_names
from feast_embeddings.materialize.cli import app
from feast_embeddings.materialize.declare import spec_of
from feast_embeddings.materialize.demo import write_repo
from feast_embeddings.transformations.views import session_spec_of

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
pytestmark = pytest.mark.filterwarnings("ignore:Stream feature views are experimental:RuntimeWarning")


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\((?!http)([^)#]+)\)", TEXT))))
def test_every_link_leads_somewhere(target: str) -> None:
    assert (ROOT / target).exists()


def test_every_command_exists() -> None:
    known = set(get_command(app).commands)
    assert {name for name in re.findall(r"feast-embeddings ([a-z]+)", TEXT) if name != "feature"} <= known


@pytest.mark.parametrize("target", sorted(set(re.findall(r"(?m)^\$ make ([a-z-]+)", TEXT))))
def test_every_make_target_exists(target: str) -> None:
    assert re.search(rf"(?m)^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"))


def test_the_declarations_declare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (declarations,) = (block for block in PYTHON if "item_embedding_view(" in block)
    (session,) = (block for block in PYTHON if "session_embedding_view(" in block)
    names = {
        name: getattr(module, name) for module in (materialize_names, transformations_names) for name in module.__all__
    }
    names["user"] = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)
    names["item"] = Entity(name="item", join_keys=["item_id"], value_type=ValueType.INT64)
    exec(declarations, names)  # noqa: S102 - it is ours
    exec(session, names)  # noqa: S102
    session_spec = session_spec_of(names["session_embedding"])
    assert session_spec is not None
    assert session_spec.embedding == "user_embedding"
    assert spec_of(names["user_embedding"]).behaviors == "behaviors"
    assert spec_of(names["item_embedding"]).encoder == "main"


def test_the_online_read_reads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(write_repo(tmp_path / "shop"))
    monkeypatch.syspath_prepend(tmp_path / "shop")
    monkeypatch.delitem(sys.modules, "definitions", raising=False)
    apply_total(load_repo_config(Path(), Path("feature_store.yaml")), Path(), skip_source_validation=True)
    monkeypatch.delitem(sys.modules, "definitions")
    (read,) = (block for block in PYTHON if "get_online_features" in block)
    exec(read, {})  # noqa: S102 - it is ours
    assert "'user_id': [1], 'user_vector': [None]" in capsys.readouterr().out


def test_the_benchmark_figures_are_those_that_were_measured() -> None:
    methods = json.loads((ROOT / "benchmarks/results/quality_ml1m.json").read_text())["methods"]
    table = TEXT.split("Next item on MovieLens-1M")[1].split("```")[0]
    shown = re.findall(r"\| (`?[^|]+?) \| \**(\.\d+)\** \| \**(\.\d+)\** \|", table)
    assert len(shown) == len(methods)
    for name, hr10, ndcg10 in shown:
        (key,) = (key for key in methods if key == name.strip("`").split("`")[0])
        assert (float(hr10), float(ndcg10)) == (round(methods[key]["hr10"], 3), round(methods[key]["ndcg10"], 3))


FIGURES = {  # what stands in the README, beside a title, and the file it was measured into
    "Speed": ("encode", "stream", "session", "online"),
    "Which policy pays": ("policies", "staleness", "freshness", "hourly"),
    "Automatic features": ("autoencoder", "generator", "online_retail", "explanation", "compression"),
}


@pytest.mark.parametrize("title", FIGURES)
def test_every_figure_of_a_table_was_measured(title: str) -> None:
    section = TEXT.split(f"### {title}\n")[1].split("\n### ")[0]
    lines = section.splitlines()
    heads = {head for head, rule in itertools.pairwise(lines) if rule.startswith("|---")}
    rows = [line for line in lines if line.startswith("| ") and line not in heads]
    assert rows
    measured = [number for name in FIGURES[title] for number in _numbers(ROOT / f"benchmarks/results/{name}.json")]
    for row in rows:
        for figure in re.findall(r"(?<![\w.])\d*\.?\d[\d,]*(?![\w=\"])", "|".join(row.split("|")[2:])):
            assert _stands_for(figure, measured), (figure, row)


def _numbers(path: Path) -> list[float]:
    """Every number of a file of results."""

    def walk(value: object) -> list[float]:
        if isinstance(value, dict):
            return [number for each in value.values() for number in walk(each)]
        if isinstance(value, list):
            return [number for each in value for number in walk(each)]
        return [float(value)] if isinstance(value, int | float) else []

    return walk(json.loads(path.read_text()))


def _stands_for(figure: str, measured: list[float]) -> bool:
    """Whether a figure is one of those numbers, rounded as it is shown; KiB, per mille and percent are allowed."""
    shown = float(figure.replace(",", ""))
    digits = len(figure.partition(".")[2])
    return any(
        round(abs(number) * scale, digits) == shown for number in measured for scale in (1, 100, 1000, 1 / 1024, 1e-3)
    )


def test_the_figures_of_the_shop_of_init_are_those_that_were_measured() -> None:
    methods = json.loads((ROOT / "benchmarks/results/shop.json").read_text())["methods"]
    said = TEXT.split("`train` learns from the first nine tenths")[1].split("\n\n")[0]
    shown = re.findall(r"(?<![\w.])\.\d{3}", said)
    names = ("main", "popularity", "repeat purchase", "Markov table")
    assert shown == [f"{methods[name]['estimates']['all']['ndcg@10']['value']:.3f}"[1:] for name in names]

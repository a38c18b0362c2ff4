"""A new user's first hour: the repo that ``init`` writes, from any folder, without noise, and what is said when."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click import unstyle as strip_ansi
from feast import FeatureStore
from initialized import feast, initialized, standing_in
from typer.testing import CliRunner

from feast_embeddings.materialize.cli import app
from feast_embeddings.materialize.demo import run_example
from feast_embeddings.models import HistoryBatch, load_encoder

NOW = datetime.now(UTC)
USERS = list(range(1, 21))


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Applied and live; the process stands in it."""
    with standing_in(initialized(tmp_path_factory.mktemp("hour") / "hour", round(NOW.timestamp() * 1e6))) as repo:
        feast("apply")
        end = NOW - timedelta(hours=1)
        FeatureStore(".").materialize(end - timedelta(days=400), end)
        yield repo


@pytest.fixture
def elsewhere(repo: Path, tmp_path: Path) -> Iterator[Path]:
    """The process stands in another folder, as a notebook or a scheduler would."""
    os.chdir(tmp_path)
    yield repo
    os.chdir(repo)


def test_apply_does_not_warn_of_a_pattern_that_finds_files(repo: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="feast"):
        feast("apply")
    assert [record.getMessage() for record in caplog.records if "FileSource" in record.getMessage()] == []


@pytest.mark.parametrize(
    ("pattern", "warns"), [("data/behaviors", False), ("data/**/*.parquet", False), ("data/none/*.parquet", True)]
)
def test_only_a_pattern_that_finds_nothing_is_warned_of(
    repo: Path, caplog: pytest.LogCaptureFixture, pattern: str, warns: bool
) -> None:
    definitions = repo / "definitions.py"
    before = definitions.read_text()
    definitions.write_text(before.replace("data/behaviors/*.parquet", pattern))
    try:
        with caplog.at_level(logging.WARNING, logger="feast"):
            feast("apply")
    finally:
        definitions.write_text(before)
        warned = any("FileSource" in record.getMessage() for record in caplog.records)
        feast("apply")
    assert warned is warns


def test_the_repo_is_read_from_another_folder(elsewhere: Path) -> None:
    store = FeatureStore(str(elsewhere))
    answer = store.get_online_features(["user_embedding:user_vector"], [{"user_id": user} for user in USERS]).to_dict()
    assert sum(vector is not None for vector in answer["user_vector"]) >= 18


@pytest.mark.parametrize("arguments", [("apply",), ("materialize-incremental", "{now}"), ("entities", "list")])
def test_feast_commands_run_from_another_folder(elsewhere: Path, arguments: tuple[str, ...]) -> None:
    here = Path.cwd()
    printed = feast("-c", str(elsewhere), *(each.format(now=NOW.strftime("%Y-%m-%dT%H:%M:%S")) for each in arguments))
    assert "Error" not in printed
    assert not list(here.iterdir())


HEAVY = ("feast", "torch", "pandas", "sqlalchemy")


@pytest.mark.parametrize(
    "arguments", [("--help",), ("train", "--help"), ("evaluate", "--help"), ("stream", "--help"), ("status", "--help")]
)
def test_help_imports_nothing_heavy(arguments: tuple[str, ...]) -> None:
    code = (
        "import atexit, sys\n"
        f"atexit.register(lambda: print([name for name in {HEAVY!r} if name in sys.modules], time.process_time()))\n"
        "import time\n"
        "from feast_embeddings.materialize.cli import main\n"
        f"sys.argv = ['feast-embeddings', *{arguments!r}]\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    loaded, seconds = done.stdout.splitlines()[-1].rsplit(maxsplit=1)
    assert loaded == "[]"
    assert float(seconds) < 3


def test_commands_leave_typeguard_out_in_their_own_process_alone(repo: Path) -> None:
    shown = "import typeguard, feast; print(typeguard.typechecked.__module__)"

    def module(code: str) -> str:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=240)
        return done.stdout.splitlines()[-1]

    status = (
        "import sys; sys.argv = ['feast-embeddings', 'status']\nfrom feast_embeddings.materialize.cli import main\n"
    )
    assert module(f"{status}try: main()\nexcept SystemExit: {shown}") == "feast_embeddings.materialize.cli.main"
    assert module(f"import feast_embeddings.materialize.cli; {shown}").startswith("typeguard")


def test_rows_from_before_the_first_cutover_are_warned_of_once(repo: Path) -> None:
    store = FeatureStore(".")
    spine = pd.DataFrame({"user_id": USERS, "item_id": 1001, "event_timestamp": NOW - timedelta(days=3)})
    with pytest.warns(UserWarning, match=r"since its first cutover at 20.*`feast materialize-incremental`") as seen:
        past = store.get_historical_features(
            spine, ["user_embedding:user_vector", "item_embedding:item_vector"]
        ).to_df()
    warned = sorted(str(each.message).split()[1] for each in seen if "first cutover" in str(each.message))
    assert warned == ["'item_embedding'", "'user_embedding'"]
    assert past["user_vector"].isna().all()


@pytest.mark.parametrize("days", [[0.0], [3.0, 0.0]])
def test_rows_that_have_an_answer_are_not_warned_of(repo: Path, days: list[float]) -> None:
    store = FeatureStore(".")
    now = datetime.now(UTC)
    spine = pd.DataFrame(
        {"user_id": USERS[: len(days)], "event_timestamp": [now - timedelta(days=day) for day in days]}
    )
    past = store.get_historical_features(spine, ["user_embedding:user_vector"]).to_df()  # warnings are errors here
    assert past["user_vector"].notna().tolist() == [day == 0 for day in days]


@pytest.mark.parametrize("lists", [[[1001, 1002], [1003]], [[], [1001]], [[424242]]])
def test_a_vector_in_three_lines(repo: Path, lists: list[list[int]]) -> None:
    encoder = load_encoder(repo / "data/encoders/main")
    batch = HistoryBatch.of_items(lists, as_of=1_709_251_200_000_000)
    vectors = encoder.encode(batch)
    assert vectors.shape == (len(lists), 64)
    assert batch.lengths.tolist() == [len(each) for each in lists]
    assert (batch.times < 1_709_251_200_000_000).all()
    for row, items in enumerate(lists):  # neighbors in a batch change nothing
        alone = encoder.encode(HistoryBatch.of_items([items], as_of=1_709_251_200_000_000))
        assert alone[0].tobytes() == vectors[row].tobytes()
        assert batch.items[batch.offsets[row] : batch.offsets[row + 1]].tolist() == items


def test_text_ids_make_a_batch_too() -> None:
    batch = HistoryBatch.of_items([["a"], ["b", "c"]])
    assert batch.items.tolist() == ["a", "b", "c"]
    assert (np.diff(batch.times[1:]) == 1_000_000).all()


def test_an_example_asks_for_its_extra_before_it_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "captum", None)  # as if it were not installed
    source = Path(__file__).parents[3] / "examples" / "news.py"
    with pytest.raises(SystemExit, match=r"news.py explains a vector, which needs captum: pip install '.\[explain\]'"):
        run_example(source, tmp_path / "news")
    assert not (tmp_path / "news").exists()
    assert 'pip install ".[explain]"' in source.read_text(encoding="utf-8")


@pytest.mark.parametrize("columns", [None, "80", "40"])
def test_status_cuts_nothing(repo: Path, monkeypatch: pytest.MonkeyPatch, columns: str | None) -> None:
    if columns is not None:  # a terminal of that width
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("COLUMNS", columns)
    shown = CliRunner().invoke(app, ["status"], color=False).output
    assert "…" not in shown
    lines = shown.splitlines()
    if columns is None:
        whole = next(line for line in lines if "item_embedding" in line and "main" in line)
        assert "user_embedding" in whole
    else:
        assert max(map(len, map(strip_ansi, lines))) <= int(columns)

"""A new user's first hour: the repo that ``init`` writes, from any folder, without noise, and what is said when."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from feast import FeatureStore
from initialized import feast, initialized, standing_in

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

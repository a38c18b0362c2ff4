"""Retired fills: removed at a bounded rate, some seconds per job, taken up where it stopped."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from repo_fixture import MakeRepo, SmallRepo, StoppedError, at, day, stopping_at
from ticks_fixture import started
from typer.testing import CliRunner

from feast_embeddings.materialize.cli import app
from feast_embeddings.materialize.ledger import Retirements, held
from feast_embeddings.materialize.ticks import listening
from feast_embeddings.materialize.upkeep.retire import retire, retire_resource
from feast_embeddings.models.errors import LeaseError


@pytest.fixture
def retired(make_repo: MakeRepo) -> SmallRepo:
    """A repo with a retired fill."""
    repo = started(make_repo)
    with at(day(5)):
        repo.run(day(5), refresh=True)
        repo.run(day(5), refresh=True)
    return repo


def _retire(repo: SmallRepo, **options: Any) -> list[str]:
    """Look at keys one or two at a time."""
    return retire(repo.workspace, repo.server, repo.store.registry, scan=1, **options)


def _first(repo: SmallRepo) -> str:
    return repo.fills()[0].fill


def test_a_cutover_marks_fills_as_retired_and_leaves_their_rows(retired: SmallRepo) -> None:
    first, before = _first(retired), retired.vectors().values.tobytes()
    assert [fill.state for fill in retired.fills()] == ["retired", "retained", "live"]
    assert retired.rows_of(first).found.any()
    assert _retire(retired) == [first]
    assert [fill.state for fill in retired.fills()] == ["removed", "retained", "live"]
    assert not retired.rows_of(first).found.any()
    assert retired.vectors().values.tobytes() == before
    assert _retire(retired) == [], "nothing is left to do"


def test_a_removal_that_stops_goes_on_from_there(retired: SmallRepo) -> None:
    first, total = _first(retired), retired.rows_of(_first(retired)).found.sum()
    calls: list[str] = []
    with listening(calls.append):
        with stopping_at("retiring", 6), pytest.raises(StoppedError):
            _retire(retired)
        left = retired.rows_of(first).found.sum()
        assert 0 < Retirements(retired.workspace.ledger).progress(first) < 1
        before = len(calls)
        assert _retire(retired) == [first]
    assert left <= total
    assert not retired.rows_of(first).found.any()
    fresh = retired_again(retired)
    steps: list[str] = []
    with listening(steps.append):
        assert _retire(retired) == [fresh]
    assert calls[before:].count("retiring") < steps.count("retiring"), "the second run went through all of it again"


def retired_again(repo: SmallRepo) -> str:
    """One more refresh, which retires another fill; its name."""
    (name,) = (fill.fill for fill in repo.fills("retained"))
    with at(day(5)):
        repo.run(day(5), refresh=True)
    return name


def test_a_restarted_server_is_gone_through_from_the_start(retired: SmallRepo) -> None:
    first = _first(retired)
    with stopping_at("retiring", 6), pytest.raises(StoppedError):
        _retire(retired)
    with retired.workspace.ledger.transaction() as connection:
        connection.exec_driver_sql("UPDATE feast_embeddings_retirements SET server = 'another one'")
    assert _retire(retired) == [first]
    assert not retired.rows_of(first).found.any()


def test_a_fill_that_an_open_tick_may_still_write_is_left_for_later(make_repo: MakeRepo) -> None:
    repo = started(make_repo)
    with at(day(5)):
        repo.run(day(5), refresh=True)
    (retained,) = repo.fills("retained")
    with at(day(6)), stopping_at("window"), pytest.raises(StoppedError):
        repo.run(day(6))
    repo.workspace.ledger.update_fill(retained.fill, state="retired")
    assert _retire(repo) == []
    with at(day(6)):
        repo.run(day(6))
    assert _retire(repo) == [retained.fill]
    assert not repo.rows_of(retained.fill).found.any()


def test_the_rate_is_bounded(retired: SmallRepo) -> None:
    looked: list[str] = []
    began = time.monotonic()
    with listening(looked.append):
        _retire(retired, keys_per_second=200)
    assert time.monotonic() - began >= (looked.count("retiring") - 1) / 200


def test_one_at_a_time(retired: SmallRepo) -> None:
    resource = retire_resource(retired.project)
    with held(retired.workspace.ledger, resource), pytest.raises(LeaseError, match="retirement of fills"):
        _retire(retired)
    assert _retire(retired) == [_first(retired)]


def test_the_seconds_are_bounded_and_the_rest_is_taken_up(retired: SmallRepo) -> None:
    first = _first(retired)
    assert _retire(retired, seconds=0) == []
    assert retired.rows_of(first).found.any()
    passes: list[list[str]] = []
    while not passes or passes[-1][-1:] != ["retired"]:
        passes.append([])
        assert len(passes) < 1000
        began = time.monotonic()
        with listening(passes[-1].append):
            _retire(retired, seconds=0.05, keys_per_second=500)
        assert passes[-1].count("retiring") <= 500 * (time.monotonic() - began) + 1
    assert len([each for each in passes if each]) > 1
    assert not retired.rows_of(first).found.any()
    fresh = retired_again(retired)
    whole: list[str] = []
    with listening(whole.append):
        assert _retire(retired) == [fresh]
    assert sum(each.count("retiring") for each in passes) <= whole.count("retiring") + 5, "nothing is looked at twice"


def test_a_job_of_the_engine_takes_it_up_and_status_and_the_command_tell(retired: SmallRepo) -> None:
    with stopping_at("retiring", 4), pytest.raises(StoppedError):
        _retire(retired)
    shown = CliRunner().invoke(app, ["status", "--repo", str(retired.folder)], env={"COLUMNS": "200"}).output
    assert "retiring, " in shown
    assert "% removed" in shown
    with at(day(5)):
        retired.incremental(day(5), ["item_embedding"])
    assert [fill.state for fill in retired.fills()] == ["removed", "retained", "live"]
    name = retired_again(retired)
    done = CliRunner().invoke(app, ["retire", "--repo", str(retired.folder)])
    assert done.exit_code == 0, done.output
    assert f"Removed 1 retired fill(s): {name}" in done.output


def test_what_hinders_the_removal_is_told_and_is_no_failure_of_the_job(
    retired: SmallRepo, capsys: pytest.CaptureFixture[str]
) -> None:
    with held(retired.workspace.ledger, retire_resource(retired.project)), at(day(5)):
        retired.incremental(day(5), ["item_embedding"])
    assert "retired fills are left to a later job: retirement of fills of project" in capsys.readouterr().out
    assert retired.fills()[0].state == "retired"


def test_no_step_of_the_removal_touches_what_is_served(retired: SmallRepo) -> None:
    wanted = retired.vectors().values

    def read(step: str) -> None:
        if step == "retiring":
            np.testing.assert_array_equal(retired.vectors().values, wanted)

    with listening(read):
        _retire(retired)

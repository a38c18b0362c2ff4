"""Tables in any column types, units, zones and encodings: each is served right, or refused by column and remedy."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from messy_tables import ZONE, Messy, check, messy_repo, messy_tables
from repo_fixture import SmallRepo

from feast_embeddings.materialize.clock import now_us

Repos = dict[str | None, SmallRepo]


@pytest.fixture(scope="module")
def repos(valkey: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Repos]:
    """A repo without a declared zone, and one with."""
    here, made = Path.cwd(), {}
    for zone in (None, ZONE):
        folder = tmp_path_factory.mktemp("messy")
        os.chdir(folder)
        made[zone] = messy_repo(folder, valkey, zone)
        assert made[zone].store
    yield made
    os.chdir(here)


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(messy=messy_tables())
def test_a_messy_table_is_served_right_or_refused(repos: Repos, messy: Messy) -> None:
    # Given a table of any types, when it is read and materialized, then it is as the oracle says, or refused
    repo = repos[messy.naive_zone]
    os.chdir(repo.folder)
    check(repo, messy, now_us())

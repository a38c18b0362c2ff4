"""The quarantine as a tool: shown, exported, mended, handed back, and counted once."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from repo_fixture import MakeRepo, SmallRepo, at, day, moment, rows, shop, tiny_encoder
from stream_fixture import behavior, by_hand, send, streamed
from ticks_fixture import tick_at
from typer.testing import CliRunner

from feast_embeddings.materialize.cli import app
from feast_embeddings.materialize.clock import now_us
from feast_embeddings.materialize.upkeep import hand_back, refused
from feast_embeddings.models.errors import BehaviorSourceError, DeclarationError

CREATED = 'created_time="created"'


def run(*arguments: str) -> str:
    """What a command prints."""
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture
def repo(make_repo: MakeRepo) -> SmallRepo:
    """A live repo whose tick of day 5 refused three behaviors, two of a mistyped kind."""
    repo = make_repo(contract=CREATED)
    repo.deliver(shop(4), "shop")
    repo.encode_with(tiny_encoder(1))
    tick_at(repo, 4)
    tick_at(repo, 4, "item_embedding")
    bad = rows(
        user=[1, 2, 3],
        item=[101, 102, 103],
        event=["veiw", "veiw", "view"],
        at=[day(4.2), day(4.4), day(4.6)],
        price=[1.5, None, float("inf")],
        id=["a", "b", "c"],
    )
    repo.deliver(bad, "bad")
    tick_at(repo, 5)
    return repo


def mended(table: pa.Table) -> pa.Table:
    frame = table.to_pandas()
    return pa.Table.from_pandas(frame.assign(behavior_type=frame["behavior_type"].replace("veiw", "view")))


def test_refused_rows_are_counted_by_reason_and_shown_with_what_they_held(repo: SmallRepo) -> None:
    shown = run("quarantine")
    assert "3 rows in quarantine" in shown
    assert "2 of user_embedding: behavior type unknown" in shown
    assert "1 of user_embedding: value infinite" in shown
    assert "behavior_type veiw" in shown
    assert "dedup_id b" in shown


def test_an_export_holds_what_was_asked_for(repo: SmallRepo) -> None:
    noon = f"{moment(day(4.4)):%Y-%m-%dT%H:%M:%S}"
    asked = {
        ("--view", "user_embedding"): "abc",
        ("--view", "item_embedding"): "",
        ("--reason", "type"): "ab",
        ("--since", noon): "bc",
        ("--until", noon): "a",
    }
    for options, ids in asked.items():
        for file, read in ((repo.folder / "bad.csv", pd.read_csv), (repo.folder / "bad.parquet", pd.read_parquet)):
            run("quarantine", *options, "--export", str(file))
            assert "".join(read(file)["dedup_id"]) == ids, (options, file.name)


def test_rows_that_the_contract_takes_by_now_are_left_to_a_refresh(repo: SmallRepo) -> None:
    path = repo.folder / "definitions.py"
    path.write_text(path.read_text().replace('BehaviorType("view")', 'BehaviorType("view", aliases=("veiw",))'))
    repo.apply()
    with pytest.raises(DeclarationError, match=r"2 of these rows stand in the behavior table.*feast materialize"):
        hand_back(repo.store, refused(repo.store, reason="type"))
    applied = repo.behaviors(day(5))
    tick_at(repo, 6, refresh=True)
    assert {101, 102} <= set(applied.items[applied.times_us >= day(4)].tolist())
    assert repo.vectors().found[:2].all()


def test_mended_rows_come_late_and_once_however_often_they_are_handed_back(repo: SmallRepo) -> None:
    file = repo.folder / "bad.csv"
    run("quarantine", "--reason", "type", "--export", str(file))
    file.write_text(file.read_text().replace("veiw", "view"))
    applied = repo.counts()["applied"]
    with at(day(5.5)):
        assert "2 behaviors handed back" in run("quarantine", "--hand-back", str(file))
        assert "0 behaviors handed back: these had been before" in run("quarantine", "--hand-back", str(file))
    tick_at(repo, 6)
    assert repo.counts()["applied"] == applied + 2
    assert repo.histories().items[repo.histories().offsets[1] - 1] == 101
    assert repo.vectors().found[:2].all()
    served = repo.vectors().values.tobytes()
    with at(day(6.5)):
        run("quarantine", "--hand-back", str(file))
        assert hand_back(repo.store, mended(refused(repo.store, reason="type")).slice(0, 1)) == 1
    tick_at(repo, 7)
    assert repo.counts()["applied"] == applied + 2
    assert repo.vectors().values.tobytes() == served
    tick_at(repo, 7.5, refresh=True)
    found = repo.behaviors(day(8))
    assert [found.items[found.times_us == day(time)].tolist() for time in (4.2, 4.4)] == [[101], [102]]


def test_rows_that_are_still_bad_are_refused_before_any_effect(repo: SmallRepo) -> None:
    before = sorted((repo.folder / "data" / "behaviors").iterdir())
    with pytest.raises(BehaviorSourceError, match=r"1 of 3 rows are still no behaviors.*row 3: value infinite"):
        hand_back(repo.store, mended(refused(repo.store)))
    with pytest.raises(BehaviorSourceError, match="no column 'item'"):
        hand_back(repo.store, refused(repo.store).drop_columns(["item"]))
    assert sorted((repo.folder / "data" / "behaviors").iterdir()) == before


@pytest.mark.parametrize(("contract", "match"), [("", "cannot come late.*created time.*feast materialize")])
def test_a_table_that_shows_nothing_late_is_refused_with_the_way_on(
    make_repo: MakeRepo, contract: str, match: str
) -> None:
    repo = make_repo(contract=contract)
    repo.deliver(rows(at=[day(1), day(1.5)], event=["veiw", "view"], id=["a", "b"]), "shop")
    repo.encode_with(tiny_encoder(1))
    tick_at(repo, 4)
    with pytest.raises(DeclarationError, match=match):
        hand_back(repo.store, mended(refused(repo.store)))


def test_a_stream_takes_mended_rows_back_once(make_repo: MakeRepo) -> None:
    repo = streamed(make_repo)
    with at(day(5)), by_hand(repo) as lane:
        send(repo, [behavior(1, 101, 4.5, event="veiw"), behavior(2, 102, 4.6)])
        lane.tick()
        found = mended(refused(repo.store))
        assert found["behavior_type"].to_pylist() == ["view"]
        for _ in range(2):
            assert hand_back(repo.store, found) == 1
        lane.tick()
        counts = repo.workspace.ledger.stream_counts("user_embedding")
    assert (counts["applied"], counts["deduplicated"], counts["quarantined: behavior type unknown"]) == (2, 1, 1)


def test_poison_is_listed_without_its_bytes(make_repo: MakeRepo) -> None:
    repo = streamed(make_repo)
    with at(day(5)), by_hand(repo) as lane:
        send(repo, [{**behavior(1, 101, 4.5), "price": "secret"}])
        lane.tick()
    shown = run("quarantine")
    assert "1 of user_embedding: poison message: value" in shown
    assert "secret" not in shown


def test_an_append_that_waits_says_what_was_refused_and_why(make_repo: MakeRepo) -> None:
    repo = streamed(make_repo)
    line = json.dumps(behavior(1, 101, 4.5, event="veiw") | {"at": now_us() - 1_000_000})
    said: list[str] = []
    with by_hand(repo) as lane:
        client = threading.Thread(target=lambda: said.append(run("append", "--wait", "20", line)))
        client.start()
        while client.is_alive():
            lane.tick()
    assert "1 behaviors appended" in said[0]
    assert "1 quarantined: behavior type unknown; `feast-embeddings quarantine` shows them" in said[0]


@pytest.mark.parametrize("name", ["bad.xlsx", "bad"])
def test_another_suffix_is_refused_by_name(repo: SmallRepo, name: str, tmp_path: Path) -> None:
    with pytest.raises(DeclarationError, match=r"neither \.parquet nor .csv"):
        CliRunner().invoke(app, ["quarantine", "--export", str(tmp_path / name)], catch_exceptions=False)

"""The command line: what it makes and prints, and how it fails."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
from feast import FeatureService, FeatureStore
from repo_fixture import MakeRepo, at, day, shop, tiny_encoder
from typer.testing import CliRunner

from feast_embeddings.materialize.cli import app, main
from feast_embeddings.materialize.demo import write_repo, write_shop
from feast_embeddings.models import load_encoder

RUN = CliRunner()


def _main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit status of ``feast-embeddings <arguments>``."""
    monkeypatch.setattr("sys.argv", ["feast-embeddings", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_init_writes_a_repo_that_declares_what_the_template_does(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = RUN.invoke(app, ["init", "My Shop-2"])
    assert done.exit_code == 0, done.output
    assert "feast apply" in done.output
    folder = here / "My Shop-2"
    assert {path.name for path in folder.iterdir()} == {"definitions.py", "feature_store.yaml", ".feastignore", "data"}
    assert "project: my_shop_2\n" in (folder / "feature_store.yaml").read_text()
    assert (folder / "data" / "behaviors" / "history.parquet").stat().st_size > 0
    monkeypatch.chdir(folder)
    declared = runpy.run_path("definitions.py")
    services = {value.name for value in declared.values() if isinstance(value, FeatureService)}
    assert services == {"ranking_training", "ranking_serving", "ranking_session", "candidate_items"}


def test_init_refuses_a_folder_that_holds_something(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "shop").mkdir()
    (here / "shop" / "mine.txt").write_text("mine")
    assert _main(monkeypatch, "init", "shop") == 1
    assert capsys.readouterr().err == "DeclarationError: shop is not empty: choose a new folder.\n"
    assert [path.name for path in (here / "shop").iterdir()] == ["mine.txt"]


def test_init_refuses_a_name_that_is_none(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _main(monkeypatch, "init", "2024") == 1
    assert "begins with a letter" in capsys.readouterr().err
    assert not (here / "2024").exists()


def test_train_puts_an_encoder_where_it_is_declared(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_repo(
        here / "shop",
        data=lambda path: write_shop(path, users=30, items=24, days=10, end_us=day(10)),
    )
    monkeypatch.chdir(folder)
    declared = runpy.run_path("definitions.py")
    names = ("user", "item", "behaviors", "history", "user_embedding", "item_embedding")
    FeatureStore(".").apply([declared[name] for name in names])
    monkeypatch.chdir(here)
    done = RUN.invoke(app, ["train", "-C", "shop", "--epochs", "1", "--context", "8", "--until", "2024-03-10"])
    assert done.exit_code == 0, done.output
    encoder = load_encoder(folder / "data" / "encoders" / "main")
    assert (encoder.dim, encoder.context) == (64, 8)
    assert encoder.space in done.output
    assert "30 entities" in done.output or "29 entities" in done.output


def test_status_and_rollback_show_and_switch_generations(
    make_repo: MakeRepo, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    repo = make_repo()
    repo.deliver(shop(6), "shop")
    repo.encode_with(tiny_encoder(1))
    monkeypatch.setenv("COLUMNS", "200")
    assert "none" in RUN.invoke(app, ["status"]).output
    assert _main(monkeypatch, "rollback", "main") == 1
    assert capsys.readouterr().err == (
        "SpaceError: Encoder 'main' has no retained generation to roll back to: run `feast materialize`.\n"
    )
    with at(day(3)):
        repo.materialize(day(3))
    old, new = repo.vectors().space, repo.encode_with(tiny_encoder(2))
    with at(day(4)):
        repo.materialize(day(4))
    capsys.readouterr()
    shown = RUN.invoke(app, ["status"]).output
    for words in ("main", old, new, "live", "retained", "2024-03-05 00:00:00 UTC", "Incremental"):
        assert words in shown, words
    done = RUN.invoke(app, ["rollback", "main", "--repo", str(repo.folder)])
    assert done.exit_code == 0, done.output
    assert "Generation 3 of encoder 'main' is live" in done.output
    assert repo.vectors().space == repo.vectors("item_embedding").space == old


@pytest.mark.parametrize("command", [["status"], ["train"], ["rollback", "main"]])
def test_a_folder_that_is_no_repo_is_named_in_one_line(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    assert _main(monkeypatch, *command) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(here) in error
    assert "--repo" in error


def test_an_unknown_encoder_is_answered_with_the_known_ones(
    make_repo: MakeRepo, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    repo = make_repo()
    repo.deliver(shop(2), "shop")
    repo.apply()
    assert _main(monkeypatch, "train", "--encoder", "other") == 1
    assert "declares these encoders: main. Name one with --encoder." in capsys.readouterr().err
    assert _main(monkeypatch, "rollback", "other") == 1
    assert "'other'" in capsys.readouterr().err

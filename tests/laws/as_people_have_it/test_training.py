"""Training as people do it: again, after a change, beside another, killed and taken up; and what it says of itself."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from click.testing import Result
from initialized import feast, initialized, standing_in
from typer.testing import CliRunner

from feast_embeddings.materialize.cli import app
from feast_embeddings.materialize.demo import training_config as demo_config
from feast_embeddings.materialize.learning import training_config
from feast_embeddings.models import read_manifest
from feast_embeddings.models.errors import ArtifactError, EvaluationError, FeastEmbeddingsError, LeaseError

RUN = CliRunner()
END_US = 1_750_000_000_000_000
ARTIFACT = Path("data/encoders/main")
CHECKPOINTS = ARTIFACT.with_name("main.checkpoints")
QUICK = ("--epochs", "2", "--context", "8")
LAST_DAY = "2025-06-14"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A repo as ``init`` writes it, applied; the process stands in it."""
    with standing_in(initialized(tmp_path_factory.mktemp("training") / "shop", END_US)) as repo:
        feast("apply")
        yield repo


def run(*arguments: str) -> Result:
    """A command that ends well."""
    done = RUN.invoke(app, list(arguments))
    assert done.exit_code == 0, (done.output, done.exception)
    return done


def refused(kind: type[FeastEmbeddingsError], *arguments: str) -> str:
    """What a command that is refused says."""
    done = RUN.invoke(app, list(arguments))
    assert isinstance(done.exception, kind), done.output
    return str(done.exception)


def space() -> str:
    return read_manifest(ARTIFACT).space


def last_line(done: Result) -> str:
    return done.stdout.strip().splitlines()[-1]


def one_more_behavior() -> None:
    table = pq.read_table("data/behaviors/history.parquet").slice(100, 1)
    table = table.set_column(table.column_names.index("event_id"), "event_id", pa.array(["one-more"]))
    later = pc.add(table["occurred_at"], pa.scalar(1_000_000, pa.duration("us")))
    table = table.set_column(table.column_names.index("occurred_at"), "occurred_at", later)
    pq.write_table(table, "data/behaviors/more.parquet")


def log_without_dirt() -> pd.DataFrame:
    """What a training reads: each delivery once, none without an item or of an unknown event, none of the erased."""
    parts = [pq.read_table(path).to_pandas() for path in Path("data/behaviors").glob("*.parquet")]
    rows = pd.concat(parts).drop_duplicates("event_id").dropna(subset="product_id")
    return rows[(rows["event"] != "wishlist") & (rows["customer_id"] != 1)]


def nothing() -> None:
    pass


def forgotten() -> None:
    run("forget", "--entity", "user", "--id", "1")


def damaged() -> None:
    (CHECKPOINTS / "checkpoint.json").write_text("{")


@pytest.mark.parametrize(
    ("change", "options"),
    [
        (one_more_behavior, ()),
        (nothing, ("--seed", "1")),
        (nothing, ("--until", LAST_DAY)),
        (nothing, ("--all",)),
        (nothing, ("--epochs", "1")),
        (nothing, ("--context", "6")),
        (damaged, ()),
        (forgotten, ()),
    ],
)
def test_a_training_after_a_change_is_no_other_than_on_a_clean_folder(
    shop: Path, change: Callable[[], None], options: tuple[str, ...]
) -> None:
    # Given a training that is finished
    run("train", *QUICK)
    # When something changes, and it is trained again
    change()
    again = run("train", *QUICK, *options)
    found = space()
    # Then it began anew, says so in a line, and made what it makes where no checkpoint lies
    assert len(re.findall("begins? anew", again.stderr)) == 1
    assert "epoch 1, loss" in again.stderr
    shutil.rmtree(CHECKPOINTS)
    assert "begin" not in run("train", *QUICK, *options).stderr
    assert space() == found


def test_a_training_of_the_same_is_taken_up_where_it_ended(shop: Path) -> None:
    run("train", *QUICK)
    found = space()
    again = run("train", *QUICK)
    assert "Goes on after epoch 2" in again.stderr
    assert "epoch 1, loss" not in again.stderr
    assert space() == found


def beside(*arguments: str, until: str) -> int:
    """The process that runs a command, stopped when its log holds ``until``."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        sys.stdout = sys.stderr = os.fdopen(writing, "w", buffering=1)
        app(list(arguments), standalone_mode=False)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as log:
        assert any(until in line for line in log)
        os.kill(child, signal.SIGSTOP)
    return child


def test_two_at_once_are_kept_apart_and_a_killed_one_is_taken_up(shop: Path) -> None:
    # Given what an undisturbed training makes
    options = ("--epochs", "16", "--context", "8", "--seed", "5")
    run("train", *options)
    undisturbed, before = space(), read_manifest(ARTIFACT)
    shutil.rmtree(CHECKPOINTS)
    # When one is at work, another is refused before it changes anything
    child = beside("train", *options, until="epoch 2, loss")
    assert "is being trained by another process: wait for it to end" in refused(LeaseError, "train", *QUICK)
    assert read_manifest(ARTIFACT) == before
    # When the first is killed, then the same training goes on, to the same weights
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert re.search(r"Goes on after epoch \d+", run("train", *options).stderr)
    assert space() == undisturbed


def test_a_log_gets_a_line_for_each_epoch(shop: Path) -> None:
    lines = run("train", "--epochs", "3", "--context", "8", "--seed", "2").stderr.splitlines()
    told = [line for line in lines if line.startswith("epoch ")]
    shape = r"epoch {}, loss \d+\.\d+, validation HR@10 \d\.\d+, NDCG@10 \d\.\d+; [\d.]+ s, [\d.]+ s in all"
    assert [bool(re.fullmatch(shape.format(number + 1), line)) for number, line in enumerate(told)] == [True] * 3


@pytest.mark.parametrize("kind", ["autoencoder", "adversarial"])
def test_every_kind_ends_with_a_verdict(shop: Path, kind: str) -> None:
    done = run("train", "--kind", kind, "--epochs", "2", "--context", "8")
    assert "epoch 2, loss" in done.stderr
    assert last_line(done).startswith("Verdict: encoder 'main' ")


def test_training_and_evaluation_are_one_protocol(shop: Path) -> None:
    # Given a training of everyone but the erased, that holds out what it is asked about
    forgotten()
    trained = run("train", *QUICK)
    learned = read_manifest(ARTIFACT).learned
    assert learned is not None
    # Then the artifact says what it learned from,
    assert learned.source == "data/behaviors"
    clean = log_without_dirt()
    before = clean[clean["occurred_at"].astype("int64") < learned.until_us]
    assert (learned.behaviors, learned.entities) == (len(before), before["customer_id"].nunique())
    assert 0.85 < learned.behaviors / len(clean) < 0.95
    assert learned.seconds > 0
    # evaluation asks what came afterwards, and finds the same figures
    assert last_line(trained).startswith("Verdict: encoder 'main' ")
    for name in ("popularity", "repeat purchase", "Markov table"):
        assert re.search(rf"{name} 0\.\d{{3}}", trained.stdout)
    asked = r"([\d,]+ questions from .* UTC to .* UTC)"
    evaluated = run("evaluate")
    said = [re.search(asked, " ".join(each.stdout.split())) for each in (trained, evaluated)]
    assert said[0] is not None
    assert said[1] is not None
    assert said[0][1] == said[1][1]
    figure = re.search(r"main (0\.\d{3})", trained.stdout)
    assert figure is not None
    assert re.search(rf"ndcg@10 {figure[1]} against", last_line(evaluated))


def test_an_evaluation_of_what_was_learned_is_refused(shop: Path) -> None:
    # Given an encoder that learned until the last day
    run("train", *QUICK, "--until", LAST_DAY)
    run("evaluate", "--at", "2025-06-15")
    # Then earlier questions are refused
    said = refused(EvaluationError, "evaluate", "--at", "2025-06-10")
    assert "learned until 2025-06-14 00:00:00 UTC" in said
    assert "--until 2025-06-10T00:00:00" in said
    # Given one that learned everything, then nothing is left to ask, and the remedy helps
    done = run("train", *QUICK, "--all")
    said = refused(EvaluationError, "evaluate")
    assert last_line(done) == f"No verdict: {said}"
    remedy = re.search(r"`feast-embeddings (train --until \S+)`", said)
    assert remedy is not None
    run(*remedy[1].split(), *QUICK)
    assert last_line(run("evaluate")).startswith("Verdict: encoder 'main' ")
    found = space()
    run("train", *QUICK)
    assert space() == found


def test_an_encoder_of_unknown_origin_is_split_only_where_asked(tmp_path: Path) -> None:
    with standing_in(initialized(tmp_path / "shop", END_US)):
        feast("apply")
        said = refused(EvaluationError, "evaluate")
        assert "does not say until when it learned: train it again, or split with --at" in said
        assert "does not say until when it learned" in run("evaluate", "--at", LAST_DAY).stdout


def test_what_an_encoder_learned_is_checked_like_the_rest_of_its_manifest(shop: Path) -> None:
    run("train", *QUICK)
    manifest = ARTIFACT / "manifest.json"
    whole = manifest.read_text()
    manifest.write_text(whole.replace('"until_us"', '"till"'))
    assert "lacks fields" in refused(ArtifactError, "evaluate")
    manifest.write_text(whole)


@pytest.mark.parametrize("kind", ["sequence", "autoencoder", "adversarial"])
def test_no_training_ends_by_the_clock_unless_asked(kind: str) -> None:
    chosen = training_config(kind, "article", context=8, seed=0, max_epochs=None, max_minutes=None)
    assert chosen.max_minutes is None
    assert demo_config(7).max_minutes is None

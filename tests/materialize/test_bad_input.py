"""Whatever is wrong with what a job is given: it says so, loses nothing, and goes on once that is mended."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from feast import FeatureStore
from repo_fixture import Frozen, MakeRepo, SmallRepo, at, day, shop, tiny_encoder

from feast_embeddings.materialize.ledger import held
from feast_embeddings.models import save_encoder
from feast_embeddings.models.errors import (
    ArtifactError,
    BehaviorSourceError,
    DeclarationError,
    FeastEmbeddingsError,
    LeaseError,
    LedgerError,
    OnlineStoreError,
    TickError,
)

ENCODER = Path("data/encoders/main")
BEHAVIORS = Path("data/behaviors")
STATE = Path("data/embeddings")


@dataclass(frozen=True)
class Ready:
    """A repo as of day 4, and what it serves after day 5."""

    repo: SmallRepo
    frozen: Frozen
    before: dict[str, Any]
    after: bytes


@pytest.fixture(scope="module")
def made(valkey: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ready]:
    here, folder = Path.cwd(), tmp_path_factory.mktemp("bad")
    os.chdir(folder)
    repo = SmallRepo(folder, valkey, f"bad{os.getpid()}", "Incremental(alpha=0.5)").write()
    repo.deliver(shop(8), "shop")
    repo.encode_with(tiny_encoder(1))
    with at(day(4)):
        repo.materialize(day(4))
    frozen, before = repo.freeze(), repo.snapshot()
    with at(day(5)):
        repo.incremental(day(5))
    yield Ready(repo, frozen, before, repo.vectors().values.tobytes())
    os.chdir(here)


@pytest.fixture
def ready(made: Ready, monkeypatch: pytest.MonkeyPatch) -> Ready:
    monkeypatch.chdir(made.repo.folder)
    made.repo.thaw(made.frozen)
    return made


# ── faults of a whole table, artifact, or service ────────────────────────────────────────────────────────────


def _no_column(repo: SmallRepo) -> None:
    repo.deliver(shop(8).drop_columns("item"), "shop")


def _text_for_times(repo: SmallRepo) -> None:
    table = shop(8)
    repo.deliver(table.set_column(3, "at", table["at"].cast(pa.string())), "shop")


def _lists_for_ids(repo: SmallRepo) -> None:
    table = shop(8)
    repo.deliver(table.set_column(0, "user", pa.array([[user] for user in table["user"].to_pylist()])), "shop")


def _no_rows(repo: SmallRepo) -> None:
    repo.deliver(shop(8).slice(0, 0), "shop")


def _truncated_table(repo: SmallRepo) -> None:
    file = BEHAVIORS / "shop.parquet"
    file.write_bytes(file.read_bytes()[:-100])


def _no_source(repo: SmallRepo) -> None:
    shutil.rmtree(BEHAVIORS)


def _no_artifact(repo: SmallRepo) -> None:
    shutil.rmtree(ENCODER)


def _retrained(repo: SmallRepo) -> None:
    save_encoder(tiny_encoder(2), ENCODER)


def _other_dimension(repo: SmallRepo) -> None:
    save_encoder(tiny_encoder(1, dim=4), ENCODER)


def _newer_artifact(repo: SmallRepo) -> None:
    manifest = json.loads((ENCODER / "manifest.json").read_text())
    (ENCODER / "manifest.json").write_text(json.dumps(manifest | {"format_version": 2}))


def _kept_copies() -> Iterator[Path]:
    """The weights, as declared and as kept by their space."""
    return Path("data").rglob("*.weights.safetensors")


def _truncated_artifact(repo: SmallRepo) -> None:
    for file in _kept_copies():
        file.write_bytes(file.read_bytes()[:-8])


def _altered_artifact(repo: SmallRepo) -> None:
    for file in _kept_copies():
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)


def _newer_ledger(repo: SmallRepo) -> None:
    with sqlite3.connect(STATE / "ledger.db") as database:
        database.execute("INSERT INTO feast_embeddings_schema VALUES (99)")


def _damaged_ledger(repo: SmallRepo) -> None:
    for file in STATE.glob("ledger.db*"):
        file.write_bytes(b"no ledger" * 1000)


def _configured(repo: SmallRepo, old: str, new: str) -> None:
    yaml = Path("feature_store.yaml")
    assert old in yaml.read_text()
    yaml.write_text(yaml.read_text().replace(old, new))


def _no_redis(repo: SmallRepo) -> None:
    _configured(repo, repo.connection, "redis://someone:secret@127.0.0.1:1/0")


def _stock_online_store(repo: SmallRepo) -> None:
    _configured(repo, "feast_embeddings.materialize.online_store.EmbeddingOnlineStore", "sqlite")
    _configured(repo, f"connection_string: {repo.connection}", "path: data/online.db")


def _no_staged_files(repo: SmallRepo) -> None:
    log = STATE / "log"
    shutil.rmtree(log)
    log.write_text("a file where a folder should be")


@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        (_no_column, BehaviorSourceError, ("'item'", "shop.parquet", "BehaviorContract(")),
        (_text_for_times, BehaviorSourceError, ("'at'", "shop.parquet", "a timestamp", "event_time=")),
        (_lists_for_ids, BehaviorSourceError, ("'user'", "shop.parquet", "an int64 id", "entity=")),
        (_no_rows, BehaviorSourceError, ("data/behaviors", "no rows", "Point the FileSource")),
        (_truncated_table, BehaviorSourceError, ("shop.parquet", "not a whole parquet", "Write it again")),
        (_no_source, BehaviorSourceError, ("data/behaviors", "does not exist", "FileSource")),
        (_no_artifact, ArtifactError, ("'user_embedding'", "data/encoders/main", "feast-embeddings train")),
        (_retrained, ArtifactError, ("'user_embedding'", "data/encoders/main", "feast apply")),
        (_other_dimension, ArtifactError, ("'user_embedding'", "dim=8", "has 4", "correct dim=")),
        (_newer_artifact, ArtifactError, ("data/encoders/main", "format version 2", "reads 1")),
        (_truncated_artifact, ArtifactError, ("weights.safetensors", "truncated", "Save or copy")),
        (_altered_artifact, ArtifactError, ("weights.safetensors", "SHA-256", "Save or copy")),
        (_newer_ledger, LedgerError, ("ledger.db", "version 99", "upgrade the package")),
        (_damaged_ledger, LedgerError, ("ledger.db", "Check")),
        (_no_redis, OnlineStoreError, ("127.0.0.1:1", "cannot be reached", "connection_string")),
        (_stock_online_store, OnlineStoreError, ("EmbeddingOnlineStore", "SqliteOnlineStore", "feature_store.yaml")),
    ],
)
def test_a_job_says_what_is_wrong_and_loses_nothing(
    ready: Ready, spoil: Callable[[SmallRepo], None], error: type[FeastEmbeddingsError], words: tuple[str, ...]
) -> None:
    repo, watermark = ready.repo, ready.repo.feast_watermark()
    spoil(repo)
    with at(day(5)), pytest.raises(error) as caught:
        repo.incremental(day(5))
    assert all(word in str(caught.value) for word in words), caught.value
    assert "secret" not in str(caught.value)
    assert repo.feast_watermark() == watermark
    _mended(ready)
    assert repo.snapshot() == ready.before
    with at(day(5)):
        repo.incremental(day(5))
    assert repo.vectors().values.tobytes() == ready.after


def _mended(ready: Ready) -> None:
    """Put back what was spoiled, and only that; the state of the jobs stays as the failed one left it."""
    repo, copy = ready.repo, ready.frozen.folder
    for folder in (BEHAVIORS, ENCODER, STATE / "encoders"):
        shutil.copytree(copy / folder, folder, dirs_exist_ok=True)
    for stale in set(_names(ENCODER)) - set(_names(copy / ENCODER)):
        (ENCODER / stale).unlink()
    shutil.copy(copy / "feature_store.yaml", "feature_store.yaml")
    if _unusable(STATE / "ledger.db"):
        for file in STATE.glob("ledger.db*"):
            file.unlink()
        for file in (copy / STATE).glob("ledger.db*"):
            shutil.copy(file, STATE)
    repo._store = None


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def _unusable(ledger: Path) -> bool:
    try:
        with sqlite3.connect(ledger) as database:
            (version,) = database.execute("SELECT max(version) FROM feast_embeddings_schema").fetchone()
    except sqlite3.DatabaseError:
        return True
    return bool(version != 1)


def test_two_jobs_on_one_view_are_one_too_many(ready: Ready) -> None:
    repo, tick = ready.repo, ready.repo.last_tick()
    resource = f"view 'user_embedding' of project {repo.project!r}"
    with at(day(5)):
        with held(repo.workspace.ledger, resource), pytest.raises(LeaseError) as caught:
            repo.incremental(day(5))
        assert all(word in str(caught.value) for word in (resource, "run again")), caught.value
        assert (repo.last_tick(), repo.snapshot()) == (tick, ready.before)
        repo.incremental(day(5))
    assert repo.vectors().values.tobytes() == ready.after


def test_an_end_before_the_start_or_the_watermark_is_refused(ready: Ready) -> None:
    repo = ready.repo
    with at(day(5)):
        with pytest.raises(TickError, match=r"already stands at 2024-03-05.*go back in time"):
            repo.materialize(day(2))
        repo.incremental(day(2))  # nothing is due there
    assert repo.snapshot() == ready.before


def test_another_engine_is_named(ready: Ready) -> None:
    engine = "batch_engine: {type: feast_embeddings.materialize.engine.EmbeddingEngine, device: cpu}"
    _configured(ready.repo, engine, "batch_engine: local")
    with pytest.raises(DeclarationError, match=r"batch_engine is 'local'.*EmbeddingEngine"):
        _ = ready.repo.workspace
    with at(day(5)), pytest.raises(ArtifactError, match=r"batch_engine: \{type: .*EmbeddingEngine"):
        ready.repo.incremental(day(5))


# ── declarations ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ("Incremental(alpha=1.5)", ("alpha=1.5", "[0, 1]")),
        ("Incremental(every='0d')", ("every", "'0d'")),
        ("Incremental(alpha=0.1, half_life='1d')", ("two blends",)),
        ("Hybrid(every='7d', full_every='1d')", ("full_every='1d'", "Full(every=")),
    ],
)
def test_a_policy_that_cannot_be_stops_the_apply(ready: Ready, policy: str, words: tuple[str, ...]) -> None:
    repo, registered = ready.repo, ready.repo.spec()
    valid = repo.policy
    repo.declare(policy)
    with pytest.raises(DeclarationError) as caught:
        repo.apply()
    assert all(word in str(caught.value) for word in words), caught.value
    repo.declare(valid)
    repo._store = None
    assert repo.spec() == registered


def test_an_encoder_of_another_dimension_stops_the_apply(ready: Ready) -> None:
    save_encoder(tiny_encoder(1, dim=4), ENCODER)
    with pytest.raises(DeclarationError, match=r"'user_embedding' declares dim=8.*has 4.*dim=4"):
        ready.repo.apply()


def test_ids_of_two_kinds_stop_the_apply(make_repo: MakeRepo) -> None:
    repo = make_repo(contract='entity_dtype="string"')
    repo.deliver(shop(2), "shop")
    with pytest.raises(ValueError, match=r"Entity user has type ValueType.INT64.*String"):
        repo.apply()


def test_behavior_types_in_another_order_are_refused(make_repo: MakeRepo) -> None:
    repo = make_repo()
    repo.deliver(shop(8), "shop")
    text = Path("definitions.py").read_text()
    types = 'types=(BehaviorType("view"), BehaviorType("purchase"))'
    assert types in text
    Path("definitions.py").write_text(text.replace(types, 'types=(BehaviorType("purchase"), BehaviorType("view"))'))
    repo.encode_with(tiny_encoder(1))
    with at(day(4)), pytest.raises(DeclarationError, match=r"'behaviors'.*only be added at the end"):
        repo.materialize(day(4))
    assert repo.last_tick() is None
    assert not repo.vectors().found.any()
    Path("definitions.py").write_text(text)
    repo.apply()
    with at(day(4)):
        repo.materialize(day(4))
    assert repo.vectors().found.any()


def test_the_store_of_a_failed_job_still_serves(ready: Ready) -> None:
    repo = ready.repo
    _no_source(repo)
    with at(day(5)), pytest.raises(BehaviorSourceError):
        repo.incremental(day(5))
    answer = FeatureStore(".").get_online_features(["user_embedding:embedding"], [{"user_id": 1}]).to_dict()
    assert answer["embedding"][0] is not None

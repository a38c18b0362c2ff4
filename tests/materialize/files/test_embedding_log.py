"""Staged files and the embedding log."""

from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np
import pytest

from feast_embeddings.materialize.declare import Storage
from feast_embeddings.materialize.files.embedding_log import EmbeddingLog, LogStamp
from feast_embeddings.models import HistoryBatch
from feast_embeddings.models.errors import LedgerError, OnlineStoreError
from feast_embeddings.models.types import Float32s, Ids

DIM = 4
DAY = 86_400_000_000
T0 = 1_709_251_200_000_000
INTS = np.array([5, -3, 2**62], np.int64)
TEXTS = np.array(["b", "ä", ""], object)


def _log(folder: Path, ids: Ids = INTS) -> EmbeddingLog:
    return EmbeddingLog(folder / "log", "user_id", string_ids=ids.dtype == object)


def _vectors(seed: int, rows: int = 3) -> Float32s:
    values = np.random.default_rng(seed).normal(size=(rows, DIM)).astype(np.float32)
    if rows:
        values[0, :3] = -0.0, np.float32(1e-45), np.finfo(np.float32).max
    return values


def _stamp(tick: int = 1, fill: str = "f", event_us: int = T0) -> LogStamp:
    return LogStamp(fill, "s" * 16, tick, T0 - DAY, T0 - 5, event_us)


def _histories(items: Ids) -> HistoryBatch:
    return HistoryBatch(
        offsets=np.array([0, 2, 2, 3]),
        items=items,
        behavior_types=np.array([0, 1, 0], np.int32),
        times=np.array([T0 - 3, T0 - 2, T0 - 1]),
        values=np.array([np.nan, -0.0, 2.5], np.float32),
        as_of=np.full(3, T0),
    )


@pytest.mark.parametrize("ids", [INTS, TEXTS], ids=["int64", "string"])
def test_vectors_come_back_bit_for_bit(tmp_path: Path, ids: Ids) -> None:
    log = _log(tmp_path, ids)
    log.stage("f", 1, ids, _vectors(1))
    staged = log.staged("f", 1)
    assert staged is not None
    assert staged[0].tolist() == ids.tolist()
    assert staged[0].dtype == ids.dtype
    assert staged[1].tobytes() == _vectors(1).tobytes()
    assert log.staged("f", 2) is None
    assert log.staged("g", 1) is None


@pytest.mark.parametrize("ids", [INTS, TEXTS], ids=["int64", "string"])
def test_histories_come_back_bit_for_bit(tmp_path: Path, ids: Ids) -> None:
    log, batch = _log(tmp_path, ids), _histories(ids)
    log.stage_history(7, ids, batch)
    staged = log.staged_history(7)
    assert staged is not None
    assert staged[0].tolist() == ids.tolist()
    for name in ("offsets", "behavior_types", "times", "values", "as_of"):
        found, wanted = getattr(staged[1], name), getattr(batch, name)
        assert (found.dtype, found.tobytes()) == (wanted.dtype, wanted.tobytes()), name
    assert staged[1].items.tolist() == batch.items.tolist()
    assert log.staged_history(8) is None


@pytest.mark.parametrize("ids", [INTS[:0], TEXTS[:0]], ids=["int64", "string"])
def test_a_tick_without_entities_is_staged_and_published_as_empty(tmp_path: Path, ids: Ids) -> None:
    log = _log(tmp_path, ids)
    empty = np.empty(0, np.int64)
    floats = np.empty(0, np.float32)
    log.stage("f", 1, ids, _vectors(1, 0))
    log.stage_history(1, ids, HistoryBatch(np.zeros(1, np.int64), ids, empty.astype(np.int32), empty, floats, empty))
    staged, history = log.staged("f", 1), log.staged_history(1)
    assert staged is not None
    assert history is not None
    assert (len(staged[0]), len(staged[1]), len(history[0]), len(history[1])) == (0, 0, 0, 0)
    assert log.publish(_stamp(), live=True) == 0


def test_what_was_staged_first_wins(tmp_path: Path) -> None:
    log = _log(tmp_path)
    log.stage("f", 1, INTS, _vectors(1))
    log.stage("f", 1, INTS, _vectors(2))
    log.stage_history(1, INTS, _histories(INTS))
    log.stage_history(1, INTS, _histories(INTS + 1))
    staged, history = log.staged("f", 1), log.staged_history(1)
    assert staged is not None
    assert history is not None
    assert staged[1].tobytes() == _vectors(1).tobytes()
    assert history[1].items.tolist() == INTS.tolist()
    assert {path.name for path in (log.folder / "staged").iterdir()} == {
        "0000000001-f.arrow",
        "0000000001-history.arrow",
    }, "no temporary file stays"


@pytest.mark.parametrize(
    ("storage", "bad"), [("float32", np.nan), ("float32", np.inf), ("float16", 1e9), ("float16", np.nan)]
)
def test_vectors_that_are_no_numbers_are_not_staged(tmp_path: Path, storage: Storage, bad: float) -> None:
    log = EmbeddingLog(tmp_path / "log", "user_id", string_ids=False, storage=storage)
    vectors = np.ones((3, DIM), np.float32)
    vectors[1, 2] = bad
    with pytest.raises(OnlineStoreError, match="that is not finite"):
        log.stage("f", 1, INTS, vectors)
    assert log.staged("f", 1) is None


def test_publishing_twice_leaves_one_copy(tmp_path: Path) -> None:
    log = _log(tmp_path)
    log.stage("f", 1, INTS, _vectors(1))
    assert [log.publish(_stamp(), live=True), log.publish(_stamp(), live=True)] == [3, 3]
    log.drop_staged(1, ["f"])
    assert log.publish(_stamp(), live=True) == 3, "published before: nothing to do"
    assert len(log.files()) == 1


def test_publishing_what_was_never_staged_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match=r"Tick 3 of fill g has no staged file under .*feast materialize"):
        _log(tmp_path).publish(_stamp(3, "g"), live=True)


def test_the_log_is_plain_parquet_for_any_reader(tmp_path: Path) -> None:
    log = _log(tmp_path)
    log.create()
    log.create()
    log.stage("f", 1, INTS, _vectors(1))
    log.publish(_stamp(), live=True)
    log.stage("f", 2, INTS[:1], _vectors(2)[:1])
    log.publish(_stamp(2, event_us=T0 + 9), live=True)
    log.stage("old", 2, INTS, _vectors(3))
    log.publish(_stamp(2, "old"), live=False)
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        relation = connection.read_parquet(str(log.folder / "live" / "*.parquet"))
        table = relation.order("event_timestamp, user_id").to_arrow_table()
    assert table.column_names == log.schema.names
    assert table["user_id"].to_pylist() == [-3, 5, 2**62, 5]
    found = table["embedding"].combine_chunks().flatten().to_numpy()
    assert found.tobytes() == np.concatenate([_vectors(1)[[1, 0, 2]], _vectors(2)[:1]]).tobytes()
    assert table["tick"].to_pylist() == [1, 1, 1, 2]
    micros = {name: table[name].cast("int64").to_pylist() for name in ("event_timestamp", "written_at", "tick_end")}
    assert micros == {
        "event_timestamp": [T0, T0, T0, T0 + 9],
        "written_at": [T0 - 5] * 4,
        "tick_end": [T0 - DAY] * 4,
    }
    assert set(table["fill"].to_pylist()) == {"f"}
    assert set(table["space"].to_pylist()) == {"s" * 16}
    assert set(table["replayed"].to_pylist()) == {False}


def test_a_fresh_log_has_its_columns_and_no_rows(tmp_path: Path) -> None:
    log = _log(tmp_path, TEXTS)
    log.create()
    with duckdb.connect() as connection:
        table = connection.read_parquet(str(log.folder / "live" / "*.parquet")).to_arrow_table()
    assert (table.num_rows, table.column_names) == (0, log.schema.names)

"""The newest row of every entity in a log."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from feast_embeddings.materialize.files.embedding_log import EmbeddingLog, LogStamp
from feast_embeddings.materialize.files.newest_rows import newest_rows


def _publish(log: EmbeddingLog, fill: str, tick: int, ids: list, *, live: bool = True, replayed: bool = False) -> None:
    dtype = object if isinstance(ids[0], str) else np.int64
    vectors = np.full((len(ids), 2), tick, np.float32) + (0.5 if fill == "b" else 0)
    log.stage(fill, tick, np.array(ids, dtype), vectors)
    stamp = LogStamp(fill, "s", tick, tick * 10, tick * 10 + 1, tick * 10 + 2, replayed)
    log.publish(stamp, live=live)


@pytest.mark.parametrize("string_ids", [False, True])
def test_each_entity_has_its_newest_row_in_each_fill(tmp_path: Path, string_ids: bool) -> None:
    log = EmbeddingLog(tmp_path / "a[1]*?", 'the "key"', string_ids=string_ids)
    one, two, three = ("1", "2", "3") if string_ids else (1, 2, 3)
    log.create()
    _publish(log, "a", 1, [one, two, three])
    _publish(log, "b", 2, [one, two], live=False)
    _publish(log, "a", 3, [two])
    _publish(log, "gone", 4, [one])
    _publish(log, "a", 5, [three], replayed=True)
    found = {
        (rows.fill, rows.tick): (rows.ids.tolist(), rows.vectors.tolist(), rows.tick_end_us, rows.written_us)
        for rows in newest_rows(log, ["a", "b"])
    }
    assert found == {
        ("a", 1): ([one, three], [[1, 1], [1, 1]], 10, 11),
        ("b", 2): ([one, two], [[2.5, 2.5]] * 2, 20, 21),
        ("a", 3): ([two], [[3, 3]], 30, 31),
    }
    assert not list(newest_rows(log, []))

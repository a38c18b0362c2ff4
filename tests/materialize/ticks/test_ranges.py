"""A refresh's snapshot by ranges of entities is the snapshot at once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from behavior_log_fixture import CONTRACT, TICK
from repo_fixture import DAY, T0, rows

from feast_embeddings.materialize.files import BehaviorLog, Digest, counts_of, digest
from feast_embeddings.materialize.ticks import ranges as snapshots
from feast_embeddings.materialize.ticks.ranges import snapshot
from feast_embeddings.transformations import Behaviors, CleaningRules

REFRESH = replace(TICK, kind="full", start_us=None, created_from_us=None)


def _table(seed: int) -> pa.Table:
    """Behaviors of two hundred users, some twice, some of them bad, some too late to be known."""
    rng = np.random.default_rng(seed)
    count = 900
    at = rng.integers(T0, T0 + 3 * DAY, count)
    table = rows(
        user=[None if user == 0 else int(user) for user in rng.integers(0, 200, count)],
        item=[None if item == 0 else int(item) for item in rng.integers(0, 50, count)],
        at=[None if number % 97 == 0 else int(us) for number, us in enumerate(at)],
        created=(at + rng.integers(0, DAY, count)).tolist(),
        id=[f"id-{number}" if number % 3 else None for number in range(count)],
    )
    return table.take(rng.permutation(np.append(np.arange(count), rng.integers(0, count, 100))))


@pytest.mark.parametrize("text", [False, True], ids=["int64", "string"])
@pytest.mark.parametrize("most", [50, 400, 10_000])
def test_ranges_of_entities_are_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, text: bool
) -> None:
    table, contract = _table(most), CONTRACT
    if text:
        table = table.set_column(0, "user", table["user"].cast(pa.string()))
        contract = replace(CONTRACT, entity_dtype="string")
    for number in range(3):
        pq.write_table(table.slice(number * 400, 400), tmp_path / f"{number}.parquet")
    source = BehaviorLog(str(tmp_path), contract, CleaningRules(max_per_day=8))
    monkeypatch.setattr(snapshots, "PART_BEHAVIORS", most)
    parts = list(snapshot(source, REFRESH, tmp_path / "state"))
    whole = source.members(REFRESH)
    assert (len(parts) == 1) == (most > 1000)
    assert Behaviors.concat([part.behaviors for part in parts]).table.equals(whole.behaviors.table)
    lasts, firsts = ([part.behaviors.entities[at] for part in parts] for at in (-1, 0))
    assert all(last < first for last, first in zip(lasts, firsts[1:], strict=False)), "a range follows the other"
    counts, state = {}, Digest()
    for part in parts:
        state.add(part.behaviors)
        for what, number in counts_of(part).items():
            counts[what] = counts.get(what, 0) + number
    assert counts == counts_of(whole)
    assert state.hexdigest() == digest(whole.behaviors)
    assert not list(tmp_path.glob("state/.snapshot-*")), "the files it was spread over are left"


def test_the_digest_of_parts_is_that_of_the_whole(tmp_path: Path) -> None:
    pq.write_table(rows(user=[1, 2, 3], at=[T0, T0 + 1, T0 + 2]), tmp_path / "one.parquet")
    behaviors = BehaviorLog(str(tmp_path), CONTRACT, CleaningRules()).members(REFRESH).behaviors
    state = Digest()
    for user in (1, 2, 3):
        state.add(behaviors.select(np.repeat(behaviors.entities == user, np.diff(behaviors.offsets))))
    assert state.hexdigest() == digest(behaviors)

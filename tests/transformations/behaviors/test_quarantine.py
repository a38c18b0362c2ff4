"""What is refused is kept, once per tick, whatever happens to the run."""

from pathlib import Path

import pyarrow as pa
import pytest

from feast_embeddings.transformations import Quarantine
from feast_embeddings.transformations.behaviors.validate import QUARANTINE_SCHEMA


def refused(*reasons: str) -> pa.Table:
    return pa.Table.from_pylist([{"entity": "1", "reason": reason} for reason in reasons], QUARANTINE_SCHEMA)


def test_rows_come_back_with_their_view_and_tick(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path / "quarantine")
    quarantine.write("user/embedding", 3, refused("bot"))
    quarantine.write("other", 4, refused("burst", "bot"))
    rows = quarantine.read().to_pylist()
    assert [(row["view"], row["tick"], row["reason"]) for row in rows] == [
        ("other", 4, "burst"),
        ("other", 4, "bot"),
        ("user/embedding", 3, "bot"),
    ]
    assert quarantine.read("user/embedding")["tick"].to_pylist() == [3]
    assert quarantine.read(tick=4)["reason"].to_pylist() == ["burst", "bot"]


def test_counts_are_per_reason_most_frequent_first(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path)
    quarantine.write("v", 1, refused("burst", "bot"))
    quarantine.write("v", 2, refused("bot"))
    assert list(quarantine.counts("v").items()) == [("bot", 2), ("burst", 1)]
    assert quarantine.counts("unknown") == {}


def test_a_tick_that_is_run_again_replaces_its_rows(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path)
    quarantine.write("v", 1, refused("bot", "bot"))
    quarantine.write("v", 1, refused("burst"))
    assert quarantine.counts() == {"burst": 1}
    quarantine.write("v", 1, refused())
    assert quarantine.read().num_rows == 0


def test_a_write_that_fails_leaves_the_earlier_rows_and_no_litter(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path)
    quarantine.write("v", 1, refused("bot"))
    with pytest.raises(ValueError, match="names are not matching"):
        quarantine.write("v", 1, pa.table({"foreign": [1]}))
    assert quarantine.counts() == {"bot": 1}
    assert [file.name for file in (tmp_path / "v").iterdir()] == ["000000000001.parquet"]

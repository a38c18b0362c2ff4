"""The demo on a few households of the real year: parity holds, and would show it if it did not."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from feast import FeatureStore

from feast_embeddings.materialize.clock import simulated, us_of
from feast_embeddings.materialize.demo import reads, replay, run
from feast_embeddings.materialize.demo.parity import compare
from feast_embeddings.materialize.demo.ranker import rank
from feast_embeddings.materialize.demo.reads import Rows
from feast_embeddings.models import SequenceConfig, TrainingConfig

DAY_US = 86_400_000_000
HOUSEHOLDS = 50
ROWS = 240
END = datetime(2017, 10, 18, tzinfo=UTC)
SMALL = TrainingConfig(
    encoder=SequenceConfig(context=16, blocks=1), max_epochs=1, min_item_count=3, negatives=64, full_softmax_items=500
)
pytestmark = pytest.mark.filterwarnings("ignore:Stream feature views are experimental:RuntimeWarning")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder in which the demo ran on 50 households and 17 days, and what it printed."""
    folder = tmp_path_factory.mktemp("demo") / "work"
    whole = run.write_journey

    def few(path: Path) -> object:
        summary = whole(path)
        table = pq.read_table(path)
        pq.write_table(table.filter(pc.less_equal(table["customer_id"], HOUSEHOLDS)), path)
        return summary

    printed = folder.parent / "printed.txt"
    with pytest.MonkeyPatch.context() as patch, printed.open("w") as out, contextlib.redirect_stdout(out):
        patch.setattr(run, "write_journey", few)
        patch.setattr(run, "SAMPLE", 30)
        patch.setattr(run, "END", END)
        patch.setattr(replay, "END", END)
        patch.setattr(replay, "ROLLBACK_DAY", 10)
        patch.setattr(run, "POLICIES", {"Incremental": 'Incremental(every="1d")', "Full": 'Full(every="7d")'})
        patch.setenv("COLUMNS", "100")
        run.run_demo(folder, 3, config=SMALL, rows=ROWS)
    return folder, printed.read_text()


def test_every_read_equals_history(demo: tuple[Path, str]) -> None:
    folder, printed = demo
    figures = json.loads((folder / "figures.json").read_text())
    assert f"{ROWS} of {ROWS} historical rows" in printed
    assert figures["parity"]["equal"] == figures["parity"]["rows"] == ROWS
    assert 0 < figures["parity"]["in_window"] < ROWS
    assert figures["ranker"]["equal_scores"] == figures["ranker"]["rows"] > 0


def test_the_table_names_every_policy_and_baseline_best_first(demo: tuple[Path, str]) -> None:
    folder, printed = demo
    lines = json.loads((folder / "figures.json").read_text())["lines"]
    best_first = sorted(lines, key=lambda line: -line["quality"]["ndcg"])
    order = [printed.index(f"│ {line['name']} ") for line in best_first]
    assert order == sorted(order)
    assert {line["name"] for line in lines} == {"Incremental", "Full", "popular, 7 days", "repeat purchase"}


def test_the_picture_is_a_png(demo: tuple[Path, str]) -> None:
    folder, _ = demo
    assert (folder / "policies.png").read_bytes().startswith(b"\x89PNG")


def test_a_vector_that_was_never_served_breaks_parity(demo: tuple[Path, str]) -> None:
    folder, _ = demo
    with contextlib.chdir(folder / "incremental"), simulated(us_of(END) + DAY_US) as clock:
        store = FeatureStore(".")
        asked = pd.DataFrame({"user_id": np.arange(40) + 1, "item_id": np.full(40, 1082185)})
        asked = asked.assign(event_timestamp=pd.Timestamp(clock.now_us, unit="us", tz="UTC"))
        rows = {name: asked[name].tolist() for name in ("user_id", "item_id")}
        answer = store.get_online_features(reads.FEATURES, entity_rows=rows, full_feature_names=True).to_dict()
        online = reads.rows_of(answer[reads.USER], answer[reads.ITEM], replay.DIM)
        assert online.found.sum() > 20
        assert compare(store, asked, online).parity.equal == 40
        users = np.where(online.found[:, None], np.nextafter(online.users, np.float32(9)), online.users)
        altered = dataclasses.replace(online, users=users)
        assert compare(store, asked, altered).parity.equal == 40 - online.found.sum()


def test_the_ranker_scores_equal_rows_alike_and_learns() -> None:
    generator = np.random.default_rng(0)
    bought = generator.random(400) < 0.5
    users = generator.normal(size=(400, 8)).astype(np.float32)
    items = (users * np.where(bought, 1, -1)[:, None] + generator.normal(size=(400, 8))).astype(np.float32)
    rows = Rows(users, items, np.ones(400, bool))
    report = rank(rows, rows, bought, np.ones(400, bool), seed=1)
    assert report.rows == report.equal_scores == 400
    assert report.auc > 0.9


def test_the_output_has_no_trace_of_feasts_own(demo: tuple[Path, str]) -> None:
    _, printed = demo
    assert not re.search("Materializing|experimental", printed)

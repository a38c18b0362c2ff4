"""The shop that ``init`` generates, trained as the README says: an encoder finds in it what a count does not."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from click.testing import Result
from initialized import feast, standing_in
from typer.testing import CliRunner

from feast_embeddings.materialize.cli import app
from feast_embeddings.materialize.demo import write_repo, write_shop

RUN = CliRunner()
END_US = 1_750_000_000_000_000
DAY_US = 86_400_000_000
PROCESSOR_S = 20.0


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The repo of ``init``, its shop ending at a fixed time, applied; the process stands in it."""
    folder = tmp_path_factory.mktemp("shop") / "shop"
    with standing_in(write_repo(folder, data=lambda path: write_shop(path, end_us=END_US))) as repo:
        feast("apply")
        yield repo


@pytest.fixture(scope="module")
def trained(shop: Path) -> tuple[Result, float]:
    """The default training, and the processor seconds that it took."""
    started = time.process_time()
    done = RUN.invoke(app, ["train"])
    return done, time.process_time() - started


def ndcg() -> dict[str, float]:
    """NDCG@10 per method, as ``evaluate`` finds it."""
    done = RUN.invoke(app, ["evaluate", "--json", "found.json", "--resamples", "100"])
    assert done.exit_code == 0, done.output
    methods = json.loads(Path("found.json").read_text())["methods"]
    return {name: found["estimates"]["all"]["ndcg@10"]["value"] for name, found in methods.items()}


def test_the_default_training_takes_seconds_and_beats_counting(trained: tuple[Result, float]) -> None:
    # Given the shop of `init`, when `train` runs as it is
    done, seconds = trained
    assert done.exit_code == 0, done.output
    # Then it takes seconds, tells each epoch, and its last line is a verdict
    assert seconds < PROCESSOR_S
    assert sum(line.startswith("epoch ") for line in done.stderr.splitlines()) == 6
    assert "Verdict: encoder 'main' beats Markov table, the best of 3 baselines" in done.stdout.splitlines()[-1]


def test_no_count_finds_what_the_encoder_finds(trained: tuple[Result, float]) -> None:
    found = ndcg()
    encoder = found.pop("main")
    assert encoder > 1.15 * max(found.values())
    assert encoder > 4 * found["popularity"]


def test_the_shop_has_seasons_and_new_items(shop: Path) -> None:
    table = pq.read_table("data/behaviors/history.parquet")
    table = table.filter(pc.is_valid(table["product_id"]))
    times, items = table["occurred_at"].cast("int64").to_numpy(), table["product_id"].to_numpy()
    # When the shop's past is cut in thirds, then in each another cluster is looked at most
    third = (times - times.min()) * 3 // (times.max() - times.min() + 1)
    clusters = (items - 1_001) % 6
    shares = [[float((clusters[third == number] == each).mean()) for each in range(6)] for number in range(3)]
    for number in range(3):
        assert shares[number][number] > max(shares[other][number] for other in range(3) if other != number)
    # and one item in ten arrives later, the last of them near the end
    first = {int(item): int(times[items == item].min()) for item in set(items.tolist())}
    late = [item for item, seen in first.items() if seen > times.min() + 4 * DAY_US]
    assert len([item for item in late if item > 1_001 + 120 - 12 - 1]) >= 10

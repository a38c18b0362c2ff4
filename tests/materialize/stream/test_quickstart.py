"""The five commands that the documentation shows, run as they stand there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from feast import FeatureStore
from feast.repo_config import load_repo_config
from feast.repo_operations import apply_total

from feast_embeddings.materialize.clock import now_us
from feast_embeddings.materialize.demo import write_repo
from feast_embeddings.materialize.online import detach
from feast_embeddings.models import ItemIndex, SequenceConfig, SequenceEncoder, save_encoder

ROOT = Path(__file__).parents[3]
BLOCK = re.compile(r"```console\n((?:\$ .*\n)+)```")
pytestmark = pytest.mark.filterwarnings("ignore:Stream feature views are experimental:RuntimeWarning")


def commands(text: str) -> list[str]:
    """The commands of the block that starts a stream."""
    (block,) = (block for block in BLOCK.findall(text) if "feast-embeddings stream &" in block)
    return [line.removeprefix("$ ") for line in block.splitlines()]


@pytest.fixture
def live_repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What `init`, a training and `feast materialize` leave, but for the training."""
    folder = write_repo(tmp_path / "shop", policy="Incremental()")
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "definitions", raising=False)
    items = pq.read_table(folder / "data" / "behaviors", columns=["product_id"])["product_id"]
    items = np.sort(items.drop_null().unique().to_numpy())
    torch.manual_seed(0)
    config = SequenceConfig(dim=64, context=10, blocks=1, heads=1, hidden=16)
    encoder = SequenceEncoder(config, ("view", "cart", "purchase", "coupon"), ItemIndex(items)).eval()
    save_encoder(encoder, folder / "data" / "encoders" / "main")
    apply_total(load_repo_config(Path(), Path("feature_store.yaml")), Path(), skip_source_validation=True)
    monkeypatch.delitem(sys.modules, "definitions")
    end = datetime.fromtimestamp(now_us() // 1_000_000, UTC)
    store = FeatureStore(".")
    store.materialize(end, end, ["user_embedding", "item_embedding"])
    return folder


def test_a_click_changes_what_is_recommended(live_repo: Path) -> None:
    five = commands((ROOT / "docs" / "stream.md").read_text(encoding="utf-8"))
    assert len(five) == 5
    assert five == commands((ROOT / "README.md").read_text(encoding="utf-8"))
    script = "\n".join(["set -e", "trap 'kill %1; wait' EXIT", five[0], *(f"{line}; echo ---" for line in five[1:])])
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    try:
        done = subprocess.run(
            ["bash", "-c", script], cwd=live_repo, env=os.environ | {"PATH": path, "PYTHONWARNINGS": "ignore"},
            capture_output=True, text=True, timeout=280, check=False,
        )  # fmt: skip
    finally:
        detach(live_repo / "data" / "valkey")
    assert done.returncode == 0, done.stderr
    before, appended, after, replayed, *_ = (part.strip().splitlines() for part in done.stdout.split("---"))
    assert "1 behaviors appended" in appended[-1]
    assert before[-5:] != after[-5:]
    assert "bit-equal to what is served" in replayed[-1]


def test_the_readme_shows_the_same_commands() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = [line[2:] for line in readme.splitlines() if line.startswith("$ feast-embeddings stream &")]
    assert not shown or commands(readme) == commands((ROOT / "docs" / "stream.md").read_text(encoding="utf-8"))

"""A repo as ``feast-embeddings init`` writes it, with little data and an encoder of random weights: ready to apply."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from click.testing import CliRunner
from feast.cli.cli import cli

from feast_embeddings.materialize.demo import write_repo, write_shop
from feast_embeddings.materialize.online import detach
from feast_embeddings.models import ItemIndex, SequenceConfig, SequenceEncoder, save_encoder

USERS, ITEMS, DAYS = 20, 24, 12


def initialized(folder: Path, end_us: int) -> Path:
    """Such a repo in a new folder, with behaviors of twelve days up to ``end_us``."""
    repo = write_repo(folder, data=lambda path: write_shop(path, users=USERS, items=ITEMS, days=DAYS, end_us=end_us))
    torch.manual_seed(1)
    config = SequenceConfig(dim=64, context=10, blocks=1, heads=1, hidden=8)
    items = ItemIndex(np.arange(1_001, 1_001 + ITEMS))
    save_encoder(SequenceEncoder(config, ("view", "cart", "purchase", "coupon"), items), repo / "data/encoders/main")
    return repo


@contextmanager
def standing_in(repo: Path) -> Iterator[Path]:
    """The process stands in the repo, as a shell would; its own Valkey ends with the ``with`` block."""
    here = Path.cwd()
    os.chdir(repo)
    try:
        yield repo
    finally:
        detach(repo / "data" / "valkey")
        os.chdir(here)


def feast(*arguments: str) -> str:
    """What a ``feast`` command prints; in this process, because to import Feast anew takes longer than most of them.

    Feast puts the repo on the path for good, where the next one's ``definitions`` would be found in it.
    """
    sys.modules.pop("definitions", None)
    importlib.invalidate_caches()
    before = list(sys.path)
    try:
        done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    finally:
        sys.path[:] = before
    assert done.exit_code == 0, done.output
    return done.output

"""docs/own_encoder.md, carried out: an encoder of twenty lines is served as any other."""

import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from repo_fixture import ITEMS, USERS, day, shop

from feast_embeddings.materialize import nearest, read_vectors
from feast_embeddings.models import load_encoder
from feast_embeddings.models.encoder import ENCODER_KINDS
from feast_embeddings.models.errors import ArtifactError

GUIDE = (Path(__file__).parents[2] / "docs" / "own_encoder.md").read_text()


def blocks(language: str) -> list[str]:
    return [part.partition("```")[0] for part in GUIDE.split(f"```{language}\n")[1:]]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The guide's module as an installed package, in a process that has not imported it."""
    site = tmp_path / "site"
    (site / "recent_mean-1.dist-info").mkdir(parents=True)
    (site / "recent_mean.py").write_text(blocks("python")[0])
    ((group, named),) = tomllib.loads(blocks("toml")[0])["project"]["entry-points"].items()
    lines = [f"[{group}]", *(f"{kind} = {target}" for kind, target in named.items())]
    (site / "recent_mean-1.dist-info" / "entry_points.txt").write_text("\n".join(lines))
    (site / "recent_mean-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: recent_mean\nVersion: 1\n")
    monkeypatch.delitem(ENCODER_KINDS, "recent-mean", raising=False)
    monkeypatch.delitem(sys.modules, "recent_mean", raising=False)
    yield site
    ENCODER_KINDS.pop("recent-mean", None)
    sys.modules.pop("recent_mean", None)


def save(folder: Path) -> np.ndarray:
    """The guide's second block, run in ``folder``; the item vectors it was given."""
    vectors = np.random.default_rng(0).normal(size=(len(ITEMS), 8)).astype(np.float32)
    exec(blocks("python")[1], {"item_ids": ITEMS, "item_vectors": vectors})  # noqa: S102
    assert (folder / "data" / "encoders" / "main" / "manifest.json").exists()
    return vectors


def test_the_guide_ends_in_vectors_read_online(package, make_repo, monkeypatch):
    """Given an encoder found by its entry point, when a repo materializes it, then reads return what it says."""
    repo = make_repo(policy="Full()")
    repo.deliver(shop(3), "all")
    monkeypatch.syspath_prepend(package)
    vectors = save(repo.folder)
    ENCODER_KINDS.pop("recent-mean")  # as a process that never imported the module
    repo.apply()
    repo.materialize(day(3))

    history = repo.histories(day(3))
    served = read_vectors(repo.store, "user_embedding:embedding", USERS.tolist())
    assert served.found.tolist() == (history.lengths > 0).tolist()
    for user in np.flatnonzero(served.found):
        items = history.items[history.offsets[user] : history.offsets[user + 1]]
        weights = 0.5 ** (np.arange(len(items))[::-1] / 5.0)
        expected = weights @ vectors[np.searchsorted(ITEMS, items)] / weights.sum()
        assert np.allclose(served.values[user], expected, atol=1e-5)
    found = nearest(repo.store, "item_embedding:embedding", served, k=3)
    assert np.isin(found.ids, ITEMS).all()


def test_a_kind_that_nothing_names_is_refused(package, make_repo, monkeypatch):
    repo = make_repo()
    with monkeypatch.context() as installed:
        installed.syspath_prepend(package)
        save(repo.folder)
    ENCODER_KINDS.pop("recent-mean")
    with pytest.raises(ArtifactError, match=r"is of kind 'recent-mean'.*or install a package that names it"):
        load_encoder(repo.folder / "data" / "encoders" / "main")

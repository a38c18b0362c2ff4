"""The feature repo that a command works on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from feast import FeatureStore

LOOPBACK = "127.0.0.1"
"""Where a worker serves its metrics unless told otherwise."""
Repo = Annotated[Path, typer.Option("--repo", "-C", help="The feature repo's folder.")]


def opened(repo: Path) -> FeatureStore:
    """The feature store of a repo; its paths are relative to the repo, so this process moves there."""
    from feast import FeatureStore

    from feast_embeddings.models.errors import DeclarationError

    if not (repo / "feature_store.yaml").is_file():
        raise DeclarationError(f"{repo.resolve()} holds no feature_store.yaml: name the feature repo with --repo.")
    os.chdir(repo)
    return FeatureStore(".")

"""The feature repo that a command works on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from feast import FeatureStore

from feast_embeddings.models.errors import DeclarationError

Repo = Annotated[Path, typer.Option("--repo", "-C", help="The feature repo's folder.")]


def opened(repo: Path) -> FeatureStore:
    """The feature store of a repo; its paths are relative to the repo, so this process moves there."""
    if not (repo / "feature_store.yaml").is_file():
        raise DeclarationError(f"{repo.resolve()} holds no feature_store.yaml: name the feature repo with --repo.")
    os.chdir(repo)
    return FeatureStore(".")

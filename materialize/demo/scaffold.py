"""``feast-embeddings init``: writes a feature repo to start from, with behaviors to try it on."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

from feast_embeddings.materialize.clock import now_us
from feast_embeddings.materialize.demo.shop import write_shop
from feast_embeddings.models.errors import DeclarationError

_TEMPLATE = ("definitions.py", "feature_store.yaml", ".feastignore")


def write_repo(folder: Path, *, policy: str | None = None, data: Callable[[Path], object] | None = None) -> Path:
    """Write a feature repo into a new or empty folder; its project is named after the folder.

    Args:
        folder: Where to.
        policy: The policy, as Python, in place of the template's.
        data: Writes the behaviors; default: those of a small generated shop, up to now.

    Returns:
        The folder.

    Raises:
        DeclarationError: The folder holds something, or its name is no name for a project.
    """
    name = re.sub(r"[^a-z0-9_]", "_", folder.resolve().name.lower())
    if not re.match(r"[a-z]", name):
        raise DeclarationError(f"{folder} gives no name for a Feast project: choose one that begins with a letter.")
    if folder.exists() and any(folder.iterdir()):
        raise DeclarationError(f"{folder} is not empty: choose a new folder.")
    (folder / "data" / "behaviors").mkdir(parents=True)
    for file in _TEMPLATE:
        text = files("feast_embeddings.feature_repo").joinpath(file).read_text(encoding="utf-8")
        (folder / file).write_text(_filled(folder, file, text, name, policy), encoding="utf-8")
    (data or _shop)(folder / "data" / "behaviors" / "history.parquet")
    return folder


def _filled(folder: Path, file: str, text: str, project: str, policy: str | None) -> str:
    if file == "feature_store.yaml":
        # Feast 0.67 opens a registry in SQLite relative to the working directory, everything else relative to the repo.
        registry = json.dumps(f"sqlite:///{folder.resolve() / 'data' / 'registry.db'}", ensure_ascii=False)
        text = text.replace("sqlite:///data/registry.db", registry, 1)
        return re.sub(r"(?m)^project: .*$", f"project: {project}", text, count=1)
    if file == "definitions.py" and policy is not None:
        kind = policy.partition("(")[0]
        text = re.sub(r"(?m)^POLICY = .*$", lambda _: f"POLICY = {policy}", text, count=1)
        return text.replace("    Hybrid,", f"    {kind},", 1)
    return text


def _shop(path: Path) -> int:
    return write_shop(path, end_us=now_us())

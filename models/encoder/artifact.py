"""Encoders on disk: safetensors and JSON, checked when read, replaced as a whole."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar
from uuid import uuid4

import numpy as np
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors

from feast_embeddings.models.encoder.device import Device
from feast_embeddings.models.encoder.protocol import Encoder, EncoderState, space_of
from feast_embeddings.models.errors import ArtifactError
from feast_embeddings.models.types import Ids

FORMAT_VERSION = 1
MANIFEST = "manifest.json"

ENTRY_POINTS = "feast_embeddings.encoders"
"""Group of entry points by which packages name their encoders, such as ``my-kind = "my_package:MyEncoder"``."""

_ITEM_IDS = "item_ids"


class StorableEncoder(Encoder, Protocol):
    """An `Encoder` that can be taken apart into a state and built again from it."""

    def state(self) -> EncoderState:
        """Everything that makes the encoder what it is."""

    @classmethod
    def from_state(cls, state: EncoderState, device: Device = None, precision: str | None = None) -> Self:
        """The encoder of a state; the inverse of ``state``, bit for bit."""


ENCODER_KINDS: dict[str, type[StorableEncoder]] = {}
"""Classes by the kind that a manifest names."""

_Class = TypeVar("_Class", bound=type[StorableEncoder])


def register_encoder(kind: str) -> Callable[[_Class], _Class]:
    """Class decorator that lets `load_encoder` build artifacts of ``kind``; the last registration counts."""

    def register(encoder_class: _Class) -> _Class:
        ENCODER_KINDS[kind] = encoder_class
        return encoder_class

    return register


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of an artifact as its manifest vouches for it."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Learned:
    """What a training learned from.

    Attributes:
        until_us: Behaviors before this time, microseconds since the epoch, UTC.
        source: Where they were read, as declared.
        behaviors: How many.
        entities: Of how many entities.
        seconds: Wall time of the training.
    """

    until_us: int
    source: str
    behaviors: int
    entities: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an artifact holds, readable without its weights.

    Attributes:
        format_version: Of the artifact's layout, `FORMAT_VERSION` here.
        kind: Registered name of the encoder's class.
        config: Architecture and fitted preprocessing, JSON values.
        behavior_types: Names behind the behavior-type codes.
        dim: Length of a vector.
        context: The most behaviors a vector depends on.
        items: Number of known items.
        space: Identity of the vector space.
        files: The other files of the artifact.
        created_by: Name and version of the writing package.
        learned: What it learned from; None where whoever saved it did not say.
    """

    format_version: int
    kind: str
    config: dict[str, Any]
    behavior_types: tuple[str, ...]
    dim: int
    context: int
    items: int
    space: str
    files: tuple[StoredFile, ...]
    created_by: str
    learned: Learned | None = None


def save_encoder(encoder: StorableEncoder, directory: str | os.PathLike[str], learned: Learned | None = None) -> str:
    """Writes an encoder's artifact into ``directory``, replacing one that is there, and returns its space.

    Data files carry a digest in their name and the manifest is replaced last, atomically: a reader finds
    the whole old artifact or the whole new one, also after a crash at any point. Saving the same encoder
    again changes nothing. ``learned`` is recorded beside it, and is no part of its space.

    Raises:
        ArtifactError: The folder cannot be written.
    """
    path, state = Path(directory), encoder.state()
    contents = _contents(state)
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        kind=state.kind,
        config=state.config,
        behavior_types=state.behavior_types,
        dim=state.dim,
        context=state.context,
        items=len(state.item_ids),
        space=space_of(state),
        files=tuple(StoredFile(name, len(data), _sha256(data)) for name, data in contents.items()),
        created_by=f"feast-embeddings {_package_version()}",
        learned=learned,
    )
    try:
        path.mkdir(parents=True, exist_ok=True)
        for name, data in contents.items():
            write_atomically(path / name, data)
        write_atomically(path / MANIFEST, json.dumps(asdict(manifest), indent=2).encode())
        _remove_stale(path, set(contents))
    except OSError as error:
        raise ArtifactError(
            f"Encoder artifact {path} cannot be written ({error}): choose a writable folder."
        ) from error
    return manifest.space


def read_manifest(directory: str | os.PathLike[str]) -> Manifest:
    """The manifest of the artifact in ``directory``; reads no weights.

    Raises:
        ArtifactError: There is no artifact, its manifest is damaged, or it has another format version.
    """
    path = Path(directory)
    try:
        fields = json.loads((path / MANIFEST).read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ArtifactError(
            f"No encoder artifact at {path}: it has no {MANIFEST}. "
            "Check the path, or train an encoder and save it there."
        ) from error
    except ValueError as error:
        raise ArtifactError(f"{path / MANIFEST} is damaged ({error}): save or copy the encoder there again.") from error
    found = fields.get("format_version") if isinstance(fields, dict) else None
    if found != FORMAT_VERSION:
        raise ArtifactError(
            f"Encoder artifact {path} has format version {found}, this package reads {FORMAT_VERSION}: "
            "use the package version that wrote it, or save the encoder again."
        )
    try:
        fields["files"] = tuple(StoredFile(**file) for file in fields["files"])
        if fields.get("learned") is not None:
            fields["learned"] = Learned(**fields["learned"])
        return Manifest(**{**fields, "behavior_types": tuple(fields["behavior_types"])})
    except (KeyError, TypeError) as error:
        raise ArtifactError(
            f"{path / MANIFEST} lacks fields ({error}): save or copy the encoder there again."
        ) from error


def load_encoder(
    directory: str | os.PathLike[str], device: Device = None, precision: str | None = None
) -> StorableEncoder:
    """The encoder saved in ``directory``, every file and the space checked against the manifest.

    Args:
        directory: The artifact's folder.
        device: cuda, mps or cpu; None chooses, see `device.choose_device`.
        precision: float32, the default, or bf16.

    Raises:
        ArtifactError: The artifact is missing, truncated, altered, of another format version or of an
            unknown kind.
    """
    path = Path(directory)
    manifest = read_manifest(path)
    encoder_class = _class_of(manifest.kind, path)
    try:
        data = {file.name: _checked(path, file) for file in manifest.files}
    except ArtifactError:
        if read_manifest(path) == manifest:
            raise
        return load_encoder(path, device, precision)  # replaced between manifest and files: read the new one
    state = _state(path, manifest, data)
    if space_of(state) != manifest.space:
        raise ArtifactError(
            f"Encoder artifact {path} does not have the space {manifest.space} that its manifest names: "
            "the manifest was altered. Save or copy the encoder there again."
        )
    return encoder_class.from_state(state, device, precision)


def _class_of(kind: str, path: Path) -> type[StorableEncoder]:
    """The class of a kind: registered, or else named by the entry point of an installed package."""
    if kind not in ENCODER_KINDS:
        for plugin in entry_points(group=ENTRY_POINTS, name=kind):
            ENCODER_KINDS[kind] = plugin.load()
    if kind not in ENCODER_KINDS:
        raise ArtifactError(
            f"Encoder artifact {path} is of kind {kind!r}, known are {', '.join(sorted(ENCODER_KINDS))}: import the "
            "module that registers it with register_encoder before loading, or install a package that names it "
            f"under the entry points {ENTRY_POINTS!r}."
        )
    return ENCODER_KINDS[kind]


def write_atomically(path: Path, data: bytes) -> None:
    """Replaces the file at ``path``: a reader, or a crash, leaves the old bytes or all of the new ones."""
    partial = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _contents(state: EncoderState) -> dict[str, bytes]:
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.tensors.items()}
    if state.item_ids.dtype == np.int64:
        tensors[_ITEM_IDS] = torch.from_numpy(np.ascontiguousarray(state.item_ids))
        parts = {"weights.safetensors": dump_tensors(tensors)}
    else:
        items = json.dumps(state.item_ids.tolist(), ensure_ascii=False).encode()
        parts = {"weights.safetensors": dump_tensors(tensors), "items.json": items}
    return {f"{_sha256(data)[:12]}.{name}": data for name, data in parts.items()}


def _checked(path: Path, file: StoredFile) -> bytes:
    remedy = "Save or copy the encoder there again."
    try:
        data = (path / file.name).read_bytes()
    except FileNotFoundError as error:
        raise ArtifactError(f"Encoder artifact {path} lacks its file {file.name}. {remedy}") from error
    if len(data) != file.bytes:
        raise ArtifactError(f"{path / file.name} is truncated: {len(data)} bytes instead of {file.bytes}. {remedy}")
    if _sha256(data) != file.sha256:
        raise ArtifactError(f"{path / file.name} was altered: its SHA-256 is not the manifest's. {remedy}")
    return data


def _state(path: Path, manifest: Manifest, data: dict[str, bytes]) -> EncoderState:
    parts = {name.partition(".")[2]: content for name, content in data.items()}
    if "weights.safetensors" not in parts:
        raise ArtifactError(f"{path / MANIFEST} names no weights: save or copy the encoder there again.")
    tensors = load_tensors(parts["weights.safetensors"])
    if "items.json" in parts:
        item_ids: Ids = np.array(json.loads(parts["items.json"]), dtype=object)
    else:
        item_ids = tensors.pop(_ITEM_IDS).numpy()
    return EncoderState(
        kind=manifest.kind,
        config=manifest.config,
        behavior_types=manifest.behavior_types,
        dim=manifest.dim,
        context=manifest.context,
        tensors=tensors,
        item_ids=item_ids,
    )


def _remove_stale(path: Path, current: set[str]) -> None:
    for name in ("weights.safetensors", "items.json"):
        for file in path.glob(f"*.{name}"):
            if file.name not in current and not file.name.startswith("."):
                file.unlink(missing_ok=True)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _package_version() -> str:
    try:
        return version("feast-embeddings")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "unknown"

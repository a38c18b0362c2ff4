"""What one feature repo has open: its ledger, logs, quarantine and encoders."""

from __future__ import annotations

import shutil
import uuid
from functools import cached_property
from pathlib import Path

from feast import FeatureStore, RepoConfig
from feast.infra.registry.base_registry import BaseRegistry

from feast_embeddings.materialize.declare import EmbeddingSpec, behaviors_of, embedding_specs
from feast_embeddings.materialize.files.appended import parts_folder
from feast_embeddings.materialize.files.behavior_log import BehaviorLog
from feast_embeddings.materialize.files.embedding_log import EmbeddingLog
from feast_embeddings.materialize.ledger import Ledger
from feast_embeddings.materialize.paths import RepoPaths
from feast_embeddings.models import Encoder, load_encoder, read_manifest
from feast_embeddings.models.errors import ArtifactError, DeclarationError
from feast_embeddings.transformations import Quarantine


class Workspace:
    """Handles of one feature repo, opened at first use.

    Attributes:
        paths: Where they are.
        root, state: As in :class:`~feast_embeddings.materialize.paths.RepoPaths`.
    """

    def __init__(self, paths: RepoPaths, device: str | None = None, precision: str | None = None) -> None:
        self.paths, self.root, self.state = paths, paths.root, paths.state
        self._device = device
        self._precision = precision
        self._encoders: dict[str, Encoder] = {}

    @classmethod
    def of(cls, config: RepoConfig) -> Workspace:
        """The workspace of a feature repo; raises DeclarationError where it does not use our engine."""
        return cls(RepoPaths.of(config), config.batch_engine.device, config.batch_engine.precision)

    @cached_property
    def ledger(self) -> Ledger:
        """The ledger; opened, and made where it is new, at first use."""
        self.state.mkdir(parents=True, exist_ok=True)
        return Ledger(self.paths.ledger_url)

    def log(self, spec: EmbeddingSpec) -> EmbeddingLog:
        """The embedding log of a view."""
        folder = self.root / spec.log
        return EmbeddingLog(folder, spec.join_key, string_ids=spec.string_ids, storage=spec.storage)

    def behavior_log(self, registry: BaseRegistry, project: str, spec: EmbeddingSpec) -> BehaviorLog:
        """The behaviors that a view is made from."""
        return BehaviorLog.of(behaviors_of(registry, project, spec), self.root, self.ledger)

    def quarantine(self) -> Quarantine:
        """Where bad behaviors of this repo are kept."""
        return Quarantine(self.paths.quarantine)

    def declared_space(self, spec: EmbeddingSpec) -> str:
        """The space of the encoder that ``spec`` declares, after keeping a copy of the encoder by its space.

        Raises:
            ArtifactError: There is no such artifact, it was retrained since the view was applied, or its
                vectors have another dimension than declared.
        """
        artifact = self.root / spec.artifact
        if not artifact.exists():
            raise ArtifactError(
                f"View {spec.view!r}: no encoder artifact at {artifact}: run `feast-embeddings train` first, "
                "or correct artifact= in its declaration."
            )
        manifest = read_manifest(artifact)
        if manifest.dim != spec.dim:
            raise ArtifactError(
                f"View {spec.view!r} declares dim={spec.dim}, but the encoder at {artifact} has {manifest.dim}: "
                "correct dim= in its declaration, or train again."
            )
        if spec.declared_space not in (None, manifest.space):
            raise ArtifactError(
                f"View {spec.view!r} was applied with space {spec.declared_space}, but the encoder at {artifact} is "
                f"{manifest.space}: run `feast apply` to declare it, or put the old artifact back."
            )
        self._keep(artifact, manifest.space)
        return manifest.space

    def encoder(self, space: str) -> Encoder:
        """The encoder of a space that was declared once; loaded once per workspace."""
        if space not in self._encoders:
            self._encoders[space] = self._load(self.paths.encoder(space))
        return self._encoders[space]

    def _load(self, artifact: Path) -> Encoder:
        return load_encoder(artifact, device=self._device, precision=self._precision)

    def _keep(self, artifact: Path, space: str) -> None:
        """Copy an artifact aside by its space: ticks of a retained generation need its encoder after a retraining."""
        kept = self.paths.encoder(space)
        if kept.exists():
            return
        self._encoders[space] = self._load(artifact)
        temporary = kept.with_name(f".{space}.{uuid.uuid4().hex}")
        shutil.copytree(artifact, temporary)
        try:
            temporary.rename(kept)
        except OSError:  # another job kept it first
            shutil.rmtree(temporary)


def behavior_log_of(store: FeatureStore, workspace: Workspace, spec: EmbeddingSpec) -> BehaviorLog:
    """The behavior log that micro-batches are appended to; raises DeclarationError where it is no folder."""
    log = workspace.behavior_log(store.registry, store.project, spec)
    place = parts_folder(log.path)
    if place is None:
        raise DeclarationError(
            f"The behaviors of view {spec.view!r} are in {log.path}, which is no folder: a stream appends files to its "
            "behavior log. Move the file into a folder of its own, and name that, or folder/*.parquet, in "
            "behavior_source(path=…)."
        )
    place.mkdir(parents=True, exist_ok=True)
    others = [each for each in embedding_specs(store.registry, store.project) if each.behaviors == spec.behaviors]
    appended = [each.view for each in others if each.view != spec.view and any(place.glob(f"stream-{each.view}-*"))]
    if appended:
        raise DeclarationError(
            f"The stream of view {appended[0]!r} appends the behaviors {spec.behaviors!r} to their log already, and "
            f"that of {spec.view!r} would append them twice: give one of them a behaviors view of its own."
        )
    return log

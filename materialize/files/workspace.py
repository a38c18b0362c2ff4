"""The state of one feature repo: where the ledger, the logs and the encoders are, found from Feast's own config."""

from __future__ import annotations

import shutil
import uuid
from functools import cached_property
from pathlib import Path

from feast import FeatureStore, FeatureView, RepoConfig
from feast.infra.registry.base_registry import BaseRegistry

from feast_embeddings.materialize.declare.views import EmbeddingSpec, is_embedding, spec_of
from feast_embeddings.materialize.files.embedding_log import EmbeddingLog
from feast_embeddings.materialize.ledger.database import Ledger
from feast_embeddings.models import Encoder, load_encoder, read_manifest
from feast_embeddings.models.errors import ArtifactError, DeclarationError
from feast_embeddings.transformations import Quarantine


class Workspace:
    """Paths and handles of one feature repo. Relative paths of its declarations start at the repo's folder.

    Attributes:
        root: The feature repo's folder.
        state: Its state folder: ledger, encoders by space, quarantine.
    """

    def __init__(
        self, root: Path, state: str, ledger_url: str | None, device: str | None, precision: str | None
    ) -> None:
        self.root = root
        self.state = root / state
        self._ledger_url = ledger_url
        self._device = device
        self._precision = precision
        self._encoders: dict[str, Encoder] = {}

    @classmethod
    def of(cls, config: RepoConfig) -> Workspace:
        """The workspace of a feature repo; raises DeclarationError where it does not use our engine."""
        engine = config.batch_engine
        state = getattr(engine, "state", None)
        if state is None:
            raise DeclarationError(
                f"Project {config.project!r}: batch_engine is {getattr(engine, 'type', engine)!r}: write "
                "`batch_engine: {type: feast_embeddings.materialize.engine.EmbeddingEngine}` in feature_store.yaml."
            )
        return cls(Path(config.repo_path or "."), state, engine.ledger, engine.device, engine.precision)

    @cached_property
    def ledger(self) -> Ledger:
        """The ledger; opened, and made where it is new, at first use."""
        if self._ledger_url is None:
            self.state.mkdir(parents=True, exist_ok=True)
            return Ledger(f"sqlite:///{self.state / 'ledger.db'}")
        return Ledger(self._ledger_url)

    def standing(self) -> Workspace:
        """The same repo with a ledger of its own, whatever folder the process moves to."""
        return Workspace(
            self.root.absolute(), str(self.state.absolute()), self._ledger_url, self._device, self._precision
        )

    def log(self, spec: EmbeddingSpec) -> EmbeddingLog:
        """The embedding log of a view."""
        folder = self.root / spec.log
        return EmbeddingLog(folder, spec.join_key, string_ids=spec.string_ids, storage=spec.storage)

    def quarantine(self) -> Quarantine:
        """Where bad behaviors of this repo are kept."""
        return Quarantine(self.state / "quarantine")

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
            self._encoders[space] = load_encoder(self._kept(space), device=self._device, precision=self._precision)
        return self._encoders[space]

    def _kept(self, space: str) -> Path:
        return self.state / "encoders" / space

    def _keep(self, artifact: Path, space: str) -> None:
        """Copy an artifact aside by its space: ticks of a retained generation need its encoder after a retraining."""
        if self._kept(space).exists():
            return
        self._encoders[space] = load_encoder(artifact, device=self._device, precision=self._precision)
        temporary = self._kept(space).with_name(f".{space}.{uuid.uuid4().hex}")
        shutil.copytree(artifact, temporary)
        try:
            temporary.rename(self._kept(space))
        except OSError:  # another job kept it first
            shutil.rmtree(temporary)


def view_resource(project: str, view: str) -> str:
    """Name of the lease that keeps jobs of one view apart that run ticks."""
    return f"view {view!r} of project {project!r}"


def refresh_resource(project: str, view: str) -> str:
    """Name of the lease that keeps refreshes of one view apart; ticks go on beside them."""
    return f"refresh of view {view!r} of project {project!r}"


def cutover_resource(project: str, encoder: str) -> str:
    """Name of the lease that keeps cutovers of one encoder apart."""
    return f"cutover of encoder {encoder!r} of project {project!r}"


def embedding_specs(registry: BaseRegistry, project: str) -> list[EmbeddingSpec]:
    """Declarations of every embedding view of a project."""
    return [spec_of(view) for view in registry.list_stream_feature_views(project) if is_embedding(view)]


def encoder_specs(registry: BaseRegistry, project: str, encoder: str) -> list[EmbeddingSpec]:
    """Declarations of the views that share an encoder name: they are cut over together."""
    return [spec for spec in embedding_specs(registry, project) if spec.encoder == encoder]


def user_spec(store: FeatureStore, view: str | None) -> EmbeddingSpec:
    """The embedding view of that name, or the only one whose entities behave."""
    specs = [spec for spec in embedding_specs(store.registry, store.project) if spec.tower == "user"]
    chosen = [spec for spec in specs if view in (None, spec.view)]
    if len(chosen) == 1:
        return chosen[0]
    names = ", ".join(sorted(spec.view for spec in specs)) or "none"
    raise DeclarationError(
        f"Project {store.project!r} declares these embedding views of behaviors: {names}. "
        + ("Name one of them." if specs else "Declare one with embedding_view() and run `feast apply`.")
    )


def behaviors_of(registry: BaseRegistry, project: str, spec: EmbeddingSpec) -> FeatureView:
    """The view over the raw behaviors that ``spec`` names."""
    return registry.get_feature_view(spec.behaviors, project)

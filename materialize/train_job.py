"""Trains the encoder that a feature repo declares, on its behavior log, and puts the artifact where it is declared."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from feast import FeatureStore

from feast_embeddings.materialize.clock import now_us
from feast_embeddings.materialize.members import BehaviorLog
from feast_embeddings.materialize.views import EmbeddingSpec
from feast_embeddings.materialize.workspace import Workspace, behaviors_of, embedding_specs
from feast_embeddings.models import TrainingConfig, save_encoder, train
from feast_embeddings.models.errors import DeclarationError
from feast_embeddings.models.training import TrainResult
from feast_embeddings.transformations import Histories


@dataclass(frozen=True)
class Training:
    """What a training made.

    Attributes:
        spec: The view whose encoder it is.
        space: The new space.
        behaviors: Behaviors it learned from.
        entities: Entities among them.
        result: Epochs and the encoder.
    """

    spec: EmbeddingSpec
    space: str
    behaviors: int
    entities: int
    result: TrainResult


def train_declared(
    store: FeatureStore,
    config: TrainingConfig,
    *,
    encoder: str | None = None,
    until_us: int | None = None,
    progress: bool = True,
) -> Training:
    """Train the encoder named ``encoder`` on behaviors before ``until_us`` (microseconds; default: now).

    The dimension is the declared one, whatever ``config`` says. Checkpoints go beside the artifact: a stopped
    training is taken up by the same call.

    Raises:
        DeclarationError: The repo declares no such encoder, or was not applied.
        BehaviorSourceError: There is nothing to learn from.
    """
    workspace = Workspace.of(store.config)
    spec = _user_spec(store, encoder)
    log = BehaviorLog.of(behaviors_of(store.registry, store.project, spec), workspace.root, workspace.ledger)
    now = now_us()
    behaviors = log.until(now if until_us is None else until_us, now)
    ends = np.full(len(behaviors.entities), behaviors.times_us.max(initial=0) + 1, np.int64)
    longest = int(np.diff(behaviors.offsets).max(initial=0))
    histories = Histories(behaviors).as_of(behaviors.entities, ends, longest)
    artifact = workspace.root / spec.artifact
    result = train(
        replace(config, encoder=replace(config.encoder, dim=spec.dim)),
        histories,
        behavior_types=[kind.name for kind in log.contract.types],
        type_weights=[kind.weight for kind in log.contract.types],
        checkpoint_dir=artifact.with_name(f"{artifact.name}.checkpoints"),
        progress=progress,
    )
    space = save_encoder(result.encoder, artifact)
    return Training(spec, space, len(behaviors), len(behaviors.entities), result)


def _user_spec(store: FeatureStore, encoder: str | None) -> EmbeddingSpec:
    specs = [spec for spec in embedding_specs(store.registry, store.project) if spec.tower == "user"]
    chosen = [spec for spec in specs if encoder in (None, spec.encoder)]
    if len({spec.encoder for spec in chosen}) == 1:
        return chosen[0]
    names = ", ".join(sorted({spec.encoder for spec in specs})) or "none"
    raise DeclarationError(
        f"Project {store.project!r} declares these encoders: {names}. "
        + ("Name one with --encoder." if specs else "Declare one with embedding_view() and run `feast apply`.")
    )

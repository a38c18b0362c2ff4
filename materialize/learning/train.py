"""Trains the encoder that a feature repo declares, on its behavior log, and puts the artifact where it is declared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from feast import FeatureStore

from feast_embeddings.materialize.clock import now_us
from feast_embeddings.materialize.declare import EmbeddingSpec, embedding_specs
from feast_embeddings.materialize.files import Workspace
from feast_embeddings.models import (
    AdversarialTraining,
    AutoEncoderConfig,
    AutoEncoderResult,
    AutoEncoderTraining,
    HistoryBatch,
    SequenceConfig,
    TrainingConfig,
    save_encoder,
    train,
    train_adversarial,
    train_autoencoder,
)
from feast_embeddings.models.errors import DeclarationError
from feast_embeddings.models.sequence import TrainResult
from feast_embeddings.transformations import BehaviorType, Histories


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
    result: TrainResult | AutoEncoderResult


def training_config(
    kind: str, variant: str, *, context: int, seed: int, max_epochs: int, max_minutes: float | None
) -> TrainingConfig | AutoEncoderTraining:
    """The training of a kind of encoder by name, for `train_declared`.

    Args:
        kind: ``sequence``, ``autoencoder`` or ``adversarial``.
        variant: Of an autoencoder, see `AutoEncoderTraining.of`.
        context: Behaviors that the encoder looks at.
        seed: Of the training.
        max_epochs: At most so many passes.
        max_minutes: At most so long; None: no limit.

    Raises:
        DeclarationError: No such kind or variant.
    """
    limits: dict[str, Any] = {"seed": seed, "max_epochs": max_epochs, "max_minutes": max_minutes}
    if kind == "sequence":
        return TrainingConfig(encoder=SequenceConfig(context=context), **limits)
    if kind == "autoencoder":
        config = AutoEncoderTraining.of(variant, **limits)
        return replace(config, encoder=replace(config.encoder, context=context))
    if kind == "adversarial":
        return AdversarialTraining(encoder=AutoEncoderConfig(context=context), **limits)
    raise DeclarationError(f"Encoder kind {kind!r} cannot be trained: choose sequence, autoencoder or adversarial.")


def train_declared(
    store: FeatureStore,
    config: TrainingConfig | AutoEncoderTraining,
    *,
    encoder: str | None = None,
    until_us: int | None = None,
    progress: bool = True,
) -> Training:
    """Train the encoder named ``encoder`` on behaviors before ``until_us`` (microseconds; default: now).

    The dimension is the declared one, whatever ``config`` says, whose class says what is trained. Checkpoints of a
    sequence encoder go beside the artifact: a stopped training is taken up by the same call.

    Raises:
        DeclarationError: The repo declares no such encoder, or was not applied.
        BehaviorSourceError: There is nothing to learn from.
    """
    workspace = Workspace.of(store.config)
    spec = spec_of_encoder(store, encoder)
    log = workspace.behavior_log(store.registry, store.project, spec)
    now = now_us()
    behaviors = log.until(now if until_us is None else until_us, now)
    ends = np.full(len(behaviors.entities), behaviors.times_us.max(initial=0) + 1, np.int64)
    longest = int(np.diff(behaviors.offsets).max(initial=0))
    histories = Histories(behaviors).as_of(behaviors.entities, ends, longest)
    artifact = workspace.root / spec.artifact
    config = replace(config, encoder=replace(config.encoder, dim=spec.dim))  # type: ignore[arg-type]
    result = _trained(config, histories, log.contract.types, artifact, progress=progress)
    space = save_encoder(result.encoder, artifact)
    return Training(spec, space, len(behaviors), len(behaviors.entities), result)


def _trained(
    config: TrainingConfig | AutoEncoderTraining,
    histories: HistoryBatch,
    types: Sequence[BehaviorType],
    artifact: Path,
    *,
    progress: bool,
) -> TrainResult | AutoEncoderResult:
    names, weights = [kind.name for kind in types], [kind.weight for kind in types]
    if isinstance(config, AdversarialTraining):
        return train_adversarial(config, histories, behavior_types=names, type_weights=weights, progress=progress)
    if isinstance(config, AutoEncoderTraining):
        return train_autoencoder(config, histories, behavior_types=names, type_weights=weights, progress=progress)
    checkpoints = artifact.with_name(f"{artifact.name}.checkpoints")
    config = replace(config, checkpoint_dir=checkpoints)
    return train(config, histories, behavior_types=names, type_weights=weights, progress=progress)


def spec_of_encoder(store: FeatureStore, encoder: str | None) -> EmbeddingSpec:
    """The user view of an encoder, which may go unnamed where there is one; raises DeclarationError otherwise."""
    specs = [spec for spec in embedding_specs(store.registry, store.project) if spec.tower == "user"]
    chosen = [spec for spec in specs if encoder in (None, spec.encoder)]
    if len({spec.encoder for spec in chosen}) == 1:
        return chosen[0]
    names = ", ".join(sorted({spec.encoder for spec in specs})) or "none"
    raise DeclarationError(
        f"Project {store.project!r} declares these encoders: {names}. "
        + ("Name one with --encoder." if specs else "Declare one with embedding_view() and run `feast apply`.")
    )

"""Trains the encoder that a feature repo declares, on its behavior log, and puts the artifact where it is declared."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from feast import FeatureStore

from feast_embeddings.materialize.clock import now_us
from feast_embeddings.materialize.declare import EmbeddingSpec, behaviors_of, embedding_specs, source_of
from feast_embeddings.materialize.files import Workspace
from feast_embeddings.models import (
    AdversarialTraining,
    AutoEncoderConfig,
    AutoEncoderResult,
    AutoEncoderTraining,
    HistoryBatch,
    Learned,
    SequenceConfig,
    TrainingConfig,
    save_encoder,
    train,
    train_adversarial,
    train_autoencoder,
)
from feast_embeddings.models.errors import DeclarationError, LeaseError
from feast_embeddings.models.sequence import TrainResult
from feast_embeddings.transformations import Behaviors, BehaviorType, Histories

SHARE_BEFORE = 0.9
"""Of the behaviors, by time, that a training learns from where some are held out."""

EPOCHS = {"sequence": 6}
"""Passes by kind of encoder, where nothing else is asked for; 20 for the others."""


@dataclass(frozen=True)
class Training:
    """What a training made.

    Attributes:
        spec: The view whose encoder it is.
        space: The new space.
        learned: What from, until when, and how long it took.
        result: Epochs and the encoder.
    """

    spec: EmbeddingSpec
    space: str
    learned: Learned
    result: TrainResult | AutoEncoderResult


def training_config(
    kind: str, variant: str, *, context: int, seed: int, max_epochs: int | None, max_minutes: float | None
) -> TrainingConfig | AutoEncoderTraining:
    """The training of a kind of encoder by name, for `train_declared`.

    A sequence encoder learns in many small steps, at a rate that falls to 0 at the last epoch: so it is done in few.

    Args:
        kind: ``sequence``, ``autoencoder`` or ``adversarial``.
        variant: Of an autoencoder, see `AutoEncoderTraining.of`.
        context: Behaviors that the encoder looks at.
        seed: Of the training.
        max_epochs: At most so many passes; None: as `EPOCHS` says.
        max_minutes: At most so long; None: no limit.

    Raises:
        DeclarationError: No such kind or variant.
    """
    epochs = EPOCHS.get(kind, 20) if max_epochs is None else max_epochs
    limits: dict[str, Any] = {"seed": seed, "max_epochs": epochs, "max_minutes": max_minutes}
    if kind == "sequence":
        return TrainingConfig(
            encoder=SequenceConfig(context=context),
            batch_tokens=1024,
            learning_rate=6e-3,
            warmup_steps=20,
            decay_epochs=epochs,
            average_decay=0.99,
            **limits,
        )
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
    hold_out: bool = False,
    progress: bool = True,
) -> Training:
    """Train the encoder named ``encoder`` on behaviors before ``until_us``, and put the artifact where it is declared.

    The dimension is the declared one, whatever ``config`` says, whose class says what is trained. Checkpoints of a
    sequence encoder go beside the artifact: a stopped training is taken up by the same call on the same behaviors,
    any other begins anew.

    Args:
        store: The feature store.
        config: What is trained, and how.
        encoder: Its name, where several are declared.
        until_us: Microseconds since the epoch, UTC. Default: now.
        hold_out: Where no ``until_us`` is given, whether to learn from the first nine tenths of the behaviors only,
            so that the others can be asked about.
        progress: Whether to tell each epoch on stderr.

    Raises:
        DeclarationError: The repo declares no such encoder, or was not applied.
        BehaviorSourceError: There is nothing to learn from.
        LeaseError: Another training works on this artifact.
    """
    spec = spec_of_encoder(store, encoder)
    with _alone(Workspace.of(store.config).root / spec.artifact):
        return _train(store, spec, config, until_us, hold_out=hold_out, progress=progress)


def _train(
    store: FeatureStore,
    spec: EmbeddingSpec,
    config: TrainingConfig | AutoEncoderTraining,
    until_us: int | None,
    *,
    hold_out: bool,
    progress: bool,
) -> Training:
    started = time.monotonic()
    workspace = Workspace.of(store.config)
    log = workspace.behavior_log(store.registry, store.project, spec)
    now = now_us()
    until = now if until_us is None else min(until_us, now)
    behaviors = log.until(until, now)
    if hold_out and until_us is None and len(behaviors):
        until = split_us(behaviors)
        behaviors = log.until(until, now)
    ends = np.full(len(behaviors.entities), behaviors.times_us.max(initial=0) + 1, np.int64)
    longest = int(np.diff(behaviors.offsets).max(initial=0))
    histories = Histories(behaviors).as_of(behaviors.entities, ends, longest)
    artifact = workspace.root / spec.artifact
    config = replace(config, encoder=replace(config.encoder, dim=spec.dim))  # type: ignore[arg-type]
    result = _trained(config, histories, log.contract.types, artifact, progress=progress)
    source = source_of(behaviors_of(store.registry, store.project, spec)).path
    learned = Learned(until, source, len(behaviors), len(behaviors.entities), round(time.monotonic() - started, 1))
    return Training(spec, save_encoder(result.encoder, artifact, learned), learned, result)


def split_us(behaviors: Behaviors) -> int:
    """The time before which nine tenths of the behaviors lie, microseconds: a whole second, so that it can be named."""
    return int(np.quantile(behaviors.times_us, SHARE_BEFORE)) // 1_000_000 * 1_000_000


@contextmanager
def _alone(artifact: Path) -> Iterator[None]:
    """Keeps other trainings off an artifact and its checkpoints; the lock ends with the process, however that ends."""
    artifact.parent.mkdir(parents=True, exist_ok=True)
    with artifact.with_name(f".{artifact.name}.training").open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LeaseError(
                f"Encoder artifact {artifact} is being trained by another process: wait for it to end, or stop it, "
                "then train again."
            ) from None
        yield


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

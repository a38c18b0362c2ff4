"""Trains a `SequenceEncoder` to name the next item of every history."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from feast_embeddings.models.encoder import Device, HistoryBatch, choose_device
from feast_embeddings.models.errors import ArtifactError, DeclarationError
from feast_embeddings.models.sequence.averaged import EpochReport
from feast_embeddings.models.sequence.checkpoint import Checkpoint
from feast_embeddings.models.sequence.config import TrainingConfig
from feast_embeddings.models.sequence.model import SequenceEncoder
from feast_embeddings.models.sequence.progress import TrainingProgress
from feast_embeddings.models.sequence.trainer import Builder, Trainer, check_trainable
from feast_embeddings.models.types import Float32s


@dataclass(frozen=True, slots=True)
class TrainResult:
    """The trained encoder, in evaluation mode, and how it came about.

    Attributes:
        encoder: With the averaged weights of the best epoch.
        epochs: One report per epoch, also of those before a resume.
        best_epoch: Whose weights were kept, from 1.
        stopped_by: ``patience``, ``max_epochs``, ``decay_epochs`` or ``max_minutes``.
    """

    encoder: SequenceEncoder
    epochs: tuple[EpochReport, ...]
    best_epoch: int
    stopped_by: str


def train(
    config: TrainingConfig,
    histories: HistoryBatch,
    *,
    behavior_types: Sequence[str],
    type_weights: Sequence[float] | None = None,
    progress: bool = False,
    device: Device = None,
    build: Builder = SequenceEncoder,
) -> TrainResult:
    """Trains on whole histories, one per entity; the same input gives the same weights on one machine.

    With ``config.checkpoint_dir`` every whole epoch is kept there, and a later call with the same configuration
    and histories goes on from the last one to the very weights of an undisturbed run (``max_minutes`` and
    ``patience`` may differ, and ``max_epochs`` be more). Any other training begins anew in its place, and says so.
    Where a time limit cuts an epoch short, its weights are validated and may be kept, but not checkpointed.

    Args:
        config: Architecture and training.
        histories: One per entity, whole; items, types and values of all of them make the preprocessing.
        behavior_types: Names behind the codes.
        type_weights: Weight of each type's behaviors as targets; those of weight 0 or less are input only.
            Default: 1 each.
        progress: Whether to tell each epoch on stderr: a bar on a terminal, lines elsewhere.
        device: cuda, mps or cpu; None chooses.
        build: Makes the encoder, such as `fusion.fusing` for items with text and attributes.

    Raises:
        BehaviorSourceError: There is nothing to learn from.
        DeclarationError: Types and weights do not match, or a value of the configuration is out of range.
    """
    weights = np.ones(len(behavior_types)) if type_weights is None else np.asarray(type_weights)
    check_trainable(histories)
    _check(config, histories, behavior_types, weights.astype(np.float32))
    chosen = choose_device(device)
    trainer = Trainer(config, histories, tuple(behavior_types), weights.astype(np.float32), chosen, build)
    directory = Path(config.checkpoint_dir) if config.checkpoint_dir is not None else None
    with _deterministic(chosen), TrainingProgress(_limit(config), shown=progress) as shown:
        if directory is not None and config.resume:
            _take_up(trainer, directory, shown)
        stopped_by = _run(trainer, directory, shown)
    encoder = trainer.best.requires_grad_(requires_grad=True)
    return TrainResult(encoder, tuple(trainer.reports), trainer.best_epoch, stopped_by)


def _check(config: TrainingConfig, histories: HistoryBatch, types: Sequence[str], weights: Float32s) -> None:
    if len(types) != len(weights) or not (weights > 0).any():
        raise DeclarationError(
            f"{len(types)} behavior types have the weights {weights.tolist()}: give one per type, one of them above 0."
        )
    if not 0 <= config.window_overlap < config.encoder.context:
        raise DeclarationError(
            f"window_overlap is {config.window_overlap}: "
            f"choose 0 up to less than the context, {config.encoder.context}."
        )
    if config.decay_epochs is not None and config.decay_epochs < 1:
        raise DeclarationError(f"decay_epochs is {config.decay_epochs}: choose 1 or more, or None for no decay.")
    if any(not 0 < size < config.encoder.dim for size in config.matryoshka):
        raise DeclarationError(
            f"matryoshka={config.matryoshka} names prefixes of vectors of {config.encoder.dim} dimensions: "
            "choose sizes from 1 up to less than that."
        )
    codes = histories.behavior_types
    if codes.min() < 0 or codes.max() >= len(types):
        raise DeclarationError(
            f"Histories hold behavior-type codes beyond the {len(types)} types given: name them all."
        )


def _limit(config: TrainingConfig) -> int:
    """The most epochs that a training has."""
    return min(config.max_epochs, config.decay_epochs or config.max_epochs)


def _take_up(trainer: Trainer, directory: Path, shown: TrainingProgress) -> None:
    """Goes on from the checkpoint of this very training; any other is no obstacle, and is replaced."""
    try:
        checkpoint = Checkpoint.load(directory)
    except ArtifactError as error:
        shown.say(f"{error} Training begins anew.")
        return
    if checkpoint is None:
        return
    done = int(checkpoint.progress["epoch"])
    if checkpoint.run != trainer.identity or done > _limit(trainer.config):
        shown.say(f"{directory} holds a training of another configuration or other behaviors: this one begins anew.")
        return
    trainer.restore(checkpoint)
    shown.say(f"Goes on after epoch {done}, from {directory}.")


def _run(trainer: Trainer, directory: Path | None, shown: TrainingProgress) -> str:
    """Epochs until a limit, which it returns by name."""
    config = trainer.config
    deadline = np.inf if config.max_minutes is None else time.monotonic() + 60 * config.max_minutes
    limit = _limit(config)
    while len(trainer.reports) < limit:
        done = len(trainer.reports)

        def advance(share: float, done: int = done) -> None:
            shown.advance(done + share)

        if done - trainer.best_epoch >= config.patience:
            return "patience"
        whole = trainer.epoch(float(deadline), advance)
        shown.epoch(trainer.reports[-1])
        if not whole:
            return "max_minutes"
        if directory is not None:
            trainer.checkpoint().save(directory)
        if time.monotonic() > deadline:
            return "max_minutes"
    return "decay_epochs" if limit == config.decay_epochs else "max_epochs"


@contextmanager
def _deterministic(device: torch.device) -> Iterator[None]:
    """On a GPU, asks torch for deterministic kernels meanwhile; a CPU has no others here."""
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    if device.type == "cuda":
        torch.use_deterministic_algorithms(mode=True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)

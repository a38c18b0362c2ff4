"""Trains an `AutoEncoder` to tell bags from their codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from feast_embeddings.models.autoencoder.config import AutoEncoderTraining
from feast_embeddings.models.autoencoder.model import AutoEncoder
from feast_embeddings.models.autoencoder.trainer import AutoEncoderTrainer, run_epochs
from feast_embeddings.models.encoder import Device, HistoryBatch, choose_device
from feast_embeddings.models.sequence import EpochReport


@dataclass(frozen=True, slots=True)
class AutoEncoderResult:
    """The trained encoder, in evaluation mode, and how it came about.

    Attributes:
        encoder: With the averaged weights of the best epoch.
        epochs: One report per validated epoch.
        best_epoch: Whose weights were kept, from 1.
        stopped_by: ``patience``, ``max_epochs`` or ``max_minutes``.
    """

    encoder: AutoEncoder
    epochs: tuple[EpochReport, ...]
    best_epoch: int
    stopped_by: str


def train_autoencoder(
    config: AutoEncoderTraining,
    histories: HistoryBatch,
    *,
    behavior_types: Sequence[str],
    type_weights: Sequence[float] | None = None,
    held_out: HistoryBatch | None = None,
    progress: bool = False,
    device: Device = None,
) -> AutoEncoderResult:
    """Trains on histories, one per entity; the same input gives the same weights on one machine.

    Only the rows of a batch are ever dense: memory does not grow with the number of entities.

    Args:
        config: Architecture and training.
        histories: One per entity; their items make the catalogue.
        behavior_types: Names behind the codes.
        type_weights: Weight of each type in the bags, 0 or more. Default: 1 each.
        held_out: Of the same entities, the behaviors that validation is to find again; they are not trained on.
            None: a random share of ``histories`` is held out.
        progress: Whether to tell each epoch on stderr: a bar on a terminal, lines elsewhere.
        device: cuda, mps or cpu; None chooses.

    Raises:
        BehaviorSourceError: There is nothing to learn from, or ``held_out`` is of other entities.
        DeclarationError: Types and weights do not match.
    """
    chosen = choose_device(device)
    trainer = AutoEncoderTrainer(config, histories, held_out, tuple(behavior_types), type_weights, chosen)
    stopped_by = run_epochs(trainer, progress=progress)
    return AutoEncoderResult(trainer.best, tuple(trainer.reports), trainer.best_epoch, stopped_by)

"""An autoencoder whose codes are made to look like draws from a normal distribution (A. Makhzani et al., 2015).

https://arxiv.org/abs/1511.05644, with a Wasserstein critic and gradient penalty in place of the classifier.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from feast_embeddings.models.autoencoder.config import AutoEncoderTraining
from feast_embeddings.models.autoencoder.critic import Critic, critic_loss, descend
from feast_embeddings.models.autoencoder.model import AutoEncoder
from feast_embeddings.models.autoencoder.trainer import AutoEncoderTrainer, run_epochs
from feast_embeddings.models.autoencoder.training import AutoEncoderResult
from feast_embeddings.models.encoder import Device, HistoryBatch, choose_device, register_encoder, seeded
from feast_embeddings.models.types import Int64s


@register_encoder("adversarial-autoencoder")
class AdversarialAutoEncoder(AutoEncoder):
    """An `AutoEncoder` trained so that its codes follow N(0, 1); the critic that saw to it is not part of it."""

    kind = "adversarial-autoencoder"


@dataclass(frozen=True, slots=True)
class AdversarialTraining(AutoEncoderTraining):
    """How an `AdversarialAutoEncoder` is trained: reconstruction, critic and encoder take turns on each batch."""

    penalty: float = 0.0  # the prior holds the codes' length
    prior_weight: float = 1.0  # of the critic's verdict on the codes, beside the reconstruction
    critic_steps: int = 3  # of the critic, for each of the encoder: it has to keep up, or codes drift away together
    critic_hidden: int = 128
    critic_rate: float = 3e-3
    gradient_penalty: float = 10.0  # WGAN-GP's own choice


class AdversarialTrainer(AutoEncoderTrainer):
    """One run of adversarial training: as `AutoEncoderTrainer`, and a critic in turn with it."""

    config: AdversarialTraining

    model_class = AdversarialAutoEncoder

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        with seeded(self.device, self.config.seed):
            self.critic = Critic(self.config.encoder.dim - 1, self.config.critic_hidden).to(self.device)
        rate, betas = self.config.critic_rate, (0.5, 0.9)
        self.critic_optimizer = torch.optim.Adam(self.critic.parameters(), rate, betas=betas)

    def step(self, rows: Int64s) -> torch.Tensor:
        """One batch: the critic on codes as they are, then the encoder against it, reconstruction included."""
        bags = self.dense(rows)
        with torch.no_grad():
            codes = self.model(self.corrupted(bags)).float()
        for _ in range(self.config.critic_steps):
            loss = critic_loss(self.critic, torch.randn_like(codes), codes, self.config.gradient_penalty)
            descend(self.critic_optimizer, loss)
        return super().step(rows)

    def loss(self, code: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The objective, and how far the critic tells codes from the prior."""
        verdict: torch.Tensor = self.critic(code).mean()
        return super().loss(code, target) - self.config.prior_weight * verdict


def train_adversarial(
    config: AdversarialTraining,
    histories: HistoryBatch,
    *,
    behavior_types: Sequence[str],
    type_weights: Sequence[float] | None = None,
    held_out: HistoryBatch | None = None,
    progress: bool = False,
    device: Device = None,
) -> AutoEncoderResult:
    """Trains an `AdversarialAutoEncoder`; arguments, errors and determinism are those of `train_autoencoder`."""
    trainer = AdversarialTrainer(
        config, histories, held_out, tuple(behavior_types), type_weights, choose_device(device)
    )
    stopped_by = run_epochs(trainer, progress=progress)
    return AutoEncoderResult(trainer.best, tuple(trainer.reports), trainer.best_epoch, stopped_by)

"""Trains a `BehaviorGenerator` against a critic, in turn, with gradient penalty."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from feast_embeddings.models.autoencoder.critic import Critic, critic_loss, descend
from feast_embeddings.models.autoencoder.generator import BehaviorGenerator, GeneratorConfig
from feast_embeddings.models.encoder import Device, HistoryBatch, ItemIndex, choose_device, seeded, to_device
from feast_embeddings.models.errors import BehaviorSourceError, DeclarationError
from feast_embeddings.models.types import Int64s


@dataclass(frozen=True, slots=True)
class GeneratorTraining:
    """How a `BehaviorGenerator` is trained (WGAN-GP, https://arxiv.org/abs/1704.00028)."""

    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    seed: int = 0
    batch_entities: int = 128
    steps: int = 2000  # of the generator
    critic_steps: int = 3  # of the critic for each of the generator
    critic_hidden: int = 256
    gradient_penalty: float = 10.0  # WGAN-GP's own choice
    learning_rate: float = 1e-3
    empty_share: float = 0.3  # of the bags that are to be told from nothing; of the others a random part is known
    max_minutes: float | None = None
    report_every: int = 100  # steps
    min_item_count: int = 1  # rarer items stay unknown

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        if min(self.batch_entities, self.steps, self.critic_steps, self.report_every) < 1:
            raise DeclarationError("batch_entities, steps, critic_steps and report_every are 1 or more: raise them.")


@dataclass(frozen=True, slots=True)
class GeneratorReport:
    """Losses at one step, means since the report before.

    Attributes:
        step: Of the generator, from 1.
        critic: What the critic minimizes; less its penalty, minus the distance of real from synthetic.
        generator: What the generator minimizes: minus the critic's score of synthetic bags.
        size: Mean sum of a synthetic bag; that of real ones is the history's distinct behaviors.
    """

    step: int
    critic: float
    generator: float
    size: float


@dataclass(frozen=True, slots=True)
class GeneratorResult:
    """The trained generator, in evaluation mode, its losses, and what ended training.

    Attributes:
        generator: As of the last step.
        reports: One per ``report_every`` steps.
        stopped_by: ``steps`` or ``max_minutes``.
    """

    generator: BehaviorGenerator
    reports: tuple[GeneratorReport, ...]
    stopped_by: str


def train_generator(
    config: GeneratorTraining,
    histories: HistoryBatch,
    *,
    behavior_types: Sequence[str],
    device: Device = None,
) -> GeneratorResult:
    """Trains on histories, one per entity; the same input gives the same weights on one machine.

    On each batch of bags a random part is shown to generator and critic as known; the generator is to make the rest
    such that the critic cannot tell it from what was there. Only batches are ever dense.

    Args:
        config: Architecture and training.
        histories: One per entity; empty ones are left out.
        behavior_types: Names behind the codes.
        device: cuda, mps or cpu; None chooses.

    Raises:
        BehaviorSourceError: No history holds a known item.
    """
    chosen = choose_device(device)
    trainer = _Trainer(config, histories, tuple(behavior_types), chosen)
    deadline = np.inf if config.max_minutes is None else time.monotonic() + 60 * config.max_minutes
    reports, since = [], []
    with seeded(chosen, config.seed + 1):
        for step in range(1, config.steps + 1):
            since.append(trainer.step())
            stopping = time.monotonic() > deadline
            if step % config.report_every == 0 or step == config.steps or stopping:
                reports.append(GeneratorReport(step, *torch.stack(since).mean(dim=0).tolist()))
                since = []
            if stopping:
                break
    return GeneratorResult(trainer.generator.eval(), tuple(reports), "max_minutes" if stopping else "steps")


class _Trainer:
    def __init__(
        self, config: GeneratorTraining, histories: HistoryBatch, types: tuple[str, ...], device: torch.device
    ) -> None:
        self.config, self.device = config, device
        index = ItemIndex.of(histories.items, config.min_item_count)
        if not len(index):
            raise BehaviorSourceError("No history holds a known item to learn from: lower min_item_count.")
        with seeded(device, config.seed):
            self.generator = BehaviorGenerator(config.generator, types, index).to(device)
            self.critic = Critic(2 * self.generator.bagger.size, config.critic_hidden).to(device)
        self.bags = self.generator.bagger.bags(histories)
        self.rows = np.flatnonzero(np.diff(self.bags.offsets) > 0)
        if not len(self.rows):
            raise BehaviorSourceError("No history holds a known item by a named type: name all behavior types.")
        self.random = np.random.default_rng(config.seed)
        rate, betas = config.learning_rate, (0.5, 0.9)  # WGAN-GP's: little momentum, the other side keeps moving
        self.of_generator = torch.optim.Adam(self.generator.parameters(), rate, betas=betas)
        self.of_critic = torch.optim.Adam(self.critic.parameters(), rate, betas=betas)

    def step(self) -> torch.Tensor:
        """The critic's turns, then the generator's: both losses and the size of synthetic bags, (3,)."""
        for _ in range(self.config.critic_steps):
            real, known = self._batch()
            with torch.no_grad():
                fake = self._made(known)
            pairs = torch.cat([real, known], dim=1), torch.cat([fake, known], dim=1)
            verdict = critic_loss(self.critic, *pairs, self.config.gradient_penalty)
            descend(self.of_critic, verdict)
        _, known = self._batch()
        fake = self._made(known)
        loss = -self.critic(torch.cat([fake, known], dim=1)).mean()
        descend(self.of_generator, loss)
        return torch.stack([verdict.detach(), loss.detach(), fake.detach().sum(dim=1).mean()])

    def _made(self, known: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(len(known), self.config.generator.latent, device=self.device)
        return torch.maximum(self.generator(noise, known), known)  # what is known is there

    def _batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Bags (B, C), and the part of each that is known."""
        rows: Int64s = self.random.choice(self.rows, min(self.config.batch_entities, len(self.rows)), replace=False)
        real = to_device(self.bags.take(rows).dense(), self.device)
        share = torch.rand(len(real), 1, device=self.device)
        share = share * (torch.rand(len(real), 1, device=self.device) >= self.config.empty_share)
        return real, real * (torch.rand(real.shape, device=self.device) < share)

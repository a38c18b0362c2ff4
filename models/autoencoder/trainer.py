"""One training run of an autoencoder: its data, its weights, and what an epoch does to them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from feast_embeddings.models.autoencoder.config import AutoEncoderTraining
from feast_embeddings.models.autoencoder.model import AutoEncoder
from feast_embeddings.models.encoder import HistoryBatch, ItemIndex, autocast, seeded, to_device, training_precision
from feast_embeddings.models.errors import BehaviorSourceError
from feast_embeddings.models.evaluation import Ragged, distinct_items, evaluate_ranking, inner_products
from feast_embeddings.models.sequence import AveragedTraining, TrainingProgress
from feast_embeddings.models.types import Int64s

_VALIDATION = 1 << 32  # seeds of epochs stay below


class AutoEncoderTrainer(AveragedTraining[AutoEncoder]):
    """Weights, their running average and the optimizer, on one set of histories.

    Args:
        config: Architecture and training.
        histories: One per entity.
        held_out: What validation is to find again, of the same entities; None: a random share of ``histories``.
        behavior_types: Names behind the codes.
        type_weights: Weight of each; None: 1.
        device: To train on.
    """

    model_class: type[AutoEncoder] = AutoEncoder

    def __init__(
        self,
        config: AutoEncoderTraining,
        histories: HistoryBatch,
        held_out: HistoryBatch | None,
        behavior_types: tuple[str, ...],
        type_weights: Sequence[float] | None,
        device: torch.device,
    ) -> None:
        self.config, self.device = config, device
        self.precision = training_precision(device)
        if held_out is None:
            histories, held_out = split_behaviors(histories, config.validation_share, config.seed)
        _check(histories, held_out)
        index = ItemIndex.of(histories.items, config.min_item_count)
        with seeded(device, config.seed):
            model = self.model_class(config.encoder, behavior_types, index, type_weights).to(device)
            width = config.encoder.dim - 1
            self.log_variance = nn.Linear(width, width).to(device) if config.variational else None
        super().__init__(model, config.average_decay)
        self.targets = self.model.bagger.bags(histories)
        self.rows = np.flatnonzero(np.diff(self.targets.offsets) > 0)
        if not len(self.rows):
            raise BehaviorSourceError(
                "No history holds a known item of a type with a weight, so there is nothing to learn from: "
                "lower min_item_count, or weigh other types."
            )
        self.validation = self._validation_part(histories, held_out)
        learned = [*self.model.parameters(), *(self.log_variance.parameters() if self.log_variance else ())]
        self.optimizer = torch.optim.AdamW(learned, config.learning_rate, weight_decay=config.weight_decay)
        self.epochs = 0

    def epoch(self, deadline: float, advance: Callable[[float], None]) -> bool:
        """Trains one epoch, and validates where it is due; False if the deadline (`time.monotonic`) cut it short."""
        started = time.monotonic()
        self.epochs += 1
        generator = np.random.default_rng([self.config.seed, self.epochs])
        order = generator.permutation(self.rows)
        starts = range(0, len(order), self.config.batch_entities)
        losses = []
        with seeded(self.device, int(generator.integers(_VALIDATION))):
            for start in starts:
                losses.append(self.step(order[start : start + self.config.batch_entities]))
                advance(len(losses) / len(starts))
                if time.monotonic() > deadline:
                    break
        whole = len(losses) == len(starts)
        last = self.epochs >= self.config.max_epochs or time.monotonic() > deadline
        if self.epochs % self.config.validate_every == 0 or last:
            self.report(self.epochs, float(torch.stack(losses).mean()), self._validate(), started)
        return whole

    def step(self, rows: Int64s) -> torch.Tensor:
        """One batch of entities: loss, gradients, AdamW, running average. Returns the loss, on the device."""
        self.model.train()
        target = self.dense(rows)
        with autocast(self.device, self.precision):
            code = self.model(self.corrupted(target))  # (B, dim − 1)
        loss = self.loss(code.float(), target)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.stepped()
        return loss.detach()

    def dense(self, rows: Int64s) -> torch.Tensor:
        """Bags (B, C) of a batch of entities, on the device."""
        return to_device(self.targets.take(rows).dense(), self.device)

    def corrupted(self, target: torch.Tensor) -> torch.Tensor:
        """What the encoder gets to see of bags (B, C)."""
        seen = F.normalize(target) if self.config.encoder.normalize else target
        return F.dropout(seen, self.config.corruption) if self.config.corruption else seen

    def loss(self, code: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Mean over the batch of the objective, see `AutoEncoderTraining`; code (B, dim − 1), target (B, C)."""
        config = self.config
        if self.log_variance is not None:
            log_variance = self.log_variance(code)
            divergence = -0.5 * (1 + log_variance - code.square() - log_variance.exp()).sum(dim=1).mean()
            penalty = config.kl * min(1.0, self.steps / max(1, config.kl_steps)) * divergence
            code = code + torch.randn_like(code) * (0.5 * log_variance).exp()
        else:
            penalty = config.penalty * code.square().sum(dim=1).mean()
        with autocast(self.device, self.precision):
            told = self.model.reconstruct(code)
        fit = reconstruction_loss(told.float(), target, logits=config.encoder.logits)
        total: torch.Tensor = fit + penalty
        return total

    def _validation_part(self, histories: HistoryBatch, held_out: HistoryBatch) -> tuple[HistoryBatch, Ragged] | None:
        """Histories of the entities that validation ranks for, and the columns it is to find; None without any."""
        bags = distinct_items(held_out, self.model.items)
        able = np.flatnonzero((np.diff(bags.offsets) > 0) & (histories.lengths > 0))
        count = min(self.config.validation_entities, len(able))
        if count == 0:
            return None
        chosen = np.sort(np.random.default_rng([self.config.seed, _VALIDATION]).choice(able, count, replace=False))
        return histories.take(chosen), bags.take(chosen)

    def _validate(self) -> tuple[float, float] | None:
        """HR@10 and NDCG@10 of the averaged weights on the held-out behaviors, all items ranked."""
        if self.validation is None:
            return None
        histories, targets = self.validation
        items = self.average.encode_items(self.average.item_ids())[0]
        seen = distinct_items(histories, self.model.items) if self.config.filter_seen else None
        scorer = inner_products(self.average.encode(histories), items)
        scores = evaluate_ranking(scorer, len(items), targets, seen, ks=(10,))
        return scores.hr[10], scores.ndcg[10]


def reconstruction_loss(told: torch.Tensor, target: torch.Tensor, *, logits: bool) -> torch.Tensor:
    """Mean over B bags (B, C) of Σ (x − x̂)², or of −Σ x · log softmax(x̂)."""
    if logits:
        return -(target * F.log_softmax(told, dim=1)).sum(dim=1).mean()
    return (target - told).square().sum(dim=1).mean()


def split_behaviors(histories: HistoryBatch, share: float, seed: int) -> tuple[HistoryBatch, HistoryBatch]:
    """A random split of each entity's behaviors by item: those kept, and about ``share`` held out."""
    rng = np.random.default_rng([seed, _VALIDATION + 1])
    pairs = np.unique(histories.items, return_inverse=True)[1].reshape(-1) + histories.owner * (
        len(histories.items) + 1
    )
    _, pair = np.unique(pairs, return_inverse=True)
    out = (rng.random(pair.max(initial=-1) + 1) < share)[pair.reshape(-1)]
    return histories.where(~out), histories.where(out)


def run_epochs(trainer: AutoEncoderTrainer, *, progress: bool) -> str:
    """Epochs until a limit, which it returns by name."""
    config = trainer.config
    deadline = np.inf if config.max_minutes is None else time.monotonic() + 60 * config.max_minutes
    with TrainingProgress(config.max_epochs, shown=progress) as shown:
        while trainer.epochs < config.max_epochs:
            done = trainer.epochs
            whole = trainer.epoch(float(deadline), lambda share, done=done: shown.advance(done + share))  # type: ignore[misc]
            if trainer.reports and trainer.reports[-1].epoch == trainer.epochs:
                shown.epoch(trainer.reports[-1])
            if not whole or time.monotonic() > deadline:
                return "max_minutes"
            if trainer.validation is not None and stalled(trainer):
                return "patience"
    return "max_epochs"


def stalled(trainer: AutoEncoderTrainer) -> bool:
    """Whether the last ``patience`` validations brought nothing better."""
    return sum(report.epoch > trainer.best_epoch for report in trainer.reports) >= trainer.config.patience


def _check(histories: HistoryBatch, held_out: HistoryBatch) -> None:
    if len(histories) != len(held_out):
        raise BehaviorSourceError(
            f"{len(histories)} histories and {len(held_out)} held-out ones do not pair up: pass one of each per entity."
        )
    if not len(histories.items):
        raise BehaviorSourceError("The histories hold no behavior to learn from: give at least one.")

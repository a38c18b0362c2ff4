"""One training run: its data, its weights, and what an epoch does to them."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from feast_embeddings.models.encoder import (
    HistoryBatch,
    ItemIndex,
    Tokens,
    ValueNormalizer,
    autocast,
    seeded,
    to_device,
    training_precision,
)
from feast_embeddings.models.errors import BehaviorSourceError
from feast_embeddings.models.evaluation import Ragged, cut, evaluate_ranking, inner_products, items_of
from feast_embeddings.models.sequence.averaged import AveragedTraining, EpochReport
from feast_embeddings.models.sequence.checkpoint import Checkpoint
from feast_embeddings.models.sequence.config import SequenceConfig, TrainingConfig
from feast_embeddings.models.sequence.loss import NegativeSampler, full_softmax_loss, sampled_softmax_loss
from feast_embeddings.models.sequence.model import SequenceEncoder
from feast_embeddings.models.sequence.tied_times import shuffled_within, tie_groups
from feast_embeddings.models.sequence.windows import Windows, batched, cut_windows
from feast_embeddings.models.types import Float32s, Int64s

_WIDTH_STEP = 16  # few distinct shapes: kernels are made anew for each

_VALIDATION = 1 << 32  # seeds of epochs stay below


Builder = Callable[[SequenceConfig, tuple[str, ...], ItemIndex, ValueNormalizer | None], SequenceEncoder]
"""Makes the encoder to train from its architecture, behavior types, items and normalizer. It may know more items than
those, in rows after theirs."""


class Trainer(AveragedTraining[SequenceEncoder]):
    """Weights, their running average and the optimizer, on one set of histories.

    All randomness of an epoch comes from the seed and the epoch's number, so a run taken up again at the
    start of an epoch is the run that was never interrupted.

    Args:
        config: Architecture and training.
        histories: One per entity, checked by `training.train`.
        behavior_types: Names behind the codes.
        type_weights: float32 [T].
        device: To train on.
        build: Makes the encoder.
    """

    def __init__(
        self,
        config: TrainingConfig,
        histories: HistoryBatch,
        behavior_types: tuple[str, ...],
        type_weights: Float32s,
        device: torch.device,
        build: Builder = SequenceEncoder,
    ) -> None:
        self.config, self.device = config, device
        self.precision = training_precision(device)
        self.identity = _identity(config, histories, behavior_types, type_weights)
        training, self.validation = _split(config, histories)
        self.offsets = training.offsets
        index = ItemIndex.of(training.items, config.min_item_count)
        kind = config.encoder.value_normalizer
        normalizer = ValueNormalizer.fit(kind, training.values) if kind else None
        self.tokens = Tokens.of(training, index, normalizer, len(behavior_types))
        self.target_weights = torch.from_numpy(np.maximum(type_weights, 0))[self.tokens.types]
        self.target_weights *= self.tokens.items > 0  # the unknown item is no target
        self.ties = tie_groups(training.offsets, training.times)
        _check_targets(self.target_weights, training, config.min_item_count)
        with seeded(device, config.seed):
            model = build(config.encoder, behavior_types, index, normalizer).to(device)
        super().__init__(model, config.average_decay)
        if build is not SequenceEncoder:  # what the builder adds belongs to the run as well
            self.identity += self.model.space
        self.optimizer = torch.optim.Adam(self.model.parameters(), config.learning_rate, fused=device.type != "mps")
        self.sampler = self._sampler()

    def _sampler(self) -> NegativeSampler | None:
        n_items = len(self.model.items)
        if n_items <= self.config.full_softmax_items:
            return None
        counts = torch.bincount(self.tokens.items, minlength=n_items + 1)[1:]
        return NegativeSampler.of(counts, self.config.negatives)

    def epoch(self, deadline: float, advance: Callable[[float], None]) -> bool:
        """Trains one epoch and validates; False if the deadline cut it short.

        Args:
            deadline: When to stop at the latest, validation aside, in seconds of `time.monotonic`.
            advance: Called after each step with the share of the epoch done.
        """
        started, number = time.monotonic(), len(self.reports) + 1
        generator = np.random.default_rng([self.config.seed, number])
        windows = cut_windows(self.offsets, self.config.encoder.context, self.config.window_overlap, generator)
        batches = batched(windows, self.config.batch_tokens, generator)
        tokens, target_weights = self.tokens, self.target_weights
        if self.ties is not None:  # the order of ids within a receipt is no order of purchase
            order = shuffled_within(self.ties, generator)
            tokens, target_weights = tokens.reordered(order), target_weights[torch.from_numpy(order)]
        losses = []
        with seeded(self.device, int(generator.integers(_VALIDATION))):
            for position, rows in enumerate(batches):
                self._set_rate(number - 1 + position / len(batches))
                losses.append(self._step(tokens, target_weights, windows, rows))
                advance((position + 1) / len(batches))
                if time.monotonic() > deadline:
                    break
        self.report(number, float(torch.stack(losses).mean()), self._validate(), started)
        return len(losses) == len(batches)

    def _step(self, tokens: Tokens, target_weights: torch.Tensor, windows: Windows, rows: Int64s) -> torch.Tensor:
        """One batch: loss, gradients, Adam, running average. Returns the loss, on the device."""
        start, stop = torch.from_numpy(windows.start[rows]), torch.from_numpy(windows.stop[rows])
        width = min(-(-int((stop - start).max()) // _WIDTH_STEP) * _WIDTH_STEP, self.model.context)
        at = start[:, None] + torch.arange(width) + 1  # (B, L), positions of the targets
        wanted = (at <= stop[:, None]) & (at >= torch.from_numpy(windows.first_target[rows])[:, None])
        at = at.clamp(max=len(target_weights) - 1)
        wanted &= target_weights[at] > 0
        if not wanted.any():
            return torch.zeros((), device=self.device)
        targets = to_device(tokens.items[at[wanted]] - 1, self.device)  # (P,), rows of the table without row 0
        weights = to_device(target_weights[at[wanted]], self.device)
        inputs = tokens.padded(start, stop - start, width).to(self.device)
        loss = self._loss(inputs, to_device(wanted, self.device), targets, weights)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.stepped()
        return loss.detach()

    def _loss(self, inputs: Tokens, wanted: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        self.model.train()
        with autocast(self.device, self.precision):
            states = self.model(inputs)[wanted].float()  # (P, D)
        table = self.model.item_table.weight[1:]  # (V, D)
        # Matryoshka (https://arxiv.org/abs/2205.13147): the mean of the losses of all prefixes, the whole among them
        sizes = (*self.config.matryoshka, self.model.dim)
        losses = [self._ranking_loss(states[:, :size], table[:, :size], targets, weights) for size in sizes]
        return torch.stack(losses).mean()

    def _ranking_loss(
        self, states: torch.Tensor, table: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        if self.sampler is not None:
            return sampled_softmax_loss(states, table, targets, weights, self.sampler)
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        return full_softmax_loss(states, table, targets, weights, dtype)

    def _set_rate(self, epochs: float) -> None:
        """The learning rate after so many ``epochs``: linear warm-up by steps, linear decay to the end."""
        rate = self.config.learning_rate * min(1.0, (self.steps + 1) / max(1, self.config.warmup_steps))
        if self.config.decay_epochs is not None:
            rate *= max(0.0, 1 - epochs / self.config.decay_epochs)
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def _validate(self) -> tuple[float, float] | None:
        """HR@10 and NDCG@10 of the averaged weights, held-out behaviors against the whole catalogue."""
        if self.validation is None:
            return None
        histories, held_out = self.validation
        index = self.average.items
        targets = index.rows(held_out)
        known = np.flatnonzero(targets > 0)
        if not len(known):
            return None
        histories = histories.take(known)
        seen = items_of(histories, index) if self.config.filter_seen else None
        items = self.average.item_table.weight[1:].cpu().numpy()
        scorer = inner_products(self.average.encode(histories), items)
        scores = evaluate_ranking(scorer, len(items), Ragged.single(targets[known] - 1), seen, ks=(10,))
        return scores.hr[10], scores.ndcg[10]

    def checkpoint(self) -> Checkpoint:
        """The run at the end of its last epoch."""
        tensors: dict[str, torch.Tensor] = {}
        for part, module in self._modules().items():
            tensors |= {f"{part}/{name}": tensor for name, tensor in module.state_dict().items()}
        for number, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{number}/{name}": tensor for name, tensor in state.items()}
        progress = {
            "epoch": len(self.reports),
            "best_epoch": self.best_epoch,
            "steps": self.steps,
            "reports": [asdict(report) for report in self.reports],
        }
        return Checkpoint(self.identity, progress, tensors)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Takes the run up where ``checkpoint`` left it."""
        for part, module in self._modules().items():
            prefix = f"{part}/"
            state = {k.removeprefix(prefix): v for k, v in checkpoint.tensors.items() if k.startswith(prefix)}
            module.load_state_dict(state)
        optimizer: dict[int, dict[str, torch.Tensor]] = {}
        for key, tensor in checkpoint.tensors.items():
            if key.startswith("optimizer/"):
                _, number, name = key.split("/")
                optimizer.setdefault(int(number), {})[name] = tensor
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": optimizer})
        self.best_epoch, self.steps = checkpoint.progress["best_epoch"], checkpoint.progress["steps"]
        self.reports = [EpochReport(**report) for report in checkpoint.progress["reports"]]

    def _modules(self) -> dict[str, SequenceEncoder]:
        return {"model": self.model, "average": self.average, "best": self.best}


def _split(config: TrainingConfig, histories: HistoryBatch) -> tuple[HistoryBatch, tuple[HistoryBatch, Any] | None]:
    """Training histories, and validation histories with the last behavior that each was held out of."""
    eligible = np.flatnonzero(histories.lengths > 2)
    count = min(config.validation_users, len(eligible))
    if count == 0:
        return histories, None
    chosen = np.random.default_rng([config.seed, _VALIDATION]).choice(eligible, count, replace=False)
    stop = histories.offsets[1:].copy()
    stop[chosen] -= 1
    as_of = histories.as_of.copy()
    as_of[chosen] = histories.times[stop[chosen]]
    training = cut(histories, histories.offsets[:-1], stop, as_of)
    return training, (training.take(chosen), histories.items[stop[chosen]])


def _identity(config: TrainingConfig, histories: HistoryBatch, types: tuple[str, ...], weights: Float32s) -> str:
    """Digest of what decides the weights: everything but when to stop, and where to keep what is done."""
    facts = asdict(config)
    for limit in ("max_epochs", "max_minutes", "patience", "checkpoint_dir", "resume"):
        del facts[limit]
    digest = hashlib.sha256(json.dumps([facts, types, weights.tolist()], sort_keys=True).encode())
    for array in (histories.offsets, histories.times, histories.behavior_types, histories.values, histories.as_of):
        digest.update(np.ascontiguousarray(array).tobytes())
    items = histories.items
    digest.update(items.tobytes() if items.dtype == np.int64 else json.dumps(items.tolist()).encode())
    return digest.hexdigest()


def _check_targets(weights: torch.Tensor, training: HistoryBatch, min_item_count: int) -> None:
    not_first = torch.ones(len(weights), dtype=torch.bool)
    not_first[torch.from_numpy(training.offsets[:-1][training.lengths > 0])] = False
    if not (weights[not_first] > 0).any():
        raise BehaviorSourceError(
            f"No behavior of a type with a weight above 0 has an item that occurs {min_item_count} times, so there is "
            "nothing to predict: lower min_item_count, or weigh other types."
        )


def check_trainable(histories: HistoryBatch) -> None:
    """Refuses histories without a next item.

    Raises:
        BehaviorSourceError: No history has two behaviors.
    """
    if not len(histories) or histories.lengths.max() < 2:
        raise BehaviorSourceError(
            "No history has two behaviors, so there is no next item to learn: give more or longer histories."
        )

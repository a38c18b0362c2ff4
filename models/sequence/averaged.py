"""A model in training: the running average of its weights, and the best average that validation found so far."""

from __future__ import annotations

import time
from copy import deepcopy
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from feast_embeddings.models.encoder import EncoderModule

Model = TypeVar("Model", bound=EncoderModule)


@dataclass(frozen=True, slots=True)
class EpochReport:
    """One epoch: mean training loss, and HR@10 and NDCG@10 on validation (None without validation)."""

    epoch: int
    loss: float
    hr10: float | None
    ndcg10: float | None
    seconds: float


class AveragedTraining(Generic[Model]):
    """What the training of every encoder keeps.

    Args:
        model: What is trained, on its device.
        decay: Of the running average, reached as steps add up.
    """

    def __init__(self, model: Model, decay: float) -> None:
        self.model, self.decay = model, decay
        self.average = deepcopy(model).eval().requires_grad_(requires_grad=False)
        self.best = deepcopy(self.average)
        self.reports: list[EpochReport] = []
        self.best_epoch = self.steps = 0

    @torch.no_grad()
    def stepped(self) -> None:
        """Takes the weights after a step into the average."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)

    def report(self, epoch: int, loss: float, scores: tuple[float, float] | None, started: float) -> None:
        """Adds an epoch's report, and keeps the average if no earlier one scored as well.

        Args:
            epoch: From 1.
            loss: Mean over the epoch.
            scores: HR@10 and NDCG@10 of the average; None without validation: then the latest is the best.
            started: When the epoch began, `time.monotonic`.
        """
        hr10, ndcg10 = scores or (None, None)
        known = [report.ndcg10 for report in self.reports if report.ndcg10 is not None]
        if ndcg10 is None or not known or ndcg10 > max(known):
            self.best_epoch = epoch
            self.best.load_state_dict(self.average.state_dict())
        self.reports.append(EpochReport(epoch, loss, hr10, ndcg10, time.monotonic() - started))

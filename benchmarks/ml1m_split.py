"""MovieLens-1M split at random: of each user's movies 80 % to learn from, 10 % to tune on, 10 % to test on.

The file is the one of ``quality_ml1m.py``; the order of the movies is not looked at.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from quality_ml1m import SECOND_US, read_sequences

from feast_embeddings.models import HistoryBatch, ItemIndex
from feast_embeddings.models.evaluation import RankingTask, distinct_items


@dataclass(frozen=True)
class RandomSplit:
    """Three parts of every user's movies, as histories of the same users."""

    training: HistoryBatch
    validation: HistoryBatch
    test: HistoryBatch
    catalogue: ItemIndex

    def task(self, part: HistoryBatch) -> RankingTask:
        """Finding ``part`` among all movies, given the training part; movies of the other parts are filtered out."""
        known = np.zeros(len(self.catalogue) + 1, np.bool_)
        known[self.catalogue.rows(self.training.items)] = True
        other = self.validation if part is self.test else None
        filtered = distinct_items(self.training if other is None else _joined(self.training, other), self.catalogue)
        targets, users = distinct_items(part, self.catalogue), np.arange(len(self.training))
        return RankingTask(self.training, self.training, targets, self.catalogue, known[1:], users, filtered)


def random_split(path: Path, seed: int = 0) -> RandomSplit:
    """The split of one seed; every user keeps at least 80 % (rounded up) in training."""
    sequences = read_sequences(path)
    lengths = np.array([len(sequence) for sequence in sequences])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    total = int(offsets[-1])
    owner = np.repeat(np.arange(len(lengths)), lengths)
    shuffled = np.lexsort([np.random.default_rng(seed).random(total), owner])
    place = np.empty(total, np.int64)
    place[shuffled] = np.arange(total) - offsets[owner]
    tenth = (lengths // 10)[owner]
    position = np.arange(total) - offsets[owner]
    histories = HistoryBatch(
        offsets=offsets,
        items=np.concatenate(sequences),
        behavior_types=np.zeros(total, np.int32),
        times=position * SECOND_US,
        values=np.full(total, np.nan, np.float32),
        as_of=lengths * SECOND_US,
    )
    test, validation = place < tenth, (place >= tenth) & (place < 2 * tenth)
    parts = [histories.where(kept) for kept in (~test & ~validation, validation, test)]
    return RandomSplit(*parts, ItemIndex.of(histories.items))


def _joined(first: HistoryBatch, second: HistoryBatch) -> HistoryBatch:
    """Histories of the same users put together; their order means nothing here."""
    owner = np.concatenate([np.repeat(np.arange(len(part)), part.lengths) for part in (first, second)])
    order = np.argsort(owner, kind="stable")
    names = ("items", "behavior_types", "times", "values")
    columns = {name: np.concatenate([getattr(first, name), getattr(second, name)])[order] for name in names}
    return HistoryBatch(offsets=first.offsets + second.offsets, as_of=first.as_of, **columns)

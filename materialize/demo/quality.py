"""How well served vectors name what households buy in the following week, and what simple counting achieves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from feast_embeddings.materialize.serving import Vectors
from feast_embeddings.models.encoder import ItemIndex
from feast_embeddings.models.errors import SpaceError
from feast_embeddings.models.evaluation import (
    Ragged,
    RankingTask,
    Scorer,
    evaluate,
    inner_products,
    popularity,
    repeat_purchase,
)
from feast_embeddings.models.types import Ids, Int64s
from feast_embeddings.transformations import Behaviors, Histories

_WEEK_US = 7 * 86_400_000_000
K = 10


@dataclass(frozen=True)
class Quality:
    """Means over households and weeks, of rankings of the whole catalogue.

    Attributes:
        ndcg, hit_rate, recall: At 10.
        weeks, households: How many of each.
    """

    ndcg: float
    hit_rate: float
    recall: float
    weeks: int
    households: int


class WeekAhead:
    """Ranks the catalogue for a sample of households on each Monday, against their purchases of the next seven days.

    ``sample`` (int64 [n]) are the positions of those households among ``future.entities``. Products outside the
    catalogue are counted (``outside``), not ranked: no method could name them.
    """

    def __init__(self, future: Behaviors, catalogue: Int64s, sample: Int64s, mondays: Sequence[int]) -> None:
        index = ItemIndex(catalogue)
        self.households = future.entities[sample]
        self.mondays = [monday for monday in mondays if monday + _WEEK_US <= int(future.times_us.max())]
        self._sample, self._histories = sample, Histories(future)
        self._length = int(np.diff(future.offsets).max())
        households = self.households[np.tile(np.arange(len(sample)), len(self.mondays))]
        asked = np.repeat(np.array(self.mondays, np.int64), len(self.households))
        bought = self._bought(households, asked, index)
        known = bought.rows >= 0
        self.outside = 1.0 - float(known.sum()) / max(len(known), 1)
        past = self._histories.as_of(households, asked, self._length)
        self.task = RankingTask(
            training=self._histories.as_of(future.entities, int(asked.min(initial=0)), self._length),
            histories=past,
            targets=bought.where(known),
            catalogue=index,
            known=np.ones(len(index), np.bool_),
            users=np.tile(np.arange(len(self.households)), len(self.mondays)),
        )

    def served(self, weekly: Mapping[int, Vectors], items: Vectors) -> Quality:
        """Quality of the user vectors served on each Monday, of all households, by inner product.

        Raises:
            SpaceError: User and item vectors are of different spaces.
        """
        for vectors in weekly.values():
            if vectors.space != items.space:
                raise SpaceError(f"Users stand in space {vectors.space}, items in {items.space}: serve one space.")
        users = [weekly[monday].values[self._sample] for monday in self.mondays]
        return self._quality(inner_products(np.concatenate(users), items.values))

    def popular(self) -> Quality:
        """Quality of the products that all households bought most in the seven days before."""
        everyone, index = self._histories.behaviors.entities, self.task.catalogue
        counts = np.concatenate(
            [
                popularity(self._histories.as_of(everyone, monday, self._length), index, monday - _WEEK_US)(slice(0, 1))
                for monday in self.mondays
            ]
        )
        week = np.repeat(np.arange(len(self.mondays)), len(self.households))
        return self._quality(lambda part: counts[week[part]])

    def repeated(self) -> Quality:
        """Quality of the products that the household itself bought most often."""
        return self._quality(repeat_purchase(self.task.training, self.task.catalogue, asked=self.task.histories))

    def _quality(self, scorer: Scorer) -> Quality:
        found = evaluate(self.task, {"it": scorer}, baselines=(), ks=(K,), resamples=0).methods["it"].estimates["all"]
        ndcg, hit_rate, recall = (found[f"{measure}@{K}"].value for measure in ("ndcg", "hr", "recall"))
        return Quality(ndcg, hit_rate, recall, len(self.mondays), len(self.households))

    def _bought(self, households: Ids, asked: Int64s, index: ItemIndex) -> Ragged:
        """Distinct products of the seven days from each time on, as columns; −1 is outside the catalogue."""
        week = self._histories.as_of(households, asked + _WEEK_US, self._length)
        owner = np.repeat(np.arange(len(week)), week.lengths)
        ahead = week.times >= asked[owner]
        every = Ragged(week.offsets, index.rows(week.items)).where(ahead).distinct(len(index) + 1)
        return Ragged(every.offsets, every.rows - 1)

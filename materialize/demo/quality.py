"""How well served vectors name what households buy in the following week, and what simple counting achieves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from feast_embeddings.materialize.online_reads import Vectors
from feast_embeddings.models.baselines import popularity, repeat_purchase
from feast_embeddings.models.batch import HistoryBatch, Int64s
from feast_embeddings.models.errors import SpaceError
from feast_embeddings.models.preprocessing import ItemIndex
from feast_embeddings.models.ranking import Ragged, Scorer, evaluate_ranking, inner_products
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
        self.index = ItemIndex(catalogue)
        self.sample = sample
        self.households = future.entities[sample]
        self.mondays = [monday for monday in mondays if monday + _WEEK_US <= int(future.times_us.max())]
        self._histories = Histories(future)
        self._length = int(np.diff(future.offsets).max())
        self.targets = {monday: self._targets(monday) for monday in self.mondays}
        bought = sum(int(targets.offsets[-1]) for targets in self.targets.values())
        known = sum(int((targets.rows >= 0).sum()) for targets in self.targets.values())
        self.outside = 1.0 - known / max(bought, 1)
        self.targets = {monday: _known(targets) for monday, targets in self.targets.items()}

    def served(self, weekly: Mapping[int, Vectors], items: Vectors) -> Quality:
        """Quality of the user vectors served on each Monday, of all households, by inner product.

        Raises:
            SpaceError: User and item vectors are of different spaces.
        """
        for vectors in weekly.values():
            if vectors.space != items.space:
                raise SpaceError(f"Users stand in space {vectors.space}, items in {items.space}: serve one space.")
        return self._mean(lambda monday, _: inner_products(weekly[monday].values[self.sample], items.values))

    def popular(self) -> Quality:
        """Quality of the products that all households bought most in the seven days before."""
        return self._mean(lambda monday, past: popularity(past, self.index, monday - _WEEK_US), everyone=True)

    def repeated(self) -> Quality:
        """Quality of the products that the household itself bought most often."""
        return self._mean(lambda _, past: repeat_purchase(past, self.index))

    def _mean(self, scorer: Callable[[int, HistoryBatch], Scorer], *, everyone: bool = False) -> Quality:
        scores = []
        for monday, targets in self.targets.items():
            entities = self._histories.behaviors.entities if everyone else self.households
            past = self._histories.as_of(entities, monday, self._length)
            scores.append(evaluate_ranking(scorer(monday, past), len(self.index), targets, ks=(K,)))
        weights = [score.users for score in scores]
        return Quality(
            float(np.average([score.ndcg[K] for score in scores], weights=weights)),
            float(np.average([score.hr[K] for score in scores], weights=weights)),
            float(np.average([score.recall[K] for score in scores], weights=weights)),
            len(scores),
            len(self.households),
        )

    def _targets(self, monday: int) -> Ragged:
        week = self._histories.as_of(self.households, monday + _WEEK_US, self._length)
        owner = np.repeat(np.arange(len(week)), week.lengths)
        ahead = week.times >= monday
        pairs = np.unique(np.stack([owner[ahead], self.index.rows(week.items[ahead]) - 1]), axis=1)
        return Ragged(np.searchsorted(pairs[0], np.arange(len(week) + 1)), pairs[1])


def _known(targets: Ragged) -> Ragged:
    kept = targets.rows >= 0
    owner = np.repeat(np.arange(len(targets)), np.diff(targets.offsets))[kept]
    return Ragged(np.searchsorted(owner, np.arange(len(targets) + 1)), targets.rows[kept])

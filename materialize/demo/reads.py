"""Online reads during a replay, kept to be held against historical retrieval later."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pyarrow as pa
from feast import FeatureStore

from feast_embeddings.materialize.clock import now_us
from feast_embeddings.materialize.files import matrix_of
from feast_embeddings.models.types import Float32s, Int64s
from feast_embeddings.transformations import Behaviors

FEATURES = ["user_embedding:user_vector", "item_embedding:item_vector"]
USER, ITEM = "user_embedding__user_vector", "item_embedding__item_vector"
_WEEK_US = 7 * 86_400_000_000


@dataclass
class Rows:
    """Vectors of (user, item, time) rows as one side returned them.

    Attributes:
        users, items: float32 [n, dim]; zero where there was none.
        found: bool [n], whether the user had a vector.
    """

    users: Float32s
    items: Float32s
    found: np.ndarray

    def equal(self, other: Rows) -> np.ndarray:
        """Which rows are the same bit for bit: bool [n]."""
        same = self.found == other.found
        for mine, theirs in ((self.users, other.users), (self.items, other.items)):
            same &= (mine.view(np.uint32) == theirs.view(np.uint32)).all(axis=1)
        return np.asarray(same)

    def take(self, rows: np.ndarray) -> Rows:
        """The rows of a mask or of positions."""
        return Rows(self.users[rows], self.items[rows], self.found[rows])

    @classmethod
    def concat(cls, parts: list[Rows]) -> Rows:
        """One after the other."""
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("users", "items", "found")))


@dataclass
class Reader:
    """Reads random rows through ``get_online_features``, as a recommender would, and remembers the answers.

    Half of the items of a read are among what the household buys within the next seven days, the others are
    drawn from the catalogue.

    Attributes:
        store: A feature store of its own: another reader than the job that writes.
        future: All behaviors, for what a household is about to buy.
        households, catalogue: Ids to draw from.
        dim: Dimensions of the vectors.
        rng: Draws the rows.
        budget: Rows still to be read.
        answers: What was read: user, item, label, time, and the vectors.
    """

    store: FeatureStore
    future: Behaviors
    households: Int64s
    catalogue: Int64s
    dim: int
    rng: np.random.Generator
    budget: int
    answers: list[tuple[pd.DataFrame, Rows]] = field(default_factory=list)

    def read(self, rows: int = 20) -> None:
        """Read up to ``rows`` random rows now."""
        rows = min(rows, self.budget)
        if rows == 0:
            return
        now = now_us()
        users = self.rng.choice(self.households, rows)
        items, bought = self._candidates(users, now)
        response = self.store.get_online_features(
            FEATURES, entity_rows={"user_id": users.tolist(), "item_id": items.tolist()}, full_feature_names=True
        ).to_dict()
        asked = pd.DataFrame({"user_id": users, "item_id": items, "bought": bought})
        asked["event_timestamp"] = pd.Timestamp(now, unit="us", tz="UTC")
        self.answers.append((asked, rows_of(response[USER], response[ITEM], self.dim)))
        self.budget -= rows

    def result(self) -> tuple[pd.DataFrame, Rows]:
        """All rows read, in order, and their vectors."""
        asked = pd.concat([part for part, _ in self.answers], ignore_index=True)
        return asked, Rows.concat([rows for _, rows in self.answers])

    def _candidates(self, users: Int64s, now: int) -> tuple[Int64s, np.ndarray]:
        items = self.rng.choice(self.catalogue, len(users))
        bought = np.zeros(len(users), bool)
        for row in range(0, len(users), 2):
            basket = np.intersect1d(next_week(self.future, int(users[row]), now), self.catalogue)
            if len(basket):
                items[row], bought[row] = self.rng.choice(basket), True
        return items, bought


def next_week(future: Behaviors, user: int, now: int) -> Int64s:
    """Items that a household buys within seven days of ``now``."""
    at = int(np.searchsorted(future.entities, user))
    if at == len(future.entities) or future.entities[at] != user:
        return np.empty(0, np.int64)
    start, stop = future.offsets[at], future.offsets[at + 1]
    low, high = start + np.searchsorted(future.times_us[start:stop], [now, now + _WEEK_US])
    return np.asarray(future.items[low:high], np.int64)


def historical(store: FeatureStore, asked: pd.DataFrame, dim: int) -> Rows:
    """The same rows by ``get_historical_features``."""
    frame = asked[["user_id", "item_id", "event_timestamp"]]
    table = store.get_historical_features(frame, FEATURES, full_feature_names=True).to_arrow()
    return rows_of(table[USER], table[ITEM], dim)


def rows_of(
    users: list[list[float] | None] | pa.ChunkedArray, items: list[list[float] | None] | pa.ChunkedArray, dim: int
) -> Rows:
    """Rows of user and item vectors as either side returns them: lists of ``dim`` numbers, or nothing."""
    (user_vectors, found), (item_vectors, _) = _matrix(users, dim), _matrix(items, dim)
    return Rows(user_vectors, item_vectors, found)


def _matrix(column: list[list[float] | None] | pa.ChunkedArray, dim: int) -> tuple[Float32s, np.ndarray]:
    array = (
        column if isinstance(column, pa.ChunkedArray) else pa.chunked_array([pa.array(column, pa.list_(pa.float32()))])
    )
    found = np.asarray(array.is_valid().to_numpy())
    vectors = np.zeros((len(array), dim), np.float32)
    if found.any():
        vectors[found] = matrix_of(array.drop_null())
    return vectors, found

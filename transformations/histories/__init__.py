"""What behaviors say of an entity as of any time: its history, its activity, its latest behavior."""

from feast_embeddings.transformations.histories.activity import RECENCY, ActivitySpec, activity
from feast_embeddings.transformations.histories.histories import Arrivals, Histories, empty_histories, extend, merged
from feast_embeddings.transformations.histories.latest import LATEST_FEATURES, latest, latest_rows

__all__ = [
    "LATEST_FEATURES",
    "RECENCY",
    "ActivitySpec",
    "Arrivals",
    "Histories",
    "activity",
    "empty_histories",
    "extend",
    "latest",
    "latest_rows",
    "merged",
]

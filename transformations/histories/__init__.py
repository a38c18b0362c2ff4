"""What behaviors say of an entity as of any time: its history and its activity."""

from feast_embeddings.transformations.histories.activity import RECENCY, ActivitySpec, activity
from feast_embeddings.transformations.histories.histories import Arrivals, Histories, empty_histories, extend, merged

__all__ = ["RECENCY", "ActivitySpec", "Arrivals", "Histories", "activity", "empty_histories", "extend", "merged"]

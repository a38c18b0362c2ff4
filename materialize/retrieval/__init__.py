"""Reads of the past: vectors as they were served, histories and activity as they stood."""

from feast_embeddings.materialize.retrieval.recomputed import activity_at, histories_left, history_at
from feast_embeddings.materialize.retrieval.rows import ROW, Asked, EntityRows, ServedRetrievalJob, check_names
from feast_embeddings.materialize.retrieval.served import served_space, served_vectors

__all__ = [
    "ROW",
    "Asked",
    "EntityRows",
    "ServedRetrievalJob",
    "activity_at",
    "check_names",
    "histories_left",
    "history_at",
    "served_space",
    "served_vectors",
]

"""Reads of the past: vectors as they were served, histories and activity as they stood."""

from feast_embeddings.materialize.retrieval.past import ANSWERED, Columns, Past
from feast_embeddings.materialize.retrieval.recomputed import histories_left
from feast_embeddings.materialize.retrieval.rows import ROW, Asked, EntityRows, ServedRetrievalJob, check_names
from feast_embeddings.materialize.retrieval.served import served_vectors

__all__ = [
    "ANSWERED",
    "ROW",
    "Asked",
    "Columns",
    "EntityRows",
    "Past",
    "ServedRetrievalJob",
    "check_names",
    "histories_left",
    "served_vectors",
]

"""Reads at request time: answers of one generation, vectors as a matrix, neighbors, sessions, items by words."""

from feast_embeddings.materialize.serving.answer import answering, with_sessions
from feast_embeddings.materialize.serving.metrics import PUSHED, REQUEST_METRICS
from feast_embeddings.materialize.serving.neighbors import Metric, Neighbors, nearest
from feast_embeddings.materialize.serving.response import Request, ResponseRead, Row, RowsRead
from feast_embeddings.materialize.serving.sessions import answer_of, warm_up, warm_up_quietly
from feast_embeddings.materialize.serving.vectors import Vectors, read_vectors
from feast_embeddings.materialize.serving.word_search import search

__all__ = [
    "PUSHED",
    "REQUEST_METRICS",
    "Metric",
    "Neighbors",
    "Request",
    "ResponseRead",
    "Row",
    "RowsRead",
    "Vectors",
    "answer_of",
    "answering",
    "nearest",
    "read_vectors",
    "search",
    "warm_up",
    "warm_up_quietly",
    "with_sessions",
]

"""Which behaviors made a vector."""

from feast_embeddings.models.explanation.explain import Explanation, Method, explain, sequence_of

__all__ = ["Explanation", "Method", "explain", "sequence_of"]

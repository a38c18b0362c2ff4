"""From Feast's objects to our online store."""

from __future__ import annotations

from feast import FeatureStore
from feast.infra.online_stores.online_store import OnlineStore

from feast_embeddings.materialize.online_store import EmbeddingOnlineStore
from feast_embeddings.models.errors import OnlineStoreError


def embedding_store(online: OnlineStore) -> EmbeddingOnlineStore:
    """``online``, if it is ours; raises OnlineStoreError where feature_store.yaml names another."""
    if isinstance(online, EmbeddingOnlineStore):
        return online
    raise OnlineStoreError(
        f"Embedding views need online_store.type {EmbeddingOnlineStore.__module__}.EmbeddingOnlineStore in "
        f"feature_store.yaml; it is {type(online).__name__}."
    )


def online_store_of(store: FeatureStore) -> EmbeddingOnlineStore:
    """The online store behind a feature store; raises OnlineStoreError where it is not ours."""
    # Feast has no public way to its online store.
    return embedding_store(store._get_provider().online_store)

"""What a repo writes, and how everything else reads it back."""

from feast_embeddings.materialize.declare.arguments import STATE, EncoderRef, Inputs, Serving
from feast_embeddings.materialize.declare.kinds import Kind, kind_of, pinned_space, ttl_us
from feast_embeddings.materialize.declare.policy import Due, Full, Hybrid, Incremental, Policy, blend, describe, due
from feast_embeddings.materialize.declare.spec import (
    EmbeddingSpec,
    behaviors_of,
    declared_entity,
    embedding_specs,
    encoder_specs,
    entity_id_of,
    is_embedding,
    source_of,
    spec_of,
)
from feast_embeddings.materialize.declare.storage import STORAGES, Storage, as_stored, holds, packed, unpacked
from feast_embeddings.materialize.declare.views import (
    embed_behaviors,
    embedding_view,
    history_view,
    item_embedding_view,
    pinned,
)

__all__ = [
    "STATE",
    "STORAGES",
    "Due",
    "EmbeddingSpec",
    "EncoderRef",
    "Full",
    "Hybrid",
    "Incremental",
    "Inputs",
    "Kind",
    "Policy",
    "Serving",
    "Storage",
    "as_stored",
    "behaviors_of",
    "blend",
    "declared_entity",
    "describe",
    "due",
    "embed_behaviors",
    "embedding_specs",
    "embedding_view",
    "encoder_specs",
    "entity_id_of",
    "history_view",
    "holds",
    "is_embedding",
    "item_embedding_view",
    "kind_of",
    "packed",
    "pinned",
    "pinned_space",
    "source_of",
    "spec_of",
    "ttl_us",
    "unpacked",
]

"""Declarations for a feature repo: one module per view, and the tags by which each is read back."""

from feast_embeddings.transformations.views import tags
from feast_embeddings.transformations.views.activity import activity_spec_of, activity_view, behaviors_name_of
from feast_embeddings.transformations.views.behaviors import behavior_source, behaviors_view, contract_of, rules_of
from feast_embeddings.transformations.views.session import (
    SESSION_INPUTS,
    SESSION_VALUES,
    Columns,
    SessionSpec,
    serve_sessions_with,
    session_embedding_view,
    session_spec_of,
    session_vectors,
)
from feast_embeddings.transformations.views.session_histories import session_histories
from feast_embeddings.transformations.views.tags import (
    ACTIVITY_KIND,
    BEHAVIORS,
    BEHAVIORS_KIND,
    EMBEDDING,
    EMBEDDING_KIND,
    HISTORY_FEATURES,
    HISTORY_KIND,
    KIND,
    PREFIX,
    SPACE,
    kind_of,
)

__all__ = [
    "ACTIVITY_KIND",
    "BEHAVIORS",
    "BEHAVIORS_KIND",
    "EMBEDDING",
    "EMBEDDING_KIND",
    "HISTORY_FEATURES",
    "HISTORY_KIND",
    "KIND",
    "PREFIX",
    "SESSION_INPUTS",
    "SESSION_VALUES",
    "SPACE",
    "Columns",
    "SessionSpec",
    "activity_spec_of",
    "activity_view",
    "behavior_source",
    "behaviors_name_of",
    "behaviors_view",
    "contract_of",
    "kind_of",
    "rules_of",
    "serve_sessions_with",
    "session_embedding_view",
    "session_histories",
    "session_spec_of",
    "session_vectors",
    "tags",
]

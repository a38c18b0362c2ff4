"""Behaviors → clean behaviors → histories → features."""

import sys

from feast_embeddings.transformations.behaviors import (
    BehaviorContract,
    Behaviors,
    BehaviorType,
    CleaningRules,
    Counts,
    Prepared,
    Quarantine,
    clean,
    prepare,
)
from feast_embeddings.transformations.histories import ActivitySpec, Histories, activity, empty_histories, extend
from feast_embeddings.transformations.sources import read_behaviors
from feast_embeddings.transformations.views import (
    activity_spec_of,
    activity_view,
    behavior_source,
    behaviors_name_of,
    behaviors_view,
    contract_of,
    kind_of,
    rules_of,
    session_embedding_view,
    session_vectors,
)

__all__ = [
    "ActivitySpec",
    "BehaviorContract",
    "BehaviorType",
    "Behaviors",
    "CleaningRules",
    "Counts",
    "Histories",
    "Prepared",
    "Quarantine",
    "activity",
    "activity_spec_of",
    "activity_view",
    "behavior_source",
    "behaviors_name_of",
    "behaviors_view",
    "clean",
    "contract_of",
    "empty_histories",
    "extend",
    "kind_of",
    "prepare",
    "read_behaviors",
    "rules_of",
    "session_embedding_view",
    "session_vectors",
]

# A registry holds the source text of a session view's transformation. Texts that were applied before import this path,
# and have to go on working for one version.
sys.modules[f"{__name__}.session"] = sys.modules[session_vectors.__module__]

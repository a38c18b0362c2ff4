"""Behaviors → clean behaviors → histories → features."""

from feast_embeddings.transformations.activity import ActivitySpec, activity
from feast_embeddings.transformations.behaviors import Behaviors
from feast_embeddings.transformations.cleaning import CleaningRules, clean
from feast_embeddings.transformations.contract import BehaviorContract, BehaviorType
from feast_embeddings.transformations.histories import Histories, empty_histories, extend
from feast_embeddings.transformations.prepare import Counts, Prepared, prepare
from feast_embeddings.transformations.quarantine import Quarantine
from feast_embeddings.transformations.session import session_embedding_view
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
]

"""Behaviors → clean behaviors → histories → features."""

import sys

from feast_embeddings.transformations.behaviors.cleaning import CleaningRules, clean
from feast_embeddings.transformations.behaviors.contract import BehaviorContract, BehaviorType
from feast_embeddings.transformations.behaviors.prepare import Counts, Prepared, prepare
from feast_embeddings.transformations.behaviors.quarantine import Quarantine
from feast_embeddings.transformations.behaviors.table import Behaviors
from feast_embeddings.transformations.histories.activity import ActivitySpec, activity
from feast_embeddings.transformations.histories.histories import Histories, empty_histories, extend
from feast_embeddings.transformations.sources.reading import read_behaviors
from feast_embeddings.transformations.views.declarations import (
    activity_spec_of,
    activity_view,
    behavior_source,
    behaviors_name_of,
    behaviors_view,
    contract_of,
    kind_of,
    rules_of,
)
from feast_embeddings.transformations.views.session import session_embedding_view, session_vectors

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

# The text of a session view that earlier builds applied imports `session_vectors` from here; gone with version 0.2.
sys.modules[f"{__name__}.session"] = sys.modules[__name__]

"""Behaviors → clean behaviors → histories → features."""

from feast_embeddings.transformations.behaviors import Behaviors
from feast_embeddings.transformations.cleaning import CleaningRules, clean
from feast_embeddings.transformations.contract import BehaviorContract, BehaviorType
from feast_embeddings.transformations.histories import Histories, empty_histories, extend
from feast_embeddings.transformations.prepare import Counts, Prepared, prepare
from feast_embeddings.transformations.sources import read_behaviors

__all__ = [
    "BehaviorContract",
    "BehaviorType",
    "Behaviors",
    "CleaningRules",
    "Counts",
    "Histories",
    "Prepared",
    "clean",
    "empty_histories",
    "extend",
    "prepare",
    "read_behaviors",
]

"""The sequence encoder: a causal transformer over a history, and its training."""

from feast_embeddings.models.sequence.attention import Block, mixed
from feast_embeddings.models.sequence.averaged import AveragedTraining, EpochReport
from feast_embeddings.models.sequence.cached import CachedState, empty_state
from feast_embeddings.models.sequence.config import SequenceConfig, TrainingConfig
from feast_embeddings.models.sequence.model import SequenceEncoder
from feast_embeddings.models.sequence.progress import TrainingProgress
from feast_embeddings.models.sequence.trainer import Builder
from feast_embeddings.models.sequence.training import TrainResult, train

__all__ = [
    "AveragedTraining",
    "Block",
    "Builder",
    "CachedState",
    "EpochReport",
    "SequenceConfig",
    "SequenceEncoder",
    "TrainResult",
    "TrainingConfig",
    "TrainingProgress",
    "empty_state",
    "mixed",
    "train",
]

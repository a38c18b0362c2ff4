"""Encoders, their training, artifacts and evaluation. Knows neither Feast nor Redis."""

from feast_embeddings.models.alignment import AlignedEncoder, Alignment, align
from feast_embeddings.models.artifact import (
    Manifest,
    StorableEncoder,
    load_encoder,
    read_manifest,
    register_encoder,
    save_encoder,
)
from feast_embeddings.models.autoencoder import AutoEncoder, AutoEncoderConfig
from feast_embeddings.models.bags import Bagger, Bags
from feast_embeddings.models.baselines import markov_table, popularity, repeat_purchase
from feast_embeddings.models.batch import HistoryBatch
from feast_embeddings.models.encoder import Encoder, EncoderState, space_of
from feast_embeddings.models.preprocessing import ItemIndex, ValueNormalizer
from feast_embeddings.models.ranking import Ragged, RankingScores, Scorer, evaluate_ranking, inner_products
from feast_embeddings.models.sequence import SequenceConfig, SequenceEncoder
from feast_embeddings.models.trainer import EpochReport, TrainingConfig
from feast_embeddings.models.training import TrainResult, train

__all__ = [
    "AlignedEncoder",
    "Alignment",
    "AutoEncoder",
    "AutoEncoderConfig",
    "Bagger",
    "Bags",
    "Encoder",
    "EncoderState",
    "EpochReport",
    "HistoryBatch",
    "ItemIndex",
    "Manifest",
    "Ragged",
    "RankingScores",
    "Scorer",
    "SequenceConfig",
    "SequenceEncoder",
    "StorableEncoder",
    "TrainResult",
    "TrainingConfig",
    "ValueNormalizer",
    "align",
    "evaluate_ranking",
    "inner_products",
    "load_encoder",
    "markov_table",
    "popularity",
    "read_manifest",
    "register_encoder",
    "repeat_purchase",
    "save_encoder",
    "space_of",
    "train",
]

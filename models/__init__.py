"""Encoders, their training, artifacts and evaluation. Knows neither Feast nor Redis."""

from feast_embeddings.models.adversarial import AdversarialAutoEncoder, AdversarialTraining, train_adversarial
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
from feast_embeddings.models.autoencoder_config import AutoEncoderTraining
from feast_embeddings.models.autoencoder_training import AutoEncoderResult, train_autoencoder
from feast_embeddings.models.bags import Bagger, Bags
from feast_embeddings.models.baselines import markov_table, popularity, repeat_purchase
from feast_embeddings.models.batch import HistoryBatch
from feast_embeddings.models.bootstrap import Estimate
from feast_embeddings.models.cached import CachedState
from feast_embeddings.models.compression import CompressedEncoder, PrefixEncoder, compressed
from feast_embeddings.models.encoder import Encoder, EncoderState, space_of
from feast_embeddings.models.evaluation import BASELINES, Evaluation, MethodScores, evaluate
from feast_embeddings.models.explanation import Explanation, explain
from feast_embeddings.models.fusion import FusionEncoder, fusing
from feast_embeddings.models.generator import BehaviorGenerator, GeneratorConfig
from feast_embeddings.models.generator_checks import Likeness, likeness
from feast_embeddings.models.generator_training import GeneratorResult, GeneratorTraining, train_generator
from feast_embeddings.models.item_features import ItemFeatures
from feast_embeddings.models.onnx_runtime import OnnxEncoder
from feast_embeddings.models.preprocessing import ItemIndex, ValueNormalizer
from feast_embeddings.models.ranking import Ragged, RankingScores, Scorer, evaluate_ranking, inner_products
from feast_embeddings.models.reconstruction import (
    TypeErrors,
    draw_reconstruction,
    reconstruction_errors,
    reconstructions,
)
from feast_embeddings.models.sequence import SequenceConfig, SequenceEncoder
from feast_embeddings.models.splits import RankingTask, leave_one_out, time_split
from feast_embeddings.models.table_encoder import TableEncoder
from feast_embeddings.models.text import TextEncoder
from feast_embeddings.models.text_model import TextModel
from feast_embeddings.models.tokens import Tokens
from feast_embeddings.models.trainer import EpochReport, TrainingConfig
from feast_embeddings.models.training import TrainResult, train
from feast_embeddings.models.unseen_items import UnseenItems

__all__ = [
    "BASELINES",
    "AdversarialAutoEncoder",
    "AdversarialTraining",
    "AlignedEncoder",
    "Alignment",
    "AutoEncoder",
    "AutoEncoderConfig",
    "AutoEncoderResult",
    "AutoEncoderTraining",
    "Bagger",
    "Bags",
    "BehaviorGenerator",
    "CachedState",
    "CompressedEncoder",
    "Encoder",
    "EncoderState",
    "EpochReport",
    "Estimate",
    "Evaluation",
    "Explanation",
    "FusionEncoder",
    "GeneratorConfig",
    "GeneratorResult",
    "GeneratorTraining",
    "HistoryBatch",
    "ItemFeatures",
    "ItemIndex",
    "Likeness",
    "Manifest",
    "MethodScores",
    "OnnxEncoder",
    "PrefixEncoder",
    "Ragged",
    "RankingScores",
    "RankingTask",
    "Scorer",
    "SequenceConfig",
    "SequenceEncoder",
    "StorableEncoder",
    "TableEncoder",
    "TextEncoder",
    "TextModel",
    "Tokens",
    "TrainResult",
    "TrainingConfig",
    "TypeErrors",
    "UnseenItems",
    "ValueNormalizer",
    "align",
    "compressed",
    "draw_reconstruction",
    "evaluate",
    "evaluate_ranking",
    "explain",
    "fusing",
    "inner_products",
    "leave_one_out",
    "likeness",
    "load_encoder",
    "markov_table",
    "popularity",
    "read_manifest",
    "reconstruction_errors",
    "reconstructions",
    "register_encoder",
    "repeat_purchase",
    "save_encoder",
    "space_of",
    "time_split",
    "train",
    "train_adversarial",
    "train_autoencoder",
    "train_generator",
]

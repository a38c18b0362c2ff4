"""Encoders, their training, artifacts and evaluation. Knows neither Feast nor Redis."""

from feast_embeddings.models.autoencoder.adversarial import (
    AdversarialAutoEncoder,
    AdversarialTraining,
    train_adversarial,
)
from feast_embeddings.models.autoencoder.bags import Bagger, Bags
from feast_embeddings.models.autoencoder.config import AutoEncoderTraining
from feast_embeddings.models.autoencoder.generator import BehaviorGenerator, GeneratorConfig
from feast_embeddings.models.autoencoder.generator_checks import Likeness, likeness
from feast_embeddings.models.autoencoder.generator_training import GeneratorResult, GeneratorTraining, train_generator
from feast_embeddings.models.autoencoder.model import AutoEncoder, AutoEncoderConfig
from feast_embeddings.models.autoencoder.reconstruction import (
    TypeErrors,
    draw_reconstruction,
    reconstruction_errors,
    reconstructions,
)
from feast_embeddings.models.autoencoder.training import AutoEncoderResult, train_autoencoder
from feast_embeddings.models.content.fusion import FusionEncoder, fusing
from feast_embeddings.models.content.item_features import ItemFeatures
from feast_embeddings.models.content.text import TextEncoder
from feast_embeddings.models.content.text_model import TextModel
from feast_embeddings.models.derived.alignment import AlignedEncoder, Alignment, align
from feast_embeddings.models.derived.compression import CompressedEncoder, PrefixEncoder, compressed
from feast_embeddings.models.derived.onnx import OnnxEncoder
from feast_embeddings.models.derived.unseen import UnseenItems
from feast_embeddings.models.encoder.artifact import (
    Manifest,
    StorableEncoder,
    load_encoder,
    read_manifest,
    register_encoder,
    save_encoder,
)
from feast_embeddings.models.encoder.batch import HistoryBatch
from feast_embeddings.models.encoder.preprocessing import ItemIndex, ValueNormalizer
from feast_embeddings.models.encoder.protocol import Encoder, EncoderState, space_of
from feast_embeddings.models.encoder.table import TableEncoder
from feast_embeddings.models.encoder.tokens import Tokens
from feast_embeddings.models.evaluation.baselines import markov_table, popularity, repeat_purchase
from feast_embeddings.models.evaluation.bootstrap import Estimate
from feast_embeddings.models.evaluation.evaluate import BASELINES, Evaluation, MethodScores, evaluate
from feast_embeddings.models.evaluation.ranking import Ragged, RankingScores, Scorer, evaluate_ranking, inner_products
from feast_embeddings.models.evaluation.splits import RankingTask, leave_one_out, time_split
from feast_embeddings.models.explanation.explain import Explanation, explain
from feast_embeddings.models.sequence.cached import CachedState
from feast_embeddings.models.sequence.model import SequenceConfig, SequenceEncoder
from feast_embeddings.models.sequence.trainer import EpochReport, TrainingConfig
from feast_embeddings.models.sequence.training import TrainResult, train

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

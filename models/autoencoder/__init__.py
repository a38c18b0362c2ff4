"""Encoders of bags of behaviors, trained to tell the bag again, and a generator of histories."""

from feast_embeddings.models.autoencoder.adversarial import (
    AdversarialAutoEncoder,
    AdversarialTraining,
    train_adversarial,
)
from feast_embeddings.models.autoencoder.bags import Bagger, Bags
from feast_embeddings.models.autoencoder.config import AutoEncoderConfig, AutoEncoderTraining
from feast_embeddings.models.autoencoder.generator import BehaviorGenerator, GeneratorConfig
from feast_embeddings.models.autoencoder.generator_checks import Likeness, likeness
from feast_embeddings.models.autoencoder.generator_training import GeneratorResult, GeneratorTraining, train_generator
from feast_embeddings.models.autoencoder.model import AutoEncoder
from feast_embeddings.models.autoencoder.reconstruction import (
    TypeErrors,
    draw_reconstruction,
    reconstruction_errors,
    reconstructions,
)
from feast_embeddings.models.autoencoder.training import AutoEncoderResult, train_autoencoder

__all__ = [
    "AdversarialAutoEncoder",
    "AdversarialTraining",
    "AutoEncoder",
    "AutoEncoderConfig",
    "AutoEncoderResult",
    "AutoEncoderTraining",
    "Bagger",
    "Bags",
    "BehaviorGenerator",
    "GeneratorConfig",
    "GeneratorResult",
    "GeneratorTraining",
    "Likeness",
    "TypeErrors",
    "draw_reconstruction",
    "likeness",
    "reconstruction_errors",
    "reconstructions",
    "train_adversarial",
    "train_autoencoder",
    "train_generator",
]

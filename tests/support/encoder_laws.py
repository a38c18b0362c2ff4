"""The encoders that the laws are held against; a new encoder joins by a `Case` in ``ENCODERS``.

A factory takes a seed and gives an untrained encoder in evaluation mode, on the device that
FEAST_EMBEDDINGS_DEVICE names, or the best there is. It declares the behavior types ``TYPES``, and knows items out
of ``INTEGERS`` or ``STRINGS``; histories in the laws also hold items that no encoder knows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from feast_embeddings.models import (
    AdversarialAutoEncoder,
    AlignedEncoder,
    Alignment,
    AutoEncoder,
    AutoEncoderConfig,
    CompressedEncoder,
    FusionEncoder,
    ItemFeatures,
    ItemIndex,
    PrefixEncoder,
    SequenceConfig,
    SequenceEncoder,
    StorableEncoder,
    TableEncoder,
    TextEncoder,
    ValueNormalizer,
    compressed,
    fusing,
)
from feast_embeddings.models.content import TextMap
from feast_embeddings.models.encoder import choose_device

TYPES = ("view", "cart", "buy")
INTEGERS = np.arange(60)
STRINGS = np.array([f"item {number}" for number in range(60)], dtype=object)


@dataclass(frozen=True)
class Case:
    """An encoder under the laws.

    Attributes:
        make: Encoder of a seed; equal seeds, equal weights.
        strings: Whether its item ids are strings.
        bf16_tolerance: Largest difference between a component in bf16 and in float32; without a bf16 path
            of its own an encoder gives equal bits for both.
        cached_tolerance: The same between a cached and a full encode, where it keeps a state.
    """

    make: Callable[[int], StorableEncoder]
    strings: bool = False
    bf16_tolerance: float = 0.05
    cached_tolerance: float = 1e-5

    @property
    def items(self) -> np.ndarray:
        """Ids that the encoder knows."""
        return STRINGS if self.strings else INTEGERS


def sequence(seed: int = 0) -> SequenceEncoder:
    torch.manual_seed(seed)
    config = SequenceConfig(dim=16, context=40, heads=2, hidden=32)
    encoder = SequenceEncoder(config, TYPES, ItemIndex(INTEGERS))
    for block in encoder.blocks:
        torch.nn.init.normal_(block.distance_bias)  # as after training: distance counts
    return encoder.to(choose_device()).eval()


def sequence_of_strings_and_values(seed: int = 0) -> SequenceEncoder:
    torch.manual_seed(seed)
    config = SequenceConfig(dim=20, context=13, blocks=1, heads=1, hidden=24, value_normalizer="log1p-zscore")
    normalizer = ValueNormalizer("log1p-zscore", mean=0.8, scale=0.6)
    return SequenceEncoder(config, TYPES, ItemIndex(STRINGS), normalizer).to(choose_device()).eval()


def sequence_in_bf16(seed: int = 0) -> SequenceEncoder:
    torch.manual_seed(seed)
    config = SequenceConfig(dim=64, context=33, heads=2)
    return SequenceEncoder(config, TYPES, ItemIndex(INTEGERS), precision="bf16").to(choose_device()).eval()


def aligned(seed: int = 0) -> AlignedEncoder:
    inner = sequence(seed)
    turned = np.linalg.qr(np.random.default_rng(seed).normal(size=(16, 16)))[0].astype(np.float32)
    return AlignedEncoder(inner, torch.from_numpy(turned), Alignment("new", "old", 60, 0.1, 0.2, 0.3, 0.4)).eval()


def aligned_in_bf16(seed: int = 0) -> AlignedEncoder:
    inner = sequence_in_bf16(seed)
    turned = np.linalg.qr(np.random.default_rng(seed).normal(size=(64, 64)))[0].astype(np.float32)
    return AlignedEncoder(inner, torch.from_numpy(turned), Alignment("new", "old", 60, 0.1, 0.2, 0.3, 0.4)).eval()


def autoencoder(seed: int = 0) -> AutoEncoder:
    torch.manual_seed(seed)
    config = AutoEncoderConfig(dim=17, context=40, stacked=True, half_life_days=20.0)
    return AutoEncoder(config, TYPES, ItemIndex(INTEGERS), (0.2, 0.5, 1.0)).to(choose_device()).eval()


def deep_autoencoder_of_strings(seed: int = 0) -> AutoEncoder:
    torch.manual_seed(seed)
    config = AutoEncoderConfig(dim=33, context=60, hidden=(48,), activation="softsign", normalize=True)
    return AutoEncoder(config, TYPES, ItemIndex(STRINGS)).to(choose_device()).eval()


def with_text(seed: int = 0) -> TextEncoder:
    inner, rng = sequence(seed), np.random.default_rng(seed)
    text_map = TextMap(rng.normal(size=(24, 16)).astype(np.float32), np.zeros(16, np.float32), 0.1, 0.5)
    table = rng.normal(size=(60, 16)).astype(np.float32)
    return TextEncoder(inner, text_map, INTEGERS, table, "nowhere", "0" * 16).eval()


def fusion(seed: int = 0) -> FusionEncoder:
    """Items 50 … 59 were never bought; of each modality some rows are missing."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(60, 24)).astype(np.float32)
    vectors[::3] = np.nan
    features = ItemFeatures(
        INTEGERS,
        vectors={"text": vectors},
        labels={"genre": [None if item % 4 == 0 else ["a", "bcd"[item % 3]] for item in range(60)]},
        numbers={"price": np.where(INTEGERS % 5, rng.lognormal(size=60), np.nan).astype(np.float32)},
    )
    torch.manual_seed(seed)
    config = SequenceConfig(dim=16, context=20, blocks=1, heads=2, hidden=32)
    return fusing(features)(config, TYPES, ItemIndex(INTEGERS[:50]), None).to(choose_device()).eval()


def adversarial_autoencoder(seed: int = 0) -> AdversarialAutoEncoder:
    torch.manual_seed(seed)
    config = AutoEncoderConfig(dim=16, context=30, hidden=(24,), activation="relu")
    return AdversarialAutoEncoder(config, TYPES, ItemIndex(INTEGERS)).to(choose_device()).eval()


def prefix(seed: int = 0) -> PrefixEncoder:
    return PrefixEncoder(sequence_in_bf16(seed), 16).eval()


def in_eight_bits(seed: int = 0) -> CompressedEncoder:
    return compressed(sequence_of_strings_and_values(seed), "int8")


def in_bf16_weights(seed: int = 0) -> CompressedEncoder:
    return compressed(fusion(seed), "bf16")


def documented(block: int) -> str:
    """A Python block of docs/own_encoder.md."""
    text = (Path(__file__).parents[2] / "docs" / "own_encoder.md").read_text()
    return text.split("```python\n")[block + 1].partition("```")[0]


def of_ones_own(seed: int = 0) -> TableEncoder:
    torch.manual_seed(seed)
    return _recent_mean()(TYPES, ItemIndex(INTEGERS), dim=16, context=30).to(choose_device()).eval()


@cache
def _recent_mean() -> type[TableEncoder]:
    names: dict[str, Any] = {"__name__": "recent_mean"}
    exec(documented(0), names)  # noqa: S102
    return names["RecentMean"]


ENCODERS: dict[str, Case] = {
    "sequence": Case(sequence),
    "sequence of strings and values": Case(sequence_of_strings_and_values, strings=True),
    "sequence in bf16": Case(sequence_in_bf16),
    "aligned": Case(aligned),
    "aligned in bf16": Case(aligned_in_bf16),
    "with text": Case(with_text),
    "fusion": Case(fusion),
    "prefix": Case(prefix),
    "in eight bits": Case(in_eight_bits, strings=True),
    "in bf16 weights": Case(in_bf16_weights),
    "of one's own": Case(of_ones_own),
    "autoencoder": Case(autoencoder),
    "adversarial autoencoder": Case(adversarial_autoencoder),
    "deep autoencoder of strings": Case(deep_autoencoder_of_strings, strings=True),
}

"""Fewer bits, fewer dimensions: how much smaller, and how near."""

from pathlib import Path

import numpy as np
import pytest
import torch

from feast_embeddings.models import (
    ItemIndex,
    PrefixEncoder,
    SequenceConfig,
    SequenceEncoder,
    compressed,
    load_encoder,
    save_encoder,
)
from feast_embeddings.models.errors import DeclarationError

ITEMS = np.arange(2000)


@pytest.fixture(scope="module")
def encoder() -> SequenceEncoder:
    torch.manual_seed(0)
    return SequenceEncoder(SequenceConfig(dim=64, context=20), ("view", "cart", "buy"), ItemIndex(ITEMS)).eval()


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.weights.safetensors"))


@pytest.mark.parametrize(("weights", "share", "cosine"), [("bf16", 0.6, 0.9999), ("int8", 0.4, 0.999)])
def test_an_artifact_shrinks_and_its_vectors_stay_near(encoder, make_histories, tmp_path, weights, share, cosine):
    """Given weights of fewer bits, then the file is smaller, and vectors are almost the same."""
    small = compressed(encoder, weights)
    save_encoder(encoder, tmp_path / "whole")
    save_encoder(small, tmp_path / weights)
    assert size(tmp_path / weights) < share * size(tmp_path / "whole")
    histories = make_histories([1, 5, 20, 30])
    for one, other in ((encoder.encode(histories), small.encode(histories)), _items(encoder, small)):
        alike = (one * other).sum(axis=1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
        assert alike.min() > cosine
    assert small.space != encoder.space
    assert np.array_equal(load_encoder(tmp_path / weights).encode(histories), small.encode(histories))


def _items(one, other):
    return one.encode_items(ITEMS)[0], other.encode_items(ITEMS)[0]


def test_unknown_weights_are_refused(encoder):
    with pytest.raises(DeclarationError, match="choose one of bf16, int8"):
        compressed(encoder, "int4")


def test_a_prefix_is_the_first_dimensions(encoder, make_histories):
    histories, prefix = make_histories([3, 0, 20]), PrefixEncoder(encoder, 16)
    assert np.array_equal(prefix.encode(histories), encoder.encode(histories)[:, :16])
    assert np.array_equal(prefix.encode_items(ITEMS)[0], encoder.encode_items(ITEMS)[0][:, :16])
    assert prefix.space != PrefixEncoder(encoder, 32).space != encoder.space


@pytest.mark.parametrize("dimensions", [0, 64, -1])
def test_a_prefix_is_shorter_than_the_whole(encoder, dimensions):
    with pytest.raises(DeclarationError, match="choose a size from 1 up"):
        PrefixEncoder(encoder, dimensions)

"""The same vectors by ONNX Runtime."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from feast_embeddings.models import Encoder, ItemIndex, OnnxEncoder, SequenceConfig, SequenceEncoder, ValueNormalizer
from feast_embeddings.models.derived.onnx import quantized

TYPES = ("view", "cart", "buy")


@pytest.fixture(scope="module")
def encoder() -> SequenceEncoder:
    torch.manual_seed(0)
    config = SequenceConfig(dim=16, context=30, blocks=2, heads=2, hidden=16, value_normalizer="zscore")
    return SequenceEncoder(config, TYPES, ItemIndex(np.arange(60)), ValueNormalizer("zscore", 1.0, 2.0)).eval()


@pytest.fixture(scope="module")
def folder(encoder, tmp_path_factory) -> Path:
    """Where the exported model is kept."""
    path = tmp_path_factory.mktemp("onnx")
    OnnxEncoder.of(encoder, path)
    return path


@pytest.fixture(scope="module")
def histories(make_histories):
    return make_histories([1, 2, 0, 3, 8, 29, 30, 31, 90])


def test_histories_of_any_length_have_the_same_vectors(encoder, folder, histories):
    """Given one exported model, when histories of 0 … 90 behaviors are encoded, then they agree with the encoder's."""
    runtime = OnnxEncoder.of(encoder, folder)
    expected = encoder.encode(histories)
    assert isinstance(runtime, Encoder)
    assert np.abs(runtime.encode(histories) - expected).max() < 1e-4 * np.linalg.norm(expected, axis=1).max()
    assert not runtime.encode(histories)[2].any()
    assert runtime.space == encoder.space
    assert runtime.numeric_path == "cpu/onnxruntime"


def test_eight_bits_agree_to_two_digits(encoder, folder, histories):
    runtime = OnnxEncoder.of(encoder, folder, weights="int8")
    expected = encoder.encode(histories)
    assert np.abs(runtime.encode(histories) - expected).max() < 0.03 * np.linalg.norm(expected, axis=1).max()
    assert runtime.numeric_path == "cpu/onnxruntime-int8"


def test_two_neighboring_products_of_eight_bits_fit_into_sixteen(encoder, folder):
    """Where there is no VNNI, two of them are added in 16 bits, and cut: with the largest activations none may be."""
    graph = onnx.load_from_string(quantized((folder / f"{encoder.space}.onnx").read_bytes())).graph
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    matrices = [tensors[node.input[1]] for node in graph.node if node.op_type == "MatMulInteger"]
    assert len(matrices) == 1 + 4 * len(encoder.blocks)
    for matrix in matrices:
        assert matrix.dtype == np.int8
        assert 2 * 255 * np.abs(matrix.astype(np.int64)).max() <= np.iinfo(np.int16).max


def test_a_model_is_exported_once_per_space(encoder, folder):
    (kept,) = folder.iterdir()
    before = kept.stat().st_mtime_ns
    OnnxEncoder.of(encoder, folder)
    assert kept.stem == encoder.space
    assert kept.stat().st_mtime_ns == before

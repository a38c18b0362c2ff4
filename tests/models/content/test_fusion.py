"""Items mixed from what is known of them; any of it may be missing."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from feast_embeddings.models import FusionEncoder, ItemFeatures, ItemIndex, fusing, train
from feast_embeddings.models.content.fusion import FusedItems, Fusion
from feast_embeddings.models.content.item_features import fit_modalities
from feast_embeddings.models.errors import DeclarationError

IDS = np.arange(1000, 1044)  # the Markov world has 1000 … 1039, the last four were never seen


def features() -> ItemFeatures:
    """A vector that tells an item's neighbors, a label of its quarter, a price; of each something is missing."""
    angle = 2 * np.pi * np.arange(44) / 40
    vectors = np.stack([np.cos(angle), np.sin(angle), np.cos(2 * angle), np.sin(2 * angle)], axis=1).astype(np.float32)
    vectors[3] = np.nan
    labels = [None if item % 7 == 0 else f"quarter {item // 10}" for item in range(44)]
    numbers = np.where(np.arange(44) % 5, np.arange(44) + 1.0, np.nan).astype(np.float32)
    return ItemFeatures(IDS, {"text": vectors}, {"genre": labels}, {"price": numbers})


@pytest.fixture(scope="module")
def fused(small_config, make_markov) -> FusionEncoder:
    config = replace(small_config, max_epochs=8)
    result = train(config, make_markov(), behavior_types=["view"], device="cpu", build=fusing(features()))
    assert result.epochs[-1].ndcg10 > 0.5, "it learned the world"
    assert isinstance(result.encoder, FusionEncoder)
    return result.encoder


def test_items_nobody_bought_are_known_by_their_modalities(fused):
    vectors, known = fused.encode_items(IDS)
    assert known.all()
    assert vectors[40:].any(axis=1).all()
    assert fused.item_ids().tolist() == IDS.tolist()


def test_an_item_that_came_later_has_the_vector_of_one_known_by_the_same_modalities(fused):
    later, has_any = fused.encode_features(features().take(np.arange(40, 44)))
    assert has_any.all()
    assert np.allclose(later, fused.encode_items(IDS[40:])[0], atol=1e-6)


def test_an_item_without_anything_is_zero_and_said_so(fused):
    nothing = ItemFeatures(np.array([1, 2]), {"text": np.full((2, 4), np.nan, np.float32)}, {"genre": [None, "new"]})
    vectors, has_any = fused.encode_features(nothing)
    assert has_any.tolist() == [False, False]
    assert not vectors.any()


@pytest.mark.parametrize("missing", [("text",), ("genre",), ("price",), ("text", "genre"), ("genre", "price")])
def test_missing_modalities_leave_finite_vectors(fused, missing):
    vectors, has_any = fused.encode_features(features().without(*missing))
    assert np.isfinite(vectors).all()
    assert (vectors.any(axis=1) == has_any).all()


def test_gates_weigh_only_what_is_there():
    """Given one modality of two, when a row is mixed, then it is that modality, whatever the gates say."""
    table = FusedItems(4, Fusion(1, fit_modalities(features()), {}, 0.0)).eval()
    parts = torch.randn(2, 4, 4)
    only = torch.tensor([[False, True, False, False], [False] * 4])
    mixed = table.mix(parts, only)
    assert torch.allclose(mixed[0], parts[0, 1])
    assert not mixed[1].any()


def test_gradients_are_finite_where_modalities_are_missing(small_config, make_markov):
    encoder = fusing(features(), 0.5)(small_config.encoder, ("view",), ItemIndex(IDS[:40]), None).train()
    encoder.item_table.weight.square().sum().backward()
    gradients = [weight.grad for weight in encoder.item_table.parameters()]
    assert all(grad is not None and torch.isfinite(grad).all() for grad in gradients)


def test_without_behaviors_items_are_their_modalities(small_config):
    encoder = fusing(features(), behaviors=False)(small_config.encoder, ("view",), ItemIndex(IDS[:40]), None).eval()
    assert np.allclose(encoder.encode_items(IDS)[0], encoder.encode_features(features())[0], atol=1e-6)


def test_the_same_seed_gives_the_same_encoder(small_config, make_markov):
    config = replace(small_config, max_epochs=1)
    spaces = {
        train(config, make_markov(), behavior_types=["view"], device="cpu", build=fusing(features())).encoder.space
        for _ in range(2)
    }
    assert len(spaces) == 1


def test_another_length_of_vectors_is_refused(fused):
    with pytest.raises(DeclarationError, match="fitted were 4 dimensions"):
        fused.encode_features(ItemFeatures(np.array([1]), {"text": np.zeros((1, 5), np.float32)}))


def test_columns_of_another_length_are_refused():
    with pytest.raises(DeclarationError, match="has 1 rows for 2 items"):
        ItemFeatures(np.array([1, 2]), labels={"genre": ["a"]})


def test_names_are_distinct():
    with pytest.raises(DeclarationError, match="share a name"):
        ItemFeatures(np.array([1]), labels={"genre": ["a"]}, numbers={"genre": np.ones(1, np.float32)})

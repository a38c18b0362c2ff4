"""Alignment: a rotation found where there is one, refused where there is none, and stored with its parents' names."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from feast_embeddings.models import (
    AlignedEncoder,
    Alignment,
    ItemIndex,
    SequenceConfig,
    SequenceEncoder,
    TrainingConfig,
    align,
    load_encoder,
    read_manifest,
    save_encoder,
    train,
)
from feast_embeddings.models.derived.alignment import procrustes, rotated
from feast_embeddings.models.errors import SpaceError

DIM = 16
UNKNOWN = Alignment("?", "?", 0, 0.0, 0.0, 0.0, 0.0)


def encoder(seed: int = 0, items: np.ndarray | None = None, dim: int = DIM) -> SequenceEncoder:
    torch.manual_seed(seed)
    config = SequenceConfig(dim=dim, context=10, heads=1, hidden=8)
    return SequenceEncoder(config, ("view",), ItemIndex(np.arange(200) if items is None else items)).eval()


def rotation(seed: int = 0, dim: int = DIM) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(dim, dim)))[0].astype(np.float32)


def twin(of: SequenceEncoder, seed: int = 0) -> AlignedEncoder:
    """The same encoder in other coordinates."""
    return AlignedEncoder(of, torch.from_numpy(rotation(seed)), UNKNOWN)


def test_the_rotation_between_twins_is_recovered(make_histories):
    # given an encoder, and the same one in other coordinates
    new, old = encoder(), twin(encoder())

    # when aligned, then the rotation is found and nothing is left over
    aligned = align(new, old)
    np.testing.assert_allclose(aligned.rotation.numpy(), rotation(), atol=1e-5)
    assert aligned.alignment.items == 200
    assert aligned.alignment.residual < 1e-5
    assert aligned.alignment.held_out_residual < 1e-5
    assert aligned.alignment.overlap_before < 0.3
    assert aligned.alignment.overlap_after == 1.0

    # and users and items stand where the old encoder puts them
    histories = make_histories([5, 1, 10, 0, 3])
    np.testing.assert_allclose(aligned.encode(histories), old.encode(histories), atol=1e-5)
    np.testing.assert_allclose(aligned.encode_items(np.arange(9))[0], old.encode_items(np.arange(9))[0], atol=1e-6)


def test_only_shared_items_count():
    """Given towers that share items 60 … 199, when aligned, then those decide, in whatever order they stand."""
    rng = np.random.default_rng(0)
    whole = encoder()
    old = encoder(items=rng.permutation(np.arange(60, 300)))
    rows = torch.from_numpy(whole.items.rows(old.item_ids()))
    with torch.no_grad():
        old.item_table.weight[1:] = whole.item_table.weight[rows]
    aligned = align(whole, twin(old))
    assert aligned.alignment.items == 140
    np.testing.assert_allclose(aligned.rotation.numpy(), rotation(), atol=1e-5)


@pytest.mark.parametrize("items", [2 * DIM, 2000])
def test_independent_spaces_are_refused_with_the_figures(items):
    ids = np.arange(items)
    with pytest.raises(SpaceError, match=rf"{items:,} shared items, relative residual .* \(1\.\d+ on items left out\)"):
        align(encoder(1, ids), encoder(2, ids))


def test_the_bound_is_the_callers():
    aligned = align(encoder(1), encoder(2), max_residual=2.0)
    assert 1.2 < aligned.alignment.held_out_residual < 2.0
    with pytest.raises(SpaceError, match="cannot be aligned"):
        align(encoder(1), encoder(2), max_residual=aligned.alignment.held_out_residual - 0.01)


def test_two_trainings_on_the_same_world_are_aligned(make_markov, small_config: TrainingConfig, trained):
    """Given encoders of other seeds and other users of one world, when aligned, then neighbors are found again."""
    other = train(replace(small_config, seed=5), make_markov(seed=9), behavior_types=["view"], device="cpu")
    aligned = align(other.encoder, trained.encoder, max_residual=1.0)  # few items: near the usual bound
    assert aligned.alignment.overlap_after > aligned.alignment.overlap_before + 0.2


def test_too_few_shared_items_are_refused():
    with pytest.raises(SpaceError, match=r"share 31 items, and their alignment needs 32"):
        align(encoder(1, np.arange(31)), encoder(2))
    with pytest.raises(SpaceError, match="share 0 items"):
        align(encoder(1, np.array([f"item {n}" for n in range(99)], dtype=object)), encoder(2))


def test_other_dimensions_are_refused():
    with pytest.raises(SpaceError, match=r"has 8 dimensions and space .* has 16"):
        align(encoder(dim=8), encoder())


def test_an_artifact_names_both_parents_and_has_a_space_of_its_own(tmp_path: Path):
    new, old = encoder(), twin(encoder())
    aligned = align(new, old)
    space = save_encoder(aligned, tmp_path / "aligned")
    manifest = read_manifest(tmp_path / "aligned")
    assert manifest.kind == "aligned"
    assert manifest.space == space
    assert len({space, new.space, old.space}) == 3
    named = manifest.config["alignment"]
    assert (named["source_space"], named["target_space"]) == (new.space, old.space)
    loaded = load_encoder(tmp_path / "aligned", device="cpu")
    assert isinstance(loaded, AlignedEncoder)
    assert loaded.alignment == aligned.alignment
    assert loaded.inner.space == new.space


def test_an_aligned_encoder_may_be_aligned_again(tmp_path: Path, make_histories):
    first = align(encoder(), twin(encoder()))
    second = align(first, twin(encoder(), seed=8))
    save_encoder(second, tmp_path / "second")
    histories = make_histories([4, 9])
    loaded = load_encoder(tmp_path / "second", device="cpu")
    assert np.array_equal(loaded.encode(histories), second.encode(histories))
    np.testing.assert_allclose(second.encode(histories), twin(encoder(), 8).encode(histories), atol=1e-5)


finite = st.floats(-4, 4, width=32, allow_subnormal=False)


@given(vectors=arrays.arrays(np.float32, st.tuples(st.integers(0, 600), st.just(8)), elements=finite), data=st.data())
def test_a_rotated_row_does_not_depend_on_the_others(vectors, data):
    turned = rotated(vectors, rotation(1, 8))
    np.testing.assert_allclose(turned, vectors.astype(np.float64) @ rotation(1, 8), atol=1e-5)
    rows = data.draw(st.lists(st.integers(0, max(0, len(vectors) - 1)), max_size=20)) if len(vectors) else []
    assert np.array_equal(rotated(vectors[rows], rotation(1, 8)), turned[rows])


@given(seed=st.integers(0, 1000))
def test_no_other_rotation_is_nearer(seed):
    rng = np.random.default_rng(seed)
    source, target = rng.normal(size=(2, 20, 5))
    best = procrustes(source, target)
    np.testing.assert_allclose(best @ best.T, np.eye(5), atol=1e-12)
    for _ in range(5):
        other = np.linalg.qr(best + 0.1 * rng.normal(size=(5, 5)))[0]
        other *= np.sign(np.diag(other.T @ best))
        assert np.linalg.norm(source @ best - target) <= np.linalg.norm(source @ other - target) + 1e-12

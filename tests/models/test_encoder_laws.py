"""Laws that every encoder obeys; which encoders, says ``encoder_laws``."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from encoder_laws import ENCODERS, TYPES, Case, sequence
from hypothesis import given, settings
from hypothesis import strategies as st

from feast_embeddings.models import Encoder, HistoryBatch, StorableEncoder, load_encoder, save_encoder
from feast_embeddings.models.encoder import Tokens


@pytest.fixture(scope="module", params=ENCODERS.values(), ids=list(ENCODERS))
def case(request) -> Case:
    return request.param


@pytest.fixture(scope="module")
def encoder(case) -> StorableEncoder:
    return case.make(0)


@pytest.fixture(scope="module")
def histories(case, encoder, make_histories) -> HistoryBatch:
    lengths = np.random.default_rng(1).integers(0, encoder.context + 20, 150)
    return make_histories(lengths, strings=case.strings)


@pytest.fixture(scope="module")
def expected(encoder, histories) -> np.ndarray:
    return encoder.encode(histories)


def joined(first: HistoryBatch, second: HistoryBatch) -> HistoryBatch:
    return HistoryBatch(
        offsets=np.concatenate([first.offsets, second.offsets[1:] + first.offsets[-1]]),
        items=np.concatenate([first.items, second.items]),
        behavior_types=np.concatenate([first.behavior_types, second.behavior_types]),
        times=np.concatenate([first.times, second.times]),
        values=np.concatenate([first.values, second.values]),
        as_of=np.concatenate([first.as_of, second.as_of]),
    )


def test_it_is_an_encoder(encoder):
    assert isinstance(encoder, Encoder)
    assert encoder.behavior_types == TYPES


def test_vectors_have_the_promised_shape_and_are_finite(case, encoder, histories):
    vectors = encoder.encode(histories)
    assert vectors.shape == (len(histories), encoder.dim)
    assert vectors.dtype == np.float32
    assert np.isfinite(vectors).all()
    known = np.isin(histories.items, case.items)
    knows = np.bincount(np.repeat(np.arange(len(histories)), histories.lengths), known, len(histories)) > 0
    assert (np.abs(vectors[knows]).sum(axis=1) > 0).all()


def test_the_seed_decides_the_encoder(case, histories):
    assert case.make(3).space == case.make(3).space
    assert case.make(3).space != case.make(4).space
    assert np.array_equal(case.make(3).encode(histories), case.make(3).encode(histories))


@given(seed=st.integers(0, 10_000), size=st.integers(1, 150))
@settings(max_examples=15)
def test_a_vector_does_not_depend_on_its_batch(encoder, histories, expected, seed, size):
    """Given some of the histories in any order, when they are encoded, then each vector is the same, bit for bit."""
    rows = np.random.default_rng(seed).permutation(len(histories))[:size]
    assert np.array_equal(encoder.encode(histories.take(rows)), expected[rows])


def test_a_vector_is_the_same_alone(encoder, histories, expected):
    alone = [encoder.encode(histories.take(np.array([row])))[0] for row in range(40)]
    assert np.array_equal(np.stack(alone), expected[:40])


def test_a_vector_does_not_depend_on_its_neighbors(case, encoder, histories, make_histories):
    others = make_histories(np.random.default_rng(5).integers(1, 60, 37), seed=9, strings=case.strings)
    assert np.array_equal(encoder.encode(joined(others, histories))[len(others) :], encoder.encode(histories))


def test_threads_do_not_change_a_vector(encoder, histories):
    """Given a dimension in whole vector registers, when torch has other threads, then the bits are the same."""
    if encoder.dim % 16:
        return
    expected, before = encoder.encode(histories), torch.get_num_threads()
    try:
        torch.set_num_threads(before + 1)
        assert np.array_equal(encoder.encode(histories), expected)
    finally:
        torch.set_num_threads(before)


def test_only_the_last_behaviors_count(case, encoder, make_histories):
    long = make_histories([encoder.context + 30], strings=case.strings)
    keep = slice(len(long.items) - encoder.context, None)
    short = HistoryBatch(
        offsets=np.array([0, encoder.context]),
        items=long.items[keep],
        behavior_types=long.behavior_types[keep],
        times=long.times[keep],
        values=long.values[keep],
        as_of=long.as_of,
    )
    assert np.array_equal(encoder.encode(long), encoder.encode(short))


def test_an_empty_history_gives_zeros(case, encoder, make_histories):
    vectors = encoder.encode(make_histories([0, 5, 0], strings=case.strings))
    assert (np.abs(vectors).sum(axis=1) > 0).tolist() == [False, True, False]
    assert encoder.encode(make_histories([0, 0], strings=case.strings)).tolist() == [[0.0] * encoder.dim] * 2


def test_an_empty_batch_gives_no_rows(case, encoder, make_histories):
    assert encoder.encode(make_histories([], strings=case.strings)).shape == (0, encoder.dim)


def test_unknown_items_and_types_are_tolerated(case, encoder, make_histories):
    histories = make_histories([6, 6], strings=case.strings)
    unknown = np.array(["new"] * 12, dtype=object) if case.strings else np.full(12, -7)
    strange = replace(histories, items=unknown, behavior_types=np.full(12, len(TYPES) + 4, np.int32))
    assert np.isfinite(encoder.encode(strange)).all()


def test_items_are_vectors_and_known_or_zeros_and_unknown(case, encoder):
    ids = case.items
    mixed = np.concatenate([ids[[4, 2]], np.array(["new"] if ids.dtype == object else [-7], dtype=ids.dtype), ids[4:5]])
    vectors, known = encoder.encode_items(mixed)
    assert vectors.dtype == np.float32
    assert known.tolist() == [True, True, False, True]
    assert np.array_equal(vectors[0], vectors[3])
    assert not np.array_equal(vectors[0], vectors[1])
    assert not vectors[2].any()


def test_saving_and_loading_changes_no_bit(encoder, histories, tmp_path: Path):
    precision = "bf16" if encoder.numeric_path.endswith("bfloat16") else None
    space = save_encoder(encoder, tmp_path / "encoder")
    loaded = load_encoder(tmp_path / "encoder", precision=precision)
    assert space == encoder.space == loaded.space
    assert np.array_equal(loaded.encode(histories), encoder.encode(histories))
    assert loaded.item_ids().tolist() == encoder.item_ids().tolist()
    assert (loaded.dim, loaded.context, loaded.behavior_types) == (encoder.dim, encoder.context, encoder.behavior_types)


def test_encoding_leaves_training_mode_and_generator_as_they_were(case, histories):
    encoder = case.make(0).train()
    before = torch.get_rng_state()
    encoder.encode(histories)
    assert encoder.training
    assert torch.equal(torch.get_rng_state(), before)


def test_an_empty_history_leaves_no_trace(case, make_histories):
    """Given an encoder being trained, when it encodes empty histories among others, then no gradient hangs on it."""
    encoder = case.make(0).train()
    vectors = encoder.encode(make_histories([0, 3, 0, 12], strings=case.strings))
    assert np.isfinite(vectors).all()
    assert all(weight.grad is None and weight.isfinite().all() for weight in encoder.parameters())


def test_numeric_paths_agree(case, encoder, histories):
    """Given one state, when float32 and bf16 are asked for, then vectors agree, and bits where the path is the same."""
    exact, fast = (type(encoder).from_state(encoder.state(), precision=name) for name in ("float32", "bf16"))
    assert exact.space == fast.space == encoder.space
    difference = np.abs(exact.encode(histories) - fast.encode(histories)).max()
    assert difference <= (0 if exact.numeric_path == fast.numeric_path else case.bf16_tolerance)
    asked = fast if encoder.numeric_path == fast.numeric_path else exact
    assert np.array_equal(asked.encode(histories), encoder.encode(histories))


def test_an_answer_at_once_agrees_with_what_is_stored(case, encoder, histories):
    """Given an encoder with a path for requests, when it answers, then the vector is the stored one, rounding aside."""
    if not hasattr(encoder, "encode_now"):
        return
    fast = encoder.numeric_path.endswith("bfloat16")
    tolerance = case.bf16_tolerance if fast else case.cached_tolerance
    for row in range(12):
        alone = histories.take(np.array([row]))
        assert np.abs(encoder.encode_now(alone) - encoder.encode(alone)).max() <= tolerance
    assert np.abs(encoder.encode_now(histories) - encoder.encode(histories)).max() <= tolerance


def test_padding_has_no_gradient(make_histories):
    """Given a history beside an empty and a longer one, when its state is asked for, then it learns as if alone."""
    encoder, histories = sequence(), make_histories([0, 5, 20])
    tokens = Tokens.of(histories, encoder.items, None, len(TYPES))
    gradients = []
    for rows, width in (([0, 1, 2], 20), ([1], 5)):
        padded = tokens.padded(
            torch.from_numpy(histories.offsets[rows]), torch.from_numpy(histories.lengths[rows]), width
        )
        state = encoder(padded.to(encoder.device))[rows.index(1), 4]
        gradients.append(torch.autograd.grad(state.sum(), list(encoder.parameters()), allow_unused=True))
    for beside, alone in zip(*gradients, strict=True):
        assert (beside is None) == (alone is None)
        assert beside is None or (beside.isfinite().all() and torch.allclose(beside, alone, atol=1e-4))

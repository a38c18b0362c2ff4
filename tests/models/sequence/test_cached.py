"""A cached state goes on where it was left, and ends where a full encode does."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from encoder_laws import ENCODERS, Case
from hypothesis import given, settings
from hypothesis import strategies as st

from feast_embeddings.models import HistoryBatch
from feast_embeddings.models.errors import BehaviorSourceError, SpaceError

CACHING = {name: case for name, case in ENCODERS.items() if hasattr(case.make(0), "extend_state")}


@pytest.fixture(scope="module", params=CACHING.values(), ids=list(CACHING))
def case(request) -> Case:
    return request.param


@pytest.fixture(scope="module")
def encoder(case):
    return case.make(0)


def tolerance(case: Case, encoder) -> float:
    return case.bf16_tolerance if encoder.numeric_path.endswith("bfloat16") else case.cached_tolerance


def part(batch: HistoryBatch, start: np.ndarray, stop: np.ndarray) -> HistoryBatch:
    """Behaviors ``start[b] … stop[b] - 1`` of each history, as of the next one or the batch's end."""
    start, stop = np.minimum(start, batch.lengths), np.minimum(stop, batch.lengths)
    kept = np.concatenate(
        [np.arange(batch.offsets[row] + start[row], batch.offsets[row] + stop[row]) for row in range(len(batch))]
    ).astype(np.int64)
    later = np.minimum(batch.offsets[:-1] + stop, len(batch.items) - 1)
    return HistoryBatch(
        offsets=np.concatenate([[0], np.cumsum(stop - start)]).astype(np.int64),
        items=batch.items[kept],
        behavior_types=batch.behavior_types[kept],
        times=batch.times[kept],
        values=batch.values[kept],
        as_of=np.where(stop < batch.lengths, batch.times[later], batch.as_of),
    )


@given(seed=st.integers(0, 10_000), steps=st.lists(st.integers(0, 30), min_size=1, max_size=6))
@settings(max_examples=12)
def test_any_steps_end_where_a_full_encode_does(case, encoder, make_histories, seed, steps):
    """Given histories that arrive in pieces, when the state is extended by each, then it encodes as a whole does."""
    rng = np.random.default_rng(seed)
    histories = make_histories(rng.integers(0, 2 * encoder.context, 9), seed=seed, strings=case.strings)
    done = np.zeros(len(histories), np.int64)
    vectors, state = encoder.encode_with_state(part(histories, done, done))
    assert not vectors.any()
    for step in steps:
        now = done + rng.integers(0, step + 1, len(histories))
        vectors, state = encoder.extend_state(state, part(histories, done, now))
        whole = encoder.encode(part(histories, np.zeros_like(now), now))
        assert np.abs(vectors - whole).max() <= tolerance(case, encoder)
        done = np.minimum(now, histories.lengths)


def test_one_behavior_at_a_time_slides_the_window_without_drift(case, encoder, make_histories):
    """Given a state, when three windows of behaviors pass through it one by one, then the last is near."""
    histories = make_histories([3 * encoder.context + 5] * 2, strings=case.strings)
    at = np.full(2, encoder.context)
    _, state = encoder.encode_with_state(part(histories, np.zeros(2, int), at))
    for _ in range(2 * encoder.context + 5):
        vectors, state = encoder.extend_state(state, part(histories, at, at + 1))
        at = at + 1
    assert np.abs(vectors - encoder.encode(histories)).max() <= tolerance(case, encoder)


def test_time_passes_without_behaviors(case, encoder, make_histories):
    """Given a state, when only time went by, then the vector is that of the later time, and the state can go on."""
    histories = make_histories([5, 0, 12, 1], strings=case.strings)
    _, state = encoder.encode_with_state(histories)
    later = replace(histories, as_of=histories.as_of + 10**12)
    nothing = part(later, later.lengths, later.lengths)
    vectors, waited = encoder.extend_state(state, nothing)
    assert np.abs(vectors - encoder.encode(later)).max() <= tolerance(case, encoder)
    assert not np.array_equal(vectors, encoder.encode(histories))
    again, _ = encoder.extend_state(waited, part(histories, histories.lengths, histories.lengths))
    assert np.abs(again - encoder.encode(histories)).max() <= tolerance(case, encoder)


def test_a_row_does_not_depend_on_its_neighbors(case, encoder, make_histories):
    histories = make_histories(np.random.default_rng(3).integers(0, 2 * encoder.context, 120), strings=case.strings)
    half = histories.lengths // 2
    _, state = encoder.encode_with_state(part(histories, np.zeros_like(half), half))
    rest = part(histories, half, histories.lengths)
    together, after = encoder.extend_state(state, rest)
    rows = np.array([7, 3, 110])
    alone, alone_after = encoder.extend_state(state.take(rows), rest.take(rows))
    assert np.array_equal(alone, together[rows])
    assert torch.equal(alone_after.keys, after.keys[rows])
    assert torch.equal(alone_after.values, after.values[rows])


def test_a_state_says_what_it_weighs_and_stays_as_it_was(encoder, case, make_histories):
    histories = make_histories([9, 30], strings=case.strings)
    vectors, state = encoder.encode_with_state(histories)
    before = state.keys.clone()
    encoder.extend_state(state, part(histories, np.zeros(2, int), np.zeros(2, int)))
    assert torch.equal(state.keys, before)
    config, width = encoder.config, 2 if encoder.precision == "bf16" else 4
    assert state.bytes_per_user == 2 * width * config.blocks * config.dim * (config.span - 1)
    assert len(state) == len(vectors) == 2


def test_what_does_not_belong_to_the_state_is_refused(case, encoder, make_histories):
    histories = make_histories([4, 4], strings=case.strings)
    _, state = encoder.encode_with_state(histories)
    with pytest.raises(SpaceError, match=r"is of space .* encode the whole histories again"):
        case.make(1).extend_state(state, histories)
    with pytest.raises(BehaviorSourceError, match="holds 2 users, the new behaviors are of 1"):
        encoder.extend_state(state, histories.take(np.array([0])))
    with pytest.raises(BehaviorSourceError, match="older than the last one"):
        encoder.extend_state(state, histories)

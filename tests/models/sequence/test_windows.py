"""Windows lose no behavior and count none twice."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feast_embeddings.models.sequence.windows import batched, cut_windows

LENGTHS = st.lists(st.integers(0, 60), min_size=1, max_size=12)


@given(lengths=LENGTHS, context=st.integers(1, 16), share=st.floats(0, 0.99), seed=st.integers(0, 1000))
def test_every_behavior_but_the_first_is_a_target_once(lengths, context, share, seed):
    overlap = int(share * context)
    offsets = np.cumsum([0, *lengths])
    windows = cut_windows(offsets, context, overlap, np.random.default_rng(seed))
    targets = [
        t for first, stop in zip(windows.first_target, windows.stop, strict=True) for t in range(first, stop + 1)
    ]
    firsts = {int(offset) for offset, length in zip(offsets, lengths, strict=False) if length}
    assert sorted(targets) == [row for row in range(offsets[-1]) if row not in firsts]


@given(lengths=LENGTHS, context=st.integers(1, 16), share=st.floats(0, 0.99), seed=st.integers(0, 1000))
def test_windows_fit_the_context_and_stay_in_their_history(lengths, context, share, seed):
    overlap = int(share * context)
    offsets = np.cumsum([0, *lengths])
    windows = cut_windows(offsets, context, overlap, np.random.default_rng(seed))
    owner = np.searchsorted(offsets, windows.start, side="right")
    assert (windows.stop - windows.start <= context).all()
    assert (windows.stop - windows.start > 0).all()
    assert (np.searchsorted(offsets, windows.stop, side="right") == owner).all()
    assert (windows.first_target > windows.start).all()


def test_overlap_is_context_for_the_first_targets():
    windows = cut_windows(np.array([0, 41]), context=10, overlap=4, generator=np.random.default_rng(0))
    repeated = windows.first_target - windows.start - 1
    assert (repeated[windows.start > 0] == 4).all()
    assert len(windows) > 4


def test_epochs_cut_long_histories_elsewhere():
    generator = np.random.default_rng(0)
    starts = {tuple(cut_windows(np.array([0, 500]), 50, 0, generator).start.tolist()) for _ in range(5)}
    assert len(starts) > 1


@pytest.mark.parametrize("tokens", [1, 64, 500, 10_000])
def test_batches_hold_every_window_once_within_their_size(tokens):
    offsets = np.cumsum([0, *np.random.default_rng(1).integers(2, 70, 200)])
    windows = cut_windows(offsets, 50, 10, np.random.default_rng(0))
    batches = batched(windows, tokens, np.random.default_rng(0))
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(windows)))
    lengths = windows.stop - windows.start
    assert all(len(rows) == 1 or len(rows) * lengths[rows].max() <= tokens for rows in batches)

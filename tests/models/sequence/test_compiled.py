"""A compiled encoder is a numeric path of its own, and agrees with the eager one."""

import numpy as np
from encoder_laws import INTEGERS, TYPES, sequence

from feast_embeddings.models import ItemIndex, SequenceConfig, SequenceEncoder


def test_a_compiled_encoder_agrees_and_says_so(make_histories):
    """Given an encoder, when it is compiled, then its vectors agree, rows stand alone, and requests stay eager."""
    encoder, histories = sequence(), make_histories([3, 8, 0, 5, 7])
    space, path, expected = encoder.space, encoder.numeric_path, encoder.encode(histories)
    encoder.compile(backend="eager")  # traces as any backend does; the others are measured by benchmarks/encode.py
    assert (encoder.space, encoder.numeric_path) == (space, f"{path}/compiled")
    compiled = encoder.encode(histories)
    assert np.abs(compiled - expected).max() <= 1e-5
    assert np.array_equal(encoder.encode(histories.take(np.array([3]))), compiled[3:4])
    assert np.abs(encoder.encode_now(histories) - expected).max() <= 1e-5


def test_every_width_is_compiled(make_histories):
    """Given histories of more widths than torch compiles by itself, when they are encoded, then none is left eager."""
    encoder = SequenceEncoder(SequenceConfig(dim=8, context=300, hidden=8), TYPES, ItemIndex(INTEGERS)).eval()
    histories = make_histories([5, 10, 20, 40, 60, 90, 120, 180, 240, 290])
    expected = encoder.encode(histories)
    encoder.compile(backend="eager")  # raises where a width goes beyond the limit
    assert np.abs(encoder.encode(histories) - expected).max() <= 1e-5

"""Update policies: the blend by hand, what cannot be declared, and what is due."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feast_embeddings.materialize.declare.policy import (
    Due,
    Full,
    Hybrid,
    Incremental,
    Policy,
    blend,
    describe,
    due,
    policy_from_json,
    policy_to_json,
)
from feast_embeddings.models.errors import DeclarationError

DAY = 86_400_000_000
HOUR = DAY // 24
T0 = 1_709_251_200_000_000


def _f32(*rows: list[float]) -> np.ndarray:
    return np.array(rows, np.float32)


# ── the blend ────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_old_vector_weighs_alpha() -> None:
    old, new = _f32([4.0, -8.0]), _f32([8.0, 8.0])
    alphas = Incremental(alpha=0.25).alphas(np.array([5 * DAY]))
    assert blend(old, new, alphas, np.array([True])).tolist() == [[7.0, 4.0]]  # 1/4 · old + 3/4 · new


def test_after_a_half_life_the_old_vector_weighs_one_half() -> None:
    alphas = Incremental(half_life="2d").alphas(np.array([0, 2 * DAY, 4 * DAY, 6 * DAY]))
    assert alphas.tolist() == [1.0, 0.5, 0.25, 0.125]
    old, new = np.full((4, 1), 16.0, np.float32), np.zeros((4, 1), np.float32)
    assert blend(old, new, alphas, np.ones(4, bool)).tolist() == [[16.0], [8.0], [4.0], [2.0]]


def test_an_old_vector_from_the_future_weighs_no_more_than_one() -> None:
    assert Incremental(half_life="1d").alphas(np.array([-DAY])).tolist() == [1.0]


def test_without_alpha_the_new_vector_replaces_the_old_one() -> None:
    assert Incremental().alphas(np.array([0, DAY])).tolist() == [0.0, 0.0]


def test_the_first_vector_is_the_extracted_one_whatever_alpha() -> None:
    new = _f32([1.5, -0.0])
    unread = np.full((1, 2), np.nan, np.float32)
    result = blend(unread, new, np.array([0.9], np.float32), np.array([False]))
    assert result.tobytes() == new.tobytes()


vectors = st.integers(1, 5).flatmap(
    lambda dim: st.lists(st.lists(st.floats(-1e6, 1e6, width=32), min_size=dim, max_size=dim), min_size=2, max_size=2)
)


@given(vectors)
def test_alpha_0_returns_the_very_bits_of_the_new_vector(pair: list[list[float]]) -> None:
    old, new = _f32(pair[0]), _f32(pair[1])
    assert blend(old, new, np.zeros(1, np.float32), np.array([True])).tobytes() == new.tobytes()


@given(vectors)
def test_alpha_1_returns_the_very_bits_of_the_old_vector(pair: list[list[float]]) -> None:
    old, new = _f32(pair[0]), _f32(pair[1])
    assert blend(old, new, np.ones(1, np.float32), np.array([True])).tobytes() == old.tobytes()


@given(vectors, st.floats(0, 1, width=32))
def test_a_blend_lies_between_the_two_and_is_float32(pair: list[list[float]], alpha: float) -> None:
    old, new = _f32(pair[0]), _f32(pair[1])
    result = blend(old, new, np.array([alpha], np.float32), np.array([True]))
    slack = 1e-6 * np.maximum(np.abs(old), np.abs(new)) + 1e-30
    assert result.dtype == np.float32
    assert np.all(result >= np.minimum(old, new) - slack)
    assert np.all(result <= np.maximum(old, new) + slack)


# ── declarations ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("declare", "words"),
    [
        (lambda: Incremental(alpha=-0.1), ("alpha=-0.1", "[0, 1]")),
        (lambda: Incremental(alpha=1.01), ("alpha=1.01", "[0, 1]")),
        (lambda: Incremental(alpha=float("nan")), ("alpha=nan", "[0, 1]")),
        (lambda: Incremental(alpha=0.5, half_life="1d"), ("alpha=0.5", "half_life='1d'", "keep one")),
        (lambda: Incremental(half_life="0d"), ("half_life", "'0d'", "'15m'")),
        (lambda: Incremental(every="0h"), ("Incremental(every=", "'0h'", "'15m'")),
        (lambda: Incremental(every="-1d"), ("Incremental(every=", "'-1d'")),
        (lambda: Incremental(every="soon"), ("Incremental(every=", "'soon'")),
        (lambda: Incremental(every="1 month"), ("Incremental(every=", "'1 month'")),
        (lambda: Incremental(every=5), ("Incremental(every=", "5")),  # type: ignore[arg-type]
        (lambda: Incremental(context="all"), ("context='all'", "'window'")),  # type: ignore[arg-type]
        (lambda: Full(every=""), ("Full(every=", "''")),
        (lambda: Hybrid(every="2d", full_every="1d"), ("full_every='1d'", "Full(every=")),
        (lambda: Hybrid(full_every="never"), ("Hybrid(full_every=", "'never'")),
        (lambda: Hybrid(alpha=2.0), ("alpha=2.0", "[0, 1]")),
    ],
)
def test_a_policy_that_cannot_be_is_refused_by_name_with_a_remedy(declare: object, words: tuple[str, ...]) -> None:
    with pytest.raises(DeclarationError) as caught:
        declare()  # type: ignore[operator]
    assert all(word in str(caught.value) for word in words), caught.value


lengths = st.sampled_from(["30s", "15m", "1h", "6h", "1d"])
incrementals = st.one_of(
    st.builds(Incremental, every=lengths, alpha=st.none() | st.floats(0, 1)),
    st.builds(Incremental, every=lengths, half_life=lengths, context=st.sampled_from(["window", "new"])),
)
hybrids = st.builds(
    Hybrid, every=st.sampled_from(["6h", "1d"]), full_every=st.sampled_from(["1d", "3d", "1w"]), alpha=st.just(0.5)
)
fulls = st.builds(Full, every=lengths)


@given(st.one_of(incrementals, hybrids, fulls))
def test_a_policy_survives_json(policy: Policy) -> None:
    assert policy_from_json(policy_to_json(policy)) == policy


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"policy": "Often"}', '{"policy": "Full", "hours": 3}'])
def test_json_that_is_no_policy_is_refused(text: str) -> None:
    with pytest.raises(DeclarationError, match="feast apply"):
        policy_from_json(text)


# ── what is due ──────────────────────────────────────────────────────────────────────────────────────────────

spans = st.integers(0, 60 * 24).map(lambda hours: hours * HOUR)


def _due(policy: Policy, watermark: int, end: int, *, full: int = T0, new_space: bool = False) -> list[Due]:
    return due(policy, watermark_us=watermark, full_us=full, end_us=end, new_space=new_space)


@given(st.one_of(incrementals, hybrids, fulls), spans)
def test_the_first_unit_is_a_refresh_of_everything(policy: Policy, span: int) -> None:
    found = due(policy, watermark_us=None, full_us=None, end_us=T0 + span, new_space=False)
    assert found == [Due("full", None, T0 + span)]


@given(
    st.one_of(incrementals.filter(lambda p: p.every not in ("30s", "15m")), hybrids, fulls),
    spans,
    spans,
    st.booleans(),
)
def test_units_cover_the_time_from_the_watermark_without_gap_or_overlap(
    policy: Policy, since_full: int, span: int, new_space: bool
) -> None:
    watermark = T0 + since_full
    found = _due(policy, watermark, watermark + span, new_space=new_space)
    at = watermark
    for unit in found:
        assert unit.start_us == at
        assert unit.end_us >= at
        at = unit.end_us
    assert at <= watermark + span


@given(incrementals.filter(lambda p: p.every not in ("30s", "15m")), spans, spans)
def test_incremental_runs_end_alike_however_often_they_run(policy: Incremental, first: int, second: int) -> None:
    once = _due(policy, T0, T0 + first + second)
    before = _due(policy, T0, T0 + first)
    watermark = before[-1].end_us if before else T0
    assert before + _due(policy, watermark, T0 + first + second) == once


@given(hybrids, spans, spans)
def test_hybrid_runs_end_at_the_same_time_however_often_they_run(policy: Hybrid, first: int, second: int) -> None:
    def run(ends: list[int]) -> tuple[int, int]:
        watermark = full = T0
        for end in ends:
            for unit in _due(policy, watermark, end, full=full):
                watermark = unit.end_us
                full = unit.end_us if unit.kind == "full" else full
        return watermark, full

    assert run([T0 + first, T0 + first + second]) == run([T0 + first + second])


@given(fulls, spans)
def test_full_runs_once_for_its_last_boundary(policy: Full, span: int) -> None:
    found = _due(policy, T0, T0 + span)
    step = {"30s": HOUR // 120, "15m": HOUR // 4, "1h": HOUR, "6h": 6 * HOUR, "1d": DAY}[policy.every]
    last = T0 + span // step * step
    assert found == ([Due("full", T0, last)] if last > T0 else [])


def test_ticks_of_an_incremental_policy() -> None:
    assert _due(Incremental(every="6h"), T0, T0 + 13 * HOUR) == [
        Due("incremental", T0, T0 + 6 * HOUR),
        Due("incremental", T0 + 6 * HOUR, T0 + 12 * HOUR),
    ]


def test_hybrid_refreshes_when_its_period_is_over_and_ticks_on() -> None:
    policy = Hybrid(every="1d", full_every="3d")
    assert _due(policy, T0 + 2 * DAY, T0 + 5 * DAY) == [
        Due("full", T0 + 2 * DAY, T0 + 3 * DAY),
        Due("incremental", T0 + 3 * DAY, T0 + 4 * DAY),
        Due("incremental", T0 + 4 * DAY, T0 + 5 * DAY),
    ]


def test_hybrid_refreshes_for_a_new_space_at_its_last_tick_boundary() -> None:
    policy = Hybrid(every="1d", full_every="30d")
    watermark = T0 + 2 * DAY
    assert _due(policy, watermark, watermark + DAY + HOUR, new_space=True) == [Due("full", watermark, watermark + DAY)]
    assert _due(policy, watermark, watermark + HOUR, new_space=True) == [Due("full", watermark, watermark)]


def test_incremental_does_not_refresh_for_a_new_space() -> None:
    assert [unit.kind for unit in _due(Incremental(), T0, T0 + 2 * DAY, new_space=True)] == ["incremental"] * 2


@pytest.mark.parametrize(
    ("policy", "text"),
    [
        (Incremental(), 'Incremental(every="1d")'),
        (Incremental("30m", alpha=0.5, context="new"), 'Incremental(every="30m", alpha=0.5, context="new")'),
        (Full(every="7d"), 'Full(every="7d")'),
        (Hybrid(half_life="14d"), 'Hybrid(every="1d", half_life="14d", full_every="7d")'),
    ],
)
def test_a_policy_is_described_as_it_is_declared_without_what_nobody_wrote(policy: Policy, text: str) -> None:
    assert describe(policy) == text
    assert eval(text) == policy  # noqa: S307 - our own text

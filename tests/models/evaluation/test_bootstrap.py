"""Intervals from resampling users: where they lie, how wide they are, and that differences are paired."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from feast_embeddings.models.evaluation.bootstrap import bootstrap


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), questions=st.integers(1, 60))
def test_an_interval_holds_its_mean_and_is_the_same_again(seed, questions):
    rng = np.random.default_rng(seed)
    values, users = rng.random((questions, 2)), rng.integers(0, 10, questions)
    found = bootstrap(values, users, resamples=200, seed=seed)
    assert found == bootstrap(values, users, resamples=200, seed=seed)
    assert np.allclose([each.value for each in found], values.mean(axis=0))
    assert all(each.low <= each.high for each in found)


def test_an_interval_is_as_wide_as_the_normal_one():
    values = np.random.default_rng(0).normal(size=(2000, 1))
    (found,) = bootstrap(values, np.arange(2000), resamples=2000)
    width = 2 * 1.96 * values.std() / np.sqrt(2000)
    assert abs((found.high - found.low) / width - 1) < 0.1


def test_questions_of_one_user_stand_or_fall_together():
    """Given each user asks ten times the same, then the interval is that of the users, not of the questions."""
    per_user = np.random.default_rng(1).normal(size=100)
    (once,) = bootstrap(per_user[:, None], np.arange(100), resamples=2000)
    (often,) = bootstrap(np.repeat(per_user, 10)[:, None], np.repeat(np.arange(100), 10), resamples=2000)
    assert np.isclose(often.high - often.low, once.high - once.low)


def test_a_constant_difference_has_no_width():
    values = np.random.default_rng(2).random(50)
    (found,) = bootstrap((values + 0.25 - values)[:, None], np.arange(50))
    assert np.allclose([found.value, found.low, found.high], 0.25)


def test_questions_that_do_not_count_are_left_out():
    values = np.array([[1.0, np.nan], [np.nan, np.nan], [0.0, np.nan]])
    counted, never = bootstrap(values, np.arange(3), resamples=50)
    assert counted.value == 0.5
    assert np.isnan([never.value, never.low, never.high]).all()


def test_without_resamples_there_is_no_interval():
    (found,) = bootstrap(np.array([[1.0], [0.0]]), np.arange(2), resamples=0)
    assert (found.value, found.low, found.high) == (0.5, 0.5, 0.5)

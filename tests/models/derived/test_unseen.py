"""Items an encoder never saw stand where their users stood, however the behaviors arrive."""

import numpy as np
import pytest
from encoder_laws import ENCODERS
from hypothesis import given, settings
from hypothesis import strategies as st

from feast_embeddings.models import UnseenItems
from feast_embeddings.models.derived.unseen import trained_length
from feast_embeddings.models.errors import SpaceError

UNKNOWN = np.array([1001, 1002, 1003, 1004])


@pytest.fixture(scope="module", params=["sequence", "sequence of strings and values"])
def case(request):
    return ENCODERS[request.param]


@pytest.fixture(scope="module")
def encoder(case):
    return case.make(0)


def behaviors(case, encoder, seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Items, half of them known to the encoder, and the vectors of users before them."""
    rng = np.random.default_rng(seed)
    unknown = UNKNOWN.astype(str).astype(object) if case.strings else UNKNOWN
    items = rng.choice(np.concatenate([unknown, case.items[:4]]), count)
    return items, rng.normal(scale=3, size=(count, encoder.dim)).astype(np.float32)


def same(one: UnseenItems, other: UnseenItems) -> bool:
    return (
        one.ids.tolist() == other.ids.tolist()
        and np.array_equal(one.support, other.support)
        and np.array_equal(one.means(), other.means())
    )


def test_an_unseen_item_is_the_mean_of_the_users_before_it(case, encoder):
    items, users = behaviors(case, encoder, seed=0, count=200)
    unseen = UnseenItems.of(encoder, items, users)
    assert not np.isin(unseen.ids, case.items).any()
    assert set(unseen.ids.tolist()) == set(items.tolist()) - set(case.items.tolist())
    for item, vector, support in zip(unseen.ids, unseen.means(), unseen.support, strict=True):
        assert support == (items == item).sum()
        assert np.allclose(vector, users[items == item].mean(axis=0), atol=1e-6)


@given(seed=st.integers(0, 10_000), count=st.integers(0, 60), cut=st.floats(0, 1))
@settings(max_examples=30)
def test_order_and_division_change_no_bit(case, encoder, seed, count, cut):
    """Given behaviors, when they arrive in another order and in two parts, then the vectors are the same bits."""
    items, users = behaviors(case, encoder, seed, count)
    order = np.random.default_rng(seed + 1).permutation(count)
    first, second = np.split(order, [int(cut * count)])
    parts = [UnseenItems.of(encoder, items[part], users[part]) for part in (first, second)]
    whole = UnseenItems.of(encoder, items, users)
    assert same(parts[0].merged(parts[1]), whole)
    assert same(parts[1].merged(parts[0]), whole)


def test_the_more_users_came_the_nearer_to_the_length_of_a_trained_item(case, encoder):
    items, users = behaviors(case, encoder, seed=4, count=300)
    unseen, length = UnseenItems.of(encoder, items, users), trained_length(encoder)
    vectors, means = unseen.vectors(length).astype(np.float64), unseen.means().astype(np.float64)
    known = encoder.encode_items(encoder.item_ids())[0]
    assert np.isclose(length, np.linalg.norm(known, axis=1).mean(), rtol=1e-5)
    shares = np.linalg.norm(vectors, axis=1) / length
    assert np.allclose(shares, unseen.support / (unseen.support + 20), rtol=1e-5)
    cosines = (vectors * means).sum(axis=1) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(means, axis=1)
    assert np.allclose(cosines, 1, atol=1e-5)


def test_without_trained_items_the_means_stay_as_they_are(case, encoder):
    unseen = UnseenItems.of(encoder, *behaviors(case, encoder, seed=5, count=20))
    assert np.array_equal(unseen.vectors(0.0), unseen.means())


def test_users_without_a_vector_count_for_nothing(case, encoder):
    items, users = behaviors(case, encoder, seed=2, count=50)
    without = users.copy()
    without[::3], without[1::3] = 0, np.nan
    assert same(UnseenItems.of(encoder, items, without), UnseenItems.of(encoder, items[2::3], users[2::3]))
    nobody = UnseenItems.of(encoder, items, np.zeros_like(users))
    assert nobody.means().shape == (0, encoder.dim)


def test_two_spaces_never_meet(case, encoder):
    items, users = behaviors(case, encoder, seed=3, count=5)
    with pytest.raises(SpaceError, match=r"cannot be merged .* sum the user vectors of one space"):
        UnseenItems.of(encoder, items, users).merged(UnseenItems.of(case.make(1), items, users))
    with pytest.raises(SpaceError, match="read them from a view of that encoder"):
        UnseenItems.of(encoder, items, users[:, 1:])

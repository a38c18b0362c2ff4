"""Manifests: JSON both ways, and which fill a view reads."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feast_embeddings.materialize.online.manifest import FillRef, Manifest
from feast_embeddings.models.errors import OnlineStoreError, SpaceError

words = st.text("abcdef0123456789_", min_size=1, max_size=8)
refs = st.builds(FillRef, words, words)
manifests = st.builds(
    Manifest,
    st.just("shop"),
    st.integers(1, 2**50),
    st.dictionaries(words, refs, max_size=4),
    st.dictionaries(words, st.lists(refs, max_size=3).map(tuple), max_size=4),
)
LIVE, KEPT = FillRef("fill-2", "space-2"), FillRef("fill-1", "space-1")
MANIFEST = Manifest("shop", 2, {"users": LIVE}, {"users": (KEPT,)})


@given(manifests)
def test_json_gives_the_same_manifest_back(manifest):
    assert Manifest.from_json("shop", manifest.to_json()) == manifest
    assert Manifest.from_json("shop", manifest.to_json().encode()).to_json() == manifest.to_json()


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"generation": 1, "fills": {"v": {}}}', '{"generation": 1, "fills": 3}']
)
def test_other_text_is_refused_with_the_encoder_named(text):
    with pytest.raises(OnlineStoreError, match="manifest of encoder 'shop' in Redis is unreadable"):
        Manifest.from_json("shop", text)


def test_a_plain_read_follows_the_live_fill():
    assert MANIFEST.fill_of("users") == LIVE
    assert MANIFEST.fill_of("items") is None


def test_a_pinned_read_finds_live_and_retained_spaces():
    assert MANIFEST.fill_of("users", "space-2") == LIVE
    assert MANIFEST.fill_of("users", "space-1") == KEPT


def test_a_pin_on_a_retired_space_names_it():
    with pytest.raises(SpaceError) as caught:
        MANIFEST.fill_of("users", "space-0")
    assert str(caught.value) == (
        "Feature view 'users' of encoder 'shop' has no fill in space 'space-0'. Served spaces: space-2, space-1. "
        "Pin one of these, or read the view without a pin."
    )

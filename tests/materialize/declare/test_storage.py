"""Vectors in fewer bits: within their bounds, rounded once, and the same numbers wherever they are read."""

import numpy as np
import pandas as pd
import pytest
from feast.protos.feast.types.Value_pb2 import Value
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from repo_fixture import DIM, ITEMS, USERS, VIEWS, at, day, moment, shop, tiny_encoder
from ticks_fixture import tick_at

from feast_embeddings.materialize import nearest
from feast_embeddings.materialize.declare.storage import STORAGES, as_stored, holds
from feast_embeddings.materialize.online import (
    as_float_list,
    as_float_lists,
    decode_vectors,
    encode_vectors,
    entity_keys,
    feature_field,
)
from feast_embeddings.materialize.serving import read_vectors
from feast_embeddings.materialize.upkeep import restore
from feast_embeddings.models.errors import DeclarationError, OnlineStoreError, SpaceError

BYTES = {"float16": 1 + 2 * DIM, "int8": 1 + 4 + DIM}
shapes = st.tuples(st.integers(0, 5), st.integers(1, 9))
storages = st.sampled_from(STORAGES)


def matrices(largest):
    numbers = st.one_of(st.floats(-largest, largest, width=32), st.floats(-1, 1, width=32))
    return shapes.flatmap(lambda shape: arrays(np.float32, shape, elements=numbers))


@given(matrices(65_504.0))
def test_float16_is_off_by_half_a_unit_in_its_last_place(vectors):
    error = np.abs(as_stored(vectors, "float16").astype(np.float64) - vectors)
    assert bool((error <= np.maximum(np.abs(vectors.astype(np.float64)) * 2**-11, 2**-25)).all())


@given(matrices(float(np.float32(1e38))))
def test_int8_is_off_by_a_small_part_of_the_largest_number(vectors):
    wide = vectors.astype(np.float64)
    error = np.abs(as_stored(vectors, "int8") - wide)
    assert bool((error <= np.maximum(np.abs(wide).max(axis=1, keepdims=True) / 253, 1e-33)).all())


@given(matrices(60_000.0), storages)
def test_rounding_twice_is_rounding_once_and_what_is_written_is_read(vectors, storage):
    stored = as_stored(vectors, storage)
    assert holds(stored, storage)
    values = encode_vectors(stored, storage)
    decoded, found = decode_vectors([*values, None], vectors.shape[1], "view")
    assert decoded[:-1].tobytes() == stored.tobytes()
    assert found.tolist() == [True] * len(vectors) + [False]
    kinds = {Value.FromString(value).WhichOneof("val") for value in values}
    assert kinds <= {"float_list_val" if storage == "float32" else "bytes_val"}


@given(matrices(60_000.0), st.data())
def test_vectors_of_several_storages_are_read_together(vectors, data):
    # given rows from before and after their view's storage changed
    chosen = [data.draw(storages) for _ in vectors]
    rows = [as_stored(vectors[row : row + 1], storage) for row, storage in enumerate(chosen)]
    values = [encode_vectors(row, storage)[0] for row, storage in zip(rows, chosen, strict=True)]

    # when decoded, or shown as stock Feast's lists, then each is what was stored
    decoded, _ = decode_vectors(values, vectors.shape[1], "view")
    expected = np.concatenate([np.empty((0, vectors.shape[1]), np.float32), *rows])
    assert np.array_equal(decoded, expected)
    shown = [Value.FromString(value).float_list_val.val for value in as_float_lists(values, "view")]
    assert [list(row) for row in shown] == expected.tolist()


@pytest.mark.parametrize("storage", ["float16", "int8"])
@pytest.mark.parametrize("number", [np.nan, np.inf, -3e38])
def test_numbers_that_do_not_fit_are_refused(storage, number):
    vectors = np.array([[1, number]], np.float32)
    assert not holds(vectors, storage)
    with pytest.raises(OnlineStoreError, match=rf"stored as {storage} .* storage='float32'"):
        as_stored(vectors, storage)


def test_bytes_that_are_no_vector_are_refused():
    for stored in (b"", b"\x01\x00", b"\x02abc", b"\x07abcdefg"):
        value = Value(bytes_val=stored).SerializeToString()
        with pytest.raises(OnlineStoreError, match="not one this package wrote"):
            as_float_list(value, "view")
    short = encode_vectors(np.ones((1, 3), np.float32), "int8")
    with pytest.raises(SpaceError, match="length 3 where 4"):
        decode_vectors(short, 4, "view")


def _lived(make_repo, storage):
    """A refresh and two ticks that blend, user and item vectors in one storage."""
    repo = make_repo(policy=f"Incremental(alpha=0.5), serve=Serving(storage={storage!r})")
    file = repo.folder / "definitions.py"
    items = 'item_embedding_view("item_embedding", '
    file.write_text(file.read_text().replace(items, f"{items}serve=Serving(storage={storage!r}), "))
    repo.deliver(shop(6), "shop")
    repo.encode_with(tiny_encoder(1))
    with at(day(3)):
        for view in VIEWS:
            repo.run(day(3), view, refresh=True)
    for end in (4, 5):
        tick_at(repo, end)
    return repo


@pytest.mark.parametrize("storage", ["float16", "int8"])
def test_online_reads_retrieval_neighbors_and_a_restore_agree(make_repo, storage):
    # given a repo that keeps fewer bits
    repo = _lived(make_repo, storage)
    live = {view: repo.fills("live", view=view)[0].fill for view in VIEWS}
    with at(day(5.5)):
        reads = {view: repo.vectors(view) for view in VIEWS}

        # then Redis holds that many bytes per vector
        field = feature_field(f"user_embedding@{live['user_embedding']}", "embedding")
        ids = USERS[reads["user_embedding"].found]
        with repo.redis() as client:
            stored = [client.hget(key, field) for key in entity_keys(repo.project, "user_id", ids)]
        assert {len(Value.FromString(value).bytes_val) for value in stored} == {BYTES[storage]}
        assert all(holds(read.values, storage) for read in reads.values())

        # and lists, retrieval and neighbors are made of the same numbers
        vectors = reads["user_embedding"].values[reads["user_embedding"].found]
        answer = repo.store.get_online_features(
            ["user_embedding:embedding"], [{"user_id": int(one)} for one in ids]
        ).to_dict()
        assert np.array_equal(np.array(answer["embedding"], np.float32), vectors)
        asked = pd.DataFrame({"user_id": ids, "event_timestamp": [moment(day(5.5))] * len(ids)})
        found = repo.store.get_historical_features(asked, ["user_embedding:embedding"]).to_df()
        found = found.sort_values("user_id")
        assert np.stack(found["embedding"]).astype(np.float32).tobytes() == vectors.tobytes()
        near = nearest(
            repo.store, "item_embedding:embedding", read_vectors(repo.store, "user_embedding:embedding", ids), 3
        )
        products = vectors @ reads["item_embedding"].values.T
        assert np.array_equal(near.ids, ITEMS[np.argsort(-products, axis=1, kind="stable")[:, :3]])

        # and a restore of an emptied Redis brings back the same bytes
        with repo.redis() as client:
            client.delete(*repo._keys(client))
        restore(repo.store)
        with repo.redis() as client:
            assert [client.hget(key, field) for key in entity_keys(repo.project, "user_id", ids)] == stored
        for view, read in reads.items():
            assert repo.vectors(view).values.tobytes() == read.values.tobytes()


def test_rows_from_before_the_storage_changed_keep_their_bits(make_repo):
    # given a float32 view that is declared int8 from some day on
    repo = make_repo(policy="Incremental(alpha=0.5)")
    repo.deliver(shop(6), "shop")
    repo.encode_with(tiny_encoder(1))
    with at(day(3)):
        repo.run(day(3), "item_embedding", refresh=True)
        repo.run(day(3), refresh=True)
    before = repo.vectors().values
    repo.declare("Incremental(alpha=0.5), serve=Serving(storage='int8')")
    repo.apply()
    tick_at(repo, 4)

    # then rows of both kinds are read, and restored as they were
    both = repo.vectors().values
    changed = (both != before).any(axis=1)
    assert changed.any()
    assert not changed.all()
    assert holds(both[changed], "int8")
    with repo.redis() as client:
        client.delete(*repo._keys(client))
    restore(repo.store)
    assert repo.vectors().values.tobytes() == both.tobytes()


def test_an_unknown_storage_is_refused(make_repo):
    repo = make_repo(policy="Incremental(), serve=Serving(storage='int4')")
    with pytest.raises(DeclarationError, match=r"storage='int4'\) is unknown: use one of 'float32', 'float16', 'int8'"):
        repo.apply()

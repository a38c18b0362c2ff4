"""Payloads become behaviors, or are set aside with a reason; nothing in them stops the stream."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
from fuzz_payloads import messages
from sources_fixture import CONTRACT, T0

from feast_embeddings.materialize.stream.payloads import decode, to_arrow_payload
from feast_embeddings.transformations import BehaviorContract, BehaviorType, CleaningRules, prepare
from feast_embeddings.transformations.behaviors import raw_schema

GOOD = {"user": 5, "item": 7, "at": "2024-03-01T00:00:00Z", "id": "a"}
ROW = {"user": 5, "item": 7, "at": T0, "id": "a"}


def rows_of(*payloads: bytes, contract: BehaviorContract = CONTRACT) -> list[dict[str, object]]:
    raw = decode(payloads, contract).raw
    assert raw.schema.equals(raw_schema(contract))
    at = raw.column_names.index("at")
    return raw.set_column(at, "at", raw["at"].cast(pa.int64())).to_pylist()


def as_json(**changes: object) -> bytes:
    return json.dumps(GOOD | changes).encode()


@pytest.mark.parametrize(
    ("changes", "meant"),
    [
        ({}, {}),
        ({"at": T0}, {}),
        ({"at": "2024-03-01T02:00:00.000000999+02:00"}, {}),
        ({"at": "2024-03-01 00:00:00+00"}, {}),
        ({"user": "5", "id": 12}, {"id": "12"}),
        ({"extra": {"deep": [1, {"user": 9}]}}, {}),
        ({"item": None}, {"item": None}),
        ({"id": 'line\nbreak \u2028 "quoted"'}, {"id": 'line\nbreak \u2028 "quoted"'}),
    ],
)
def test_json_means_the_same_alone_and_among_others(changes: dict[str, object], meant: dict[str, object]) -> None:
    odd, plain = as_json(**changes), as_json()
    assert rows_of(odd) == [ROW | meant]
    assert rows_of(plain, odd, plain, *[plain] * 20) == [ROW, ROW | meant, *[ROW] * 21]


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "not JSON"),
        (b"[1]", "not a JSON object"),
        (b'{"user": 1}{"user": 2}', "not JSON"),
        (b'{"user": \xff}', "not JSON"),
        (as_json(user=2**63), "entity: 9223372036854775808 is not an int64"),
        (as_json(user=1.5), "entity: an id is a number or text"),
        (as_json(at="2024-03-01T00:00:00"), "expected a zone offset"),
        (as_json(at="tomorrow"), "event time: Failed to parse"),
        (as_json(at=10**30), "event time"),
        (as_json(id=[]), "dedup id"),
        (b"\xff\xff\xff\xff\x10", "not an Arrow stream"),
        (b" " * (1 << 20) + b"x", "longer than"),
    ],
)
def test_poison_is_set_aside_and_its_neighbors_are_read(payload: bytes, reason: str) -> None:
    decoded = decode([as_json(), payload, as_json()], CONTRACT)
    assert list(decoded.poison) == [1]
    assert reason in decoded.poison[1]
    assert decoded.message.tolist() == [0, 2]


def test_an_object_cut_in_two_is_not_put_together_again() -> None:
    left, right = b'{"user":5,"x":{}', b',"item":7,"at":"2024-03-01T00:00:00Z"}'
    assert list(decode([left, right], CONTRACT).poison) == [0, 1]
    assert list(decode([b'{"user":5', b"}"], CONTRACT).poison) == [0, 1]


def test_arrow_messages_hold_many_rows_of_any_fitting_type() -> None:
    at = pa.array([T0, T0 + 1]).cast(pa.timestamp("us", "UTC")).cast(pa.timestamp("ns", "America/New_York"))
    table = pa.table(
        {
            "user": pa.array([5, 6], pa.int32()),
            "item": ["7", "8"],
            "at": at,
            "id": pa.array(["a", "b"]).dictionary_encode(),
        }
    )
    decoded = decode([as_json(), to_arrow_payload(table)], CONTRACT)
    assert decoded.poison == {}
    assert decoded.message.tolist() == [0, 1, 1]
    assert rows_of(to_arrow_payload(table)) == [ROW, {"user": 6, "item": 8, "at": T0 + 1, "id": "b"}]


def test_times_without_a_zone_are_read_in_the_declared_one() -> None:
    contract = BehaviorContract(
        join_key="user_id", entity="user", item="item", event_time="at", dedup_id="id", default_type="view",
        types=(BehaviorType("view"),), naive_time_zone="Europe/Paris",
    )  # fmt: skip
    assert rows_of(as_json(at="2024-03-01T01:00:00"), contract=contract) == [ROW]
    assert rows_of(as_json(at="2024-03-01T01:00:00"), as_json(), contract=contract) == [ROW, ROW]


@pytest.mark.parametrize("seed", [1, 2])
def test_every_message_of_a_fuzz_is_a_behavior_or_in_quarantine(seed: int) -> None:
    payloads = list(messages(2_000, seed))
    accounted = 0
    for start in range(0, len(payloads), 250):
        part = payloads[start : start + 250]
        decoded = decode(part, CONTRACT)
        assert set(decoded.message.tolist()) | set(decoded.poison) | _empty(part) == set(range(len(part)))
        prepared = prepare(decoded.raw, CONTRACT, CleaningRules(), T0 + 10**10)
        counts = prepared.counts
        assert counts.read == counts.accepted + counts.deduplicated + sum(counts.quarantined.values())
        assert len(prepared.quarantined) == sum(counts.quarantined.values())
        accounted += len(decoded.poison) + len(np.unique(decoded.message))
    assert accounted > 1_900


def _sent(table: pa.Table, compression: str | None = None) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def _behaviors(rows: int, **columns: pa.Array) -> pa.Table:
    plain = {"user": [5] * rows, "item": [7] * rows, "at": pa.array([T0] * rows).cast(pa.timestamp("us", "UTC"))}
    return pa.table(plain | {"id": ["a"] * rows} | columns)


DEFAULT = pa.default_memory_pool()
WATCHED = pa.proxy_memory_pool(DEFAULT)  # lives as long as whatever was made in it
LONG = pa.array(["x" * (1 << 20)])
BOMBS = {
    "a long text, said often": _behaviors(
        1100, id=pa.DictionaryArray.from_arrays(pa.array([0] * 1100, pa.int32()), LONG)
    ),
    "texts of one letter": _behaviors(30, id=pa.array(["x" * (1 << 20)] * 30)),
    "a column that nobody asks for": _behaviors(1, other=pa.array([b"\0" * (1 << 30)], pa.large_binary())),
    "a dictionary that nobody asks for": _behaviors(
        1, other=pa.DictionaryArray.from_arrays([0], pa.array([b"\0" * (1 << 28)], pa.large_binary()))
    ),
}


@pytest.mark.parametrize("table", BOMBS.values(), ids=BOMBS)
def test_a_small_message_that_would_be_gigabytes_is_set_aside_before_it_is(table: pa.Table) -> None:
    payload = _sent(table, "zstd")
    assert len(payload) < 100_000
    pa.set_memory_pool(WATCHED)
    try:
        decoded = decode([as_json(), payload, as_json()], CONTRACT)
    finally:
        pa.set_memory_pool(DEFAULT)
    assert decoded.poison.keys() == {1}
    assert "bytes once it is decoded" in decoded.poison[1]
    assert decoded.message.tolist() == [0, 2]
    assert WATCHED.max_memory() < 32 << 20


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_a_compressed_message_means_what_a_plain_one_does(compression: str) -> None:
    table = _behaviors(5000, id=pa.array([f"b{number % 700}" for number in range(5000)]).dictionary_encode())
    assert decode([_sent(table, compression)], CONTRACT).raw.equals(decode([_sent(table)], CONTRACT).raw)
    assert not decode([_sent(table, compression)], CONTRACT).poison


@pytest.mark.parametrize("seed", range(3))
def test_whatever_bytes_are_changed_in_an_arrow_message_the_next_one_goes_on(seed: int) -> None:
    rng = np.random.default_rng(seed)
    whole = np.frombuffer(_sent(_behaviors(3), "zstd"), np.uint8)
    for _ in range(400):
        broken = whole.copy()
        broken[rng.integers(4, len(broken), 3)] = rng.integers(0, 256, 3)
        decoded = decode([broken.tobytes(), as_json()], CONTRACT)
        assert decoded.message.tolist()[-1:] == [1]
        assert 0 in decoded.poison or 0 in decoded.message.tolist() or not len(decoded.message) > 1


def test_a_message_means_the_same_whatever_it_is_batched_with() -> None:
    payloads = list(messages(300, 3))
    together = decode(payloads, CONTRACT)
    for number, payload in enumerate(payloads):
        alone = decode([payload], CONTRACT)
        assert bool(alone.poison) == (number in together.poison)
        mine = together.raw.filter(pa.array(together.message == number))
        assert alone.raw.equals(mine.combine_chunks()), payload


def _empty(payloads: list[bytes]) -> set[int]:
    """Arrow messages of no rows: there is nothing to account for."""
    return {
        number
        for number, payload in enumerate(payloads)
        if payload[:4] == b"\xff\xff\xff\xff" and not len(decode([payload], CONTRACT).message)
    }

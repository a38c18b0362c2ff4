"""A seeded stream of messages, most of them broken in some way, for anything that must survive all of them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

import pyarrow as pa
from sources_fixture import T0

from feast_embeddings.materialize.stream import to_arrow_payload

_ODD = [None, True, False, 0, -1, 1.5, 1e400, -0.0, 2**63, -(2**63) - 1, 10**30, "", " ", "7", "007", "-0", "1e3"]
_ODD += ["NaN", "null", "\x00", "é", "\ud800", "😀", "a" * 300, [], [1], {}, {"user": 1}, T0, -T0, 10**20]
_ODD += ["2024-03-01", "2024-03-01T00:00:00", "2024-03-01T00:00:00Z", "2024-02-30T00:00:00Z", "0000-01-01T00:00:00Z"]
_ODD += ["9999-12-31T23:59:59.999999999Z", "2024-03-01T25:00:00+99:99"]
_NOISE = [
    b"",
    b"{",
    b"}",
    b"[]",
    b"null",
    b"{}",
    b"{}{}",
    b"\n",
    b"{}\n{}",
    b'"',
    b"\xff\xff\xff\xff",
    b"ARROW1",
    b"\x00" * 9,
    b"NaN",
]
_NOISE += [
    b"[" * 5000,
    b'{"user":' * 3000,
    b"ARROW1\x00\x00" + b"\xff" * 40,
    b"\xff\xff\xff\xff\x00\x00\x00\x00",
    b'{"user":NaN}',
]
_KEYS = ("user", "item", "at", "id")


def messages(count: int, seed: int) -> Iterator[bytes]:
    """``count`` messages; about a third of them are behaviors as they should be."""
    rng = random.Random(seed)  # noqa: S311 - a fuzz
    arrow = _arrow(rng)
    for number in range(count):
        kind = rng.random()
        if kind < 0.35:
            yield json.dumps(_behavior(rng, number)).encode()
        elif kind < 0.65:
            yield json.dumps(_odd(rng, number), ensure_ascii=rng.random() < 0.5).encode(errors="surrogatepass")
        elif kind < 0.85:
            yield _mutated(rng, json.dumps(_behavior(rng, number)).encode())
        elif kind < 0.95:
            yield _mutated(rng, arrow) if rng.random() < 0.9 else arrow
        else:
            yield rng.choice(_NOISE) if rng.random() < 0.7 else rng.randbytes(rng.randrange(60))


def _behavior(rng: random.Random, number: int) -> dict[str, object]:
    return {"user": rng.randrange(50), "item": rng.randrange(9), "at": T0 + rng.randrange(10**9), "id": f"m{number}"}


def _odd(rng: random.Random, number: int) -> dict[str, object]:
    behavior = _behavior(rng, number)
    for _ in range(rng.randrange(1, 3)):
        key = rng.choice(_KEYS)
        if rng.random() < 0.2:
            behavior.pop(key, None)
        else:
            behavior[key] = rng.choice(_ODD)
    return behavior


def _mutated(rng: random.Random, message: bytes) -> bytes:
    broken = bytearray(message)
    for _ in range(rng.randrange(1, 4)):
        at, what = rng.randrange(len(broken) + 1), rng.randrange(4)
        if what == 0 and at < len(broken):
            broken[at] ^= 1 << rng.randrange(8)
        elif what == 1:
            del broken[at : at + rng.randrange(1, 9)]
        elif what == 2:
            broken[at:at] = rng.randbytes(rng.randrange(1, 5))
        else:
            broken = broken[:at] or bytearray(b"x")
    return bytes(broken)


def _arrow(rng: random.Random) -> bytes:
    rows = [_behavior(rng, -number) for number in range(3)]
    columns = {key: pa.array([row[key] for row in rows]) for key in _KEYS}
    columns["at"] = columns["at"].cast(pa.timestamp("us", "UTC"))
    return to_arrow_payload(pa.table(columns))

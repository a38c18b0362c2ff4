"""Matrices and histories ↔ the bytes of Feast's ``ValueProto``, without a Python object per number.

Encoding: https://protobuf.dev/programming-guides/encoding/. A list value is two nested length-delimited
fields: ``ValueProto.<kind>_list_val`` holds a message whose field 1 is packed (numbers) or repeated
(strings). Strings go through the protobuf runtime, one message per row.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from feast.protos.feast.types.Value_pb2 import StringList
from feast.protos.feast.types.Value_pb2 import Value as ValueProto
from google.protobuf.message import DecodeError

from feast_embeddings.materialize.declare import Storage, packed, unpacked
from feast_embeddings.materialize.online.commands import rows_as_bytes
from feast_embeddings.models.errors import OnlineStoreError, SpaceError
from feast_embeddings.models.types import Float32s, Int32s, Int64s

Bytes = npt.NDArray[np.uint8]
_PACKED = b"\x0a"  # field 1, length-delimited
_BYTES = bytes([ValueProto.DESCRIPTOR.fields_by_name["bytes_val"].number << 3 | 2])


def encode_vectors(matrix: Float32s, storage: Storage = "float32") -> list[bytes]:
    """float32 [n, d] → n serialized ``ValueProto``: a float list, or bytes where ``storage`` keeps fewer bits."""
    return rows_as_bytes(vector_rows(matrix, storage))


def vector_rows(matrix: Float32s, storage: Storage = "float32") -> Bytes:
    """As :func:`encode_vectors`, as the rows of a matrix: uint8 [n, length of one]."""
    n, d = matrix.shape
    if storage == "float32":
        header = _header("float_list_val", 4 * d)
        body = np.ascontiguousarray(matrix, dtype="<f4").view(np.uint8).reshape(n, 4 * d)
    else:
        body = packed(matrix, storage)
        header = _BYTES + varint(body.shape[1])
    return np.concatenate([np.broadcast_to(np.frombuffer(header, np.uint8), (n, len(header))), body], axis=1)


def decode_vectors(values: Sequence[bytes | None], dim: int, view: str) -> tuple[Float32s, npt.NDArray[np.bool_]]:
    """Serialized vectors, of any storage → float32 [n, dim] and found bool [n]; rows without a value are zero.

    Args:
        values: As Redis returned them; None or empty where there is no value.
        dim: Expected length of every vector.
        view: Name for the error message.

    Raises:
        SpaceError: A vector has another length.
        OnlineStoreError: A value is no vector.
    """
    found = np.fromiter(map(bool, values), np.bool_, len(values))
    present = [value for value in values if value]
    vectors = None
    if len(set(map(len, present))) == 1:
        vectors = _of_one_kind(np.frombuffer(b"".join(present), np.uint8).reshape(len(present), -1))
    if vectors is None or vectors.shape[1] != dim:
        canonical = b"".join(_canonical_vector(value, dim, view) for value in present)
        start = len(_header("float_list_val", 4 * dim))
        rows = np.frombuffer(canonical, np.uint8).reshape(len(present), start + 4 * dim)
        vectors = rows[:, start:].copy().view("<f4")  # writable and aligned, also where there is one row
    if len(vectors) == len(values):
        return vectors, found
    out = np.zeros((len(values), dim), np.float32)
    out[found] = vectors
    return out, found


def vector_length(value: bytes, view: str) -> int:
    """Number of floats in one serialized vector.

    Raises:
        OnlineStoreError: The value is no vector.
    """
    return len(_parse(as_float_list(value, view), "float_list_val", view).float_list_val.val)


def as_float_lists(values: Sequence[bytes | None], view: str) -> Sequence[bytes | None]:
    """Serialized vectors of any storage as stock Feast's float lists; what is no bytes value stays as it is.

    Raises:
        OnlineStoreError: A bytes value is no vector.
    """
    rows = [place for place, value in enumerate(values) if value and value.startswith(_BYTES)]
    if not rows:
        return values
    shown = list(values)
    stored = [value for value in values if value and value.startswith(_BYTES)]
    vectors = None
    if len(set(map(len, stored))) == 1:
        vectors = _of_one_kind(np.frombuffer(b"".join(stored), np.uint8).reshape(len(stored), -1))
    lists = [as_float_list(value, view) for value in stored] if vectors is None else encode_vectors(vectors)
    for place, value in zip(rows, lists, strict=True):
        shown[place] = value
    return shown


def as_float_list(value: bytes, view: str) -> bytes:
    """As :func:`as_float_lists`, of one value."""
    if not value.startswith(_BYTES):
        return value
    stored = _parse(value, "bytes_val", view).bytes_val
    try:
        vector = unpacked(np.frombuffer(stored, np.uint8).reshape(1, -1))
    except ValueError as error:
        raise OnlineStoreError(f"{_undecodable(view)} ({error})") from error
    return encode_vectors(vector)[0]


def _of_one_kind(rows: Bytes) -> Float32s | None:
    """Values [n, length of one] as vectors float32 [n, d], writable; None if they are not all of one storage."""
    size = _packed_size("float_list_val", rows.shape[1])
    if size is not None and size % 4 == 0 and _all_start_with(rows, _header("float_list_val", size)):
        vectors: Float32s = rows[:, rows.shape[1] - size :].copy().view("<f4")
        return vectors
    header = _bytes_header(rows.shape[1])
    if header is not None and _all_start_with(rows, header):
        with contextlib.suppress(ValueError):
            return unpacked(rows[:, len(header) :])
    return None


def _all_start_with(rows: Bytes, header: bytes) -> bool:
    return bool((rows[:, : len(header)] == np.frombuffer(header, np.uint8)).all())


@lru_cache
def _bytes_header(total: int) -> bytes | None:
    """What stands before the bytes in a bytes value of ``total`` bytes."""
    for length in range(2, 7):
        if total >= length and len(header := _BYTES + varint(total - length)) == length:
            return header
    return None


def _canonical_vector(value: bytes, dim: int, view: str) -> bytes:
    proto = _parse(as_float_list(value, view), "float_list_val", view)
    length = len(proto.float_list_val.val)
    if length != dim:
        raise SpaceError(
            f"Feature view {view!r} holds a vector of length {length} where {dim} is expected: "
            "it was written by another encoder. Run `feast materialize` to fill the view anew."
        )
    return bytes(proto.SerializeToString())


def _parse(value: bytes, kind: str, view: str) -> ValueProto:
    """The value as a message; its own serialization is the canonical one this module reads."""
    try:
        proto: ValueProto = ValueProto.FromString(value)
    except DecodeError as error:
        raise OnlineStoreError(f"{_undecodable(view)} ({error})") from error
    if proto.WhichOneof("val") != kind:
        raise OnlineStoreError(f"{_undecodable(view)}: {proto.WhichOneof('val')} where {kind} is expected")
    return proto


def _undecodable(view: str) -> str:
    return f"A value of feature view {view!r} in Redis is not one this package wrote; refill the view"


def encode_floats(values: Float32s, offsets: Int64s) -> list[bytes]:
    """Ragged float32 → one serialized float list per row ``values[offsets[i]:offsets[i + 1]]``."""
    body = np.ascontiguousarray(values, dtype="<f4").tobytes()
    return _framed("float_list_val", body, 4 * offsets)


def encode_integers(values: Int64s | Int32s, offsets: Int64s) -> list[bytes]:
    """Ragged int64 or int32 → one serialized int64 or int32 list per row."""
    kind = "int32_list_val" if values.dtype == np.int32 else "int64_list_val"
    body, ends = _varints(values.astype(np.int64).view(np.uint64))
    bounds = np.concatenate([[0], ends])[offsets]
    return _framed(kind, body.tobytes(), bounds)


def encode_strings(values: npt.NDArray[np.object_], offsets: Int64s) -> list[bytes]:
    """Ragged strings → one serialized string list per row."""
    bounds = offsets.tolist()
    return [
        ValueProto(string_list_val=StringList(val=values[start:end].tolist())).SerializeToString()
        for start, end in pairwise(bounds)
    ]


def decode_floats(values: Sequence[bytes | None], view: str) -> tuple[Float32s, Int64s]:
    """Serialized float lists → float32 [N] and offsets int64 [n + 1]; a missing value is an empty row.

    Raises:
        OnlineStoreError: A value is no float list.
    """
    body, bounds = _bodies(values, "float_list_val", view)
    return body.view("<f4").astype(np.float32), bounds // 4


def decode_integers(values: Sequence[bytes | None], kind: str, view: str) -> tuple[Int64s, Int64s]:
    """Serialized int64 or int32 lists (``kind``) → int64 [N] and offsets int64 [n + 1].

    Raises:
        OnlineStoreError: A value is no such list.
    """
    body, bounds = _bodies(values, kind, view)
    numbers, last_bytes = _from_varints(body)
    return numbers, np.searchsorted(last_bytes, bounds).astype(np.int64)


def decode_strings(values: Sequence[bytes | None], view: str) -> tuple[npt.NDArray[np.object_], Int64s]:
    """Serialized string lists → object [N] and offsets int64 [n + 1].

    Raises:
        OnlineStoreError: A value is no string list.
    """
    rows = [_parse(value, "string_list_val", view).string_list_val.val if value else () for value in values]
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows], dtype=np.int64)]).astype(np.int64)
    flat = np.empty(int(offsets[-1]), dtype=object)
    flat[:] = [text for row in rows for text in row]
    return flat, offsets


@lru_cache(maxsize=4096)
def _header(kind: str, size: int) -> bytes:
    """What stands before ``size`` packed bytes of a list value; nothing is packed in an empty list."""
    tag = varint(ValueProto.DESCRIPTOR.fields_by_name[kind].number << 3 | 2)
    if size == 0:
        return tag + b"\x00"
    inner = _PACKED + varint(size)
    return tag + varint(len(inner) + size) + inner


@lru_cache(maxsize=8192)
def varint(number: int) -> bytes:
    """A length or a tag, as protobuf writes it."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def _framed(kind: str, body: bytes, bounds: Int64s) -> list[bytes]:
    edges = bounds.tolist()
    return [_header(kind, end - start) + body[start:end] for start, end in pairwise(edges)]


def _bodies(values: Sequence[bytes | None], kind: str, view: str) -> tuple[Bytes, Int64s]:
    """The packed bytes of all rows, joined, and their bounds int64 [n + 1]."""
    rows = [_body(value, kind, view) if value else b"" for value in values]
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    bounds = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return np.frombuffer(b"".join(rows), np.uint8), bounds


def _body(value: bytes, kind: str, view: str) -> bytes:
    size = _packed_size(kind, len(value))
    if size is None or not value.startswith(_header(kind, size)):
        value = _parse(value, kind, view).SerializeToString()
        size = _packed_size(kind, len(value)) or 0
    return value[len(value) - size :]


@lru_cache(maxsize=8192)
def _packed_size(kind: str, total: int) -> int | None:
    """Packed bytes in a canonical value of ``total`` bytes: every total has at most one answer."""
    for header in range(2, 13):
        size = total - header
        if size >= 0 and len(_header(kind, size)) == header:
            return size
    return None


def _varints(numbers: npt.NDArray[np.uint64]) -> tuple[Bytes, Int64s]:
    """All varints, joined, and the end of each: int64 [n]."""
    lengths = np.ones(len(numbers), np.int64)
    for bits in range(7, 64, 7):
        lengths += numbers >= np.uint64(1 << bits)
    ends = np.cumsum(lengths)
    place = np.arange(int(ends[-1]) if len(ends) else 0) - np.repeat(ends - lengths, lengths)
    septets = np.repeat(numbers, lengths) >> (7 * place).astype(np.uint64) & np.uint64(0x7F)
    out = septets.astype(np.uint8)
    out[place < np.repeat(lengths, lengths) - 1] |= 0x80
    return out, ends


def _from_varints(body: Bytes) -> tuple[Int64s, Int64s]:
    """Numbers int64 [n], and the position of each one's last byte, int64 [n]."""
    last = np.flatnonzero(body < 0x80)
    if not len(last):
        return np.zeros(0, np.int64), last.astype(np.int64)
    starts = np.concatenate([[0], last[:-1] + 1])
    place = np.arange(last[-1] + 1) - np.repeat(starts, last - starts + 1)
    septets = (body[: last[-1] + 1] & 0x7F).astype(np.uint64) << (7 * place).astype(np.uint64)
    return np.add.reduceat(septets, starts).view(np.int64), last.astype(np.int64)

"""How many bits Redis keeps of a number: vectors as float32, float16, or int8 with one scale per vector.

Fewer bits are an opaque ``bytes_val`` to a stock client: one byte that tells which, then the numbers. What is decoded
is exactly what was staged and logged, because vectors are rounded before they are staged (:func:`as_stored`).

int8 is symmetric: ``value = scale * code``, codes from -127 to 127, ``scale`` a float32 with 17 significant bits, so
that every product is an exact float32 and rounding twice is rounding once.
"""

from __future__ import annotations

from typing import Final, Literal, cast, get_args

import numpy as np
import numpy.typing as npt

from feast_embeddings.models.errors import OnlineStoreError
from feast_embeddings.models.types import Float32s

Storage = Literal["float32", "float16", "int8"]
STORAGES: Final[tuple[str, ...]] = get_args(Storage)
Bytes = npt.NDArray[np.uint8]

_FLOAT16, _INT8 = 1, 2
_SCALE_BYTES: Final = 4
_LARGEST: Final = 1e38  # of int8: beyond it a scale, rounded up, times 127 could leave float32
_SMALLEST: Final = 1e-33  # a vector below it is zero: its scale would have fewer than 17 bits
_LOW_BITS: Final = 0x7F  # of a float32's 24 significant ones; a code takes 7


def as_stored(vectors: Float32s, storage: Storage) -> Float32s:
    """What reads return of vectors float32 [n, dim] kept in ``storage``; doing it again changes nothing.

    float16 is off by up to 2 ** -11 of each number (2 ** -25 near zero), int8 by up to 1 / 253 of the vector's
    largest number.

    Raises:
        OnlineStoreError: A number is not finite, or too large for ``storage``.
    """
    if storage != "float32":
        return unpacked(packed(vectors, storage)) if len(vectors) else vectors
    if not np.isfinite(vectors).all():
        raise OnlineStoreError(
            "A vector to be stored holds a number that is not finite: the encoder makes such numbers. Train or export "
            "it again."
        )
    return vectors


def holds(vectors: Float32s, storage: Storage) -> bool:
    """Whether ``storage`` keeps these very vectors, bit for bit."""
    try:
        kept = as_stored(vectors, storage)
    except OnlineStoreError:
        return False
    return bool(np.array_equal(kept.view(np.uint32), np.ascontiguousarray(vectors, np.float32).view(np.uint32)))


def packed(vectors: Float32s, storage: Storage) -> Bytes:
    """float32 [n, dim] in fewer bits: uint8 [n, bytes of one], each row with the byte that tells how.

    Raises:
        OnlineStoreError: As :func:`as_stored`.
    """
    return _float16(vectors) if storage == "float16" else _int8(vectors)


def unpacked(rows: Bytes) -> Float32s:
    """The inverse of :func:`packed`; rows uint8 [n, bytes of one] are all of the first one's kind.

    Raises:
        ValueError: The bytes are nothing that :func:`packed` makes.
    """
    kinds = set(rows[:, :1].ravel().tolist())
    if kinds <= {_FLOAT16} and rows.shape[1] % 2:
        return cast(Float32s, rows[:, 1:].copy().view("<f2").astype(np.float32))
    if kinds <= {_INT8} and rows.shape[1] > _SCALE_BYTES:
        scales = rows[:, 1 : 1 + _SCALE_BYTES].copy().view("<f4")
        return cast(Float32s, rows[:, 1 + _SCALE_BYTES :].view(np.int8) * scales)
    raise ValueError(f"no vectors in {sorted(kinds)} of {rows.shape[1]} bytes")


def _float16(vectors: Float32s) -> Bytes:
    with np.errstate(over="ignore"):
        halves = np.ascontiguousarray(vectors, "<f2")
    if not bool(np.isfinite(halves).all()):
        raise _unfit("float16", 65_504)
    return _kind_and(_FLOAT16, halves.view(np.uint8).reshape(len(vectors), 2 * vectors.shape[1]))


def _int8(vectors: Float32s) -> Bytes:
    peaks = np.abs(vectors).max(axis=1, initial=0).astype(np.float32)
    if not bool((peaks <= _LARGEST).all()):  # NaN is not
        raise _unfit("int8", _LARGEST)
    peaks[peaks < _SMALLEST] = 0
    bits = (peaks / np.float32(127)).view(np.uint32)
    scales: Float32s = ((bits + np.uint32(_LOW_BITS)) & ~np.uint32(_LOW_BITS)).view(np.float32)
    divisors = np.where(scales > 0, scales, np.float32(np.inf))
    codes = np.rint(vectors / divisors[:, None]).astype(np.int8)
    stored_scales = scales.astype("<f4").view(np.uint8).reshape(len(vectors), _SCALE_BYTES)
    return _kind_and(_INT8, np.concatenate([stored_scales, codes.view(np.uint8)], axis=1))


def _kind_and(kind: int, rows: Bytes) -> Bytes:
    return np.concatenate([np.full((len(rows), 1), kind, np.uint8), rows], axis=1)


def _unfit(storage: str, largest: float) -> OnlineStoreError:
    return OnlineStoreError(
        f"A vector to be stored as {storage} holds a number that is not finite, or beyond {largest:g}: "
        "declare the view with storage='float32', or train its encoder again."
    )

"""Lengths of time as people write them: ``"15m"``, ``"6h"``, ``"1d"``."""

from __future__ import annotations

import re

from feast_embeddings.models.errors import DeclarationError

_UNITS_US = {"s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000, "w": 604_800_000_000}


def duration_us(text: str, where: str = "duration") -> int:
    """Microseconds in ``text``, a positive number and one of s, m, h, d, w.

    Raises:
        DeclarationError: It does not read so, or is not positive; the message starts with ``where``.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhdw])", text) if isinstance(text, str) else None
    length = round(float(match[1]) * _UNITS_US[match[2]]) if match else 0
    if length <= 0:
        raise DeclarationError(
            f"{where}: {text!r} is not a positive length of time: write for example '15m', '6h' or '1d'."
        )
    return length

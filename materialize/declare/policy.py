"""Update policies: when to encode what, and how old and new vectors blend.

With e the encoder's output at the end of a tick, for every entity with behaviors in it::

    new = α · old + (1 − α) · e          the first vector of an entity is e

α is a constant, or 2^(−Δt / half_life) with Δt the time since the entity's last update. Blends are not
renormalized; entities without behaviors stay as they are.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Literal

import numpy as np

from feast_embeddings.models.errors import DeclarationError
from feast_embeddings.models.types import Float32s, Int64s
from feast_embeddings.transformations.behaviors import duration_us

Context = Literal["window", "new"]


@dataclass(frozen=True)
class Incremental:
    """Encode the entities that behaved, tick by tick.

    Attributes:
        every: Length of a tick, such as ``"1d"``, ``"6h"``, ``"15m"``.
        alpha: Weight of the old vector, in [0, 1]. Default 0: the new vector replaces the old one.
        half_life: Instead of ``alpha``: the time after which an old vector weighs one half.
        context: ``"window"`` encodes the last behaviors of an entity, up to the encoder's context;
            ``"new"`` encodes only those of the tick, the cheapest: the blend carries the past.

    Raises:
        DeclarationError: ``every`` or ``half_life`` is not positive, ``alpha`` is outside [0, 1], or both
            ``alpha`` and ``half_life`` are given.
    """

    every: str = "1d"
    alpha: float | None = None
    half_life: str | None = None
    context: Context = "window"

    def __post_init__(self) -> None:
        duration_us(self.every, "Incremental(every=…)")
        if self.context not in ("window", "new"):
            raise DeclarationError(f"Incremental(context={self.context!r}) is unknown: use 'window' or 'new'.")
        if self.alpha is not None and self.half_life is not None:
            raise DeclarationError(
                f"Incremental(alpha={self.alpha}, half_life={self.half_life!r}) gives two blends: keep one of them."
            )
        if self.alpha is not None and not 0.0 <= self.alpha <= 1.0:
            raise DeclarationError(
                f"Incremental(alpha={self.alpha}) is outside [0, 1]: choose the old vector's weight."
            )
        if self.half_life is not None:
            duration_us(self.half_life, "Incremental(half_life=…)")

    def alphas(self, elapsed_us: Int64s) -> Float32s:
        """Weights of the old vectors, float32 [n], for the times since their last updates, int64 [n] µs."""
        if self.half_life is None:
            return np.full(len(elapsed_us), self.alpha or 0.0, np.float32)
        half_life = duration_us(self.half_life, "Incremental(half_life=…)")
        return np.exp2(-np.maximum(elapsed_us, 0) / half_life).astype(np.float32)


@dataclass(frozen=True)
class Full:
    """Encode every entity's last behaviors into a new fill, then cut over to it. Discards blends.

    Attributes:
        every: Time between refreshes, such as ``"7d"``.
    """

    every: str = "7d"

    def __post_init__(self) -> None:
        duration_us(self.every, "Full(every=…)")


@dataclass(frozen=True)
class Hybrid:
    """Incremental ticks, and a full refresh when its period is over or a new encoder is declared.

    Attributes:
        every, alpha, half_life, context: As in :class:`Incremental`.
        full_every: Time between full refreshes; at least one tick long.
    """

    every: str = "1d"
    alpha: float | None = None
    half_life: str | None = None
    context: Context = "window"
    full_every: str = "7d"

    def __post_init__(self) -> None:
        tick = duration_us(self.incremental.every, "Hybrid(every=…)")
        if duration_us(self.full_every, "Hybrid(full_every=…)") < tick:
            raise DeclarationError(
                f"Hybrid(every={self.every!r}, full_every={self.full_every!r}) refreshes more often than it ticks: "
                "use Full(every=…), or a longer full_every."
            )

    @property
    def incremental(self) -> Incremental:
        """The policy of its ticks."""
        return Incremental(self.every, self.alpha, self.half_life, self.context)


Policy = Incremental | Full | Hybrid
_KINDS: dict[str, type[Incremental] | type[Full] | type[Hybrid]] = {
    kind.__name__: kind for kind in (Incremental, Full, Hybrid)
}


def ticks_of(policy: Policy) -> Incremental:
    """How the ticks of a view encode and blend, a stream's too, also where its policy is ``Full``."""
    if isinstance(policy, Hybrid):
        return policy.incremental
    return policy if isinstance(policy, Incremental) else Incremental()


def policy_to_json(policy: Policy) -> str:
    """The policy as JSON, as it stands in a view's tags."""
    return json.dumps({"policy": type(policy).__name__, **asdict(policy)}, sort_keys=True)


def policy_from_json(text: str) -> Policy:
    """Read a policy back; raises DeclarationError where it is not one."""
    try:
        given = json.loads(text)
        return _KINDS[given.pop("policy")](**given)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DeclarationError(f"The policy {text!r} cannot be read ({error}): run `feast apply` again.") from error


def describe(policy: Policy) -> str:
    """The policy as Python: its periods, and what is not at its default."""
    given = [(each.name, getattr(policy, each.name), each.default) for each in fields(policy)]
    shown = [
        f'{name}="{value}"' if isinstance(value, str) else f"{name}={value}"
        for name, value, default in given
        if value != default or name.endswith("every")
    ]
    return f"{type(policy).__name__}({', '.join(shown)})"


def blend(old: Float32s, extracted: Float32s, alphas: Float32s, found: np.ndarray) -> Float32s:
    """``α · old + (1 − α) · extracted``, row by row, in float32.

    Args:
        old: float32 [n, dim]; rows that were not found are ignored.
        extracted: float32 [n, dim].
        alphas: float32 [n].
        found: bool [n]; where False the result is ``extracted`` (an entity's first vector).
    """
    weight = np.where(found, alphas, np.float32(0.0)).astype(np.float32)[:, None]
    mixed = weight * old + (np.float32(1.0) - weight) * extracted
    # α = 0 must return the extracted bits, and α = 1 the old ones, signed zeros included.
    return np.select([weight == 0.0, weight == 1.0], [extracted, old], mixed).astype(np.float32, copy=False)


@dataclass(frozen=True)
class Due:
    """A unit of work that is due: behaviors with event time in [start, end); no start for the first one."""

    kind: Literal["incremental", "full"]
    start_us: int | None
    end_us: int


def due(policy: Policy, *, watermark_us: int | None, full_us: int | None, end_us: int, new_space: bool) -> list[Due]:
    """Units of work due up to ``end_us``, in order.

    Args:
        policy: The declared policy.
        watermark_us: End of the last unit, or None where there was none: the first one is a full refresh.
        full_us: End of the last full refresh.
        end_us: The time up to which to run.
        new_space: The declared encoder's space is not the live one.
    """
    if watermark_us is None:
        return [Due("full", None, end_us)]
    if isinstance(policy, Full):
        last = _last_boundary(full_us or watermark_us, duration_us(policy.every), end_us)
        return [Due("full", watermark_us, last)] if last > watermark_us else []
    refresh = _refresh_due(policy, watermark_us, full_us or watermark_us, end_us, new_space)
    start = watermark_us if refresh is None else refresh
    step = duration_us(policy.every)
    ticks = [Due("incremental", at, at + step) for at in range(start, end_us - step + 1, step)]
    return ticks if refresh is None else [Due("full", watermark_us, refresh), *ticks]


def _last_boundary(origin_us: int, step_us: int, end_us: int) -> int:
    return origin_us + max(end_us - origin_us, 0) // step_us * step_us


def _refresh_due(
    policy: Incremental | Hybrid, watermark_us: int, full_us: int, end_us: int, new_space: bool
) -> int | None:
    """As of when a hybrid policy refreshes everything, if it is due; what lies before needs no tick."""
    if isinstance(policy, Incremental):
        return None
    if new_space:
        return _last_boundary(watermark_us, duration_us(policy.every), end_us)
    last = _last_boundary(full_us, duration_us(policy.full_every), end_us)
    return last if last > full_us and last >= watermark_us else None

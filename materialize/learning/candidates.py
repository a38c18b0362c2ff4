"""What is replayed and what comes of it: candidates, questions, vectors and costs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from feast_embeddings.materialize.declare import Due, Hybrid, Incremental, Policy, due
from feast_embeddings.models.errors import DeclarationError
from feast_embeddings.models.types import Bools, Float32s, Int64s
from feast_embeddings.transformations.behaviors import duration_us


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to keep vectors.

    Attributes:
        name: For tables.
        policy: As a view declares it.
        cached: Whether attention's state is kept per entity, so that a tick computes only what is new. Only for a
            `SequenceEncoder` under ``Incremental(context="window")`` with α 0: the vectors are the same within 1e-5.
        min_new: An entity is encoded once so many behaviors wait; 1 is what a declared policy does.

    Raises:
        DeclarationError: ``cached`` with a policy that it does not fit.
    """

    name: str
    policy: Policy
    cached: bool = False
    min_new: int = 1

    def __post_init__(self) -> None:
        exact = isinstance(self.policy, Incremental) and self.policy.context == "window"
        if self.cached and not (exact and not self.policy.alpha and self.policy.half_life is None):  # type: ignore[union-attr]
            raise DeclarationError(f"Candidate {self.name!r}: cached=True is for Incremental(context='window') of α 0.")

    @property
    def declarable(self) -> bool:
        """Whether a view's policy alone declares it."""
        return not self.cached and self.min_new == 1


@dataclass(frozen=True, slots=True)
class Questions:
    """Who is asked about, and when: rows of entities, int64 [Q], and times, int64 [Q] microseconds."""

    entities: Int64s
    asked_us: Int64s


@dataclass(slots=True)
class Spent:
    """What a candidate took from the start on, the first refresh aside.

    Attributes:
        units: Ticks and refreshes.
        histories: Histories encoded.
        behaviors: Behaviors that went through the encoder.
        seconds: Of encoding, on this machine: of about ten whole units, scaled to all behaviors.
    """

    units: int = 0
    histories: int = 0
    behaviors: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a candidate would have served.

    Attributes:
        candidate: Which.
        vectors: Of each question, float32 [Q, dim]; zeros where there is none.
        found: bool [Q].
        behind: int64 [Q], behaviors before the question that had not reached the vector's tick.
        spent: Its cost.
        state_bytes: Per entity with a vector: the vector, and what the next tick reads to make the next one.
    """

    candidate: Candidate
    vectors: Float32s
    found: Bools
    behind: Int64s
    spent: Spent
    state_bytes: float


def scheduled(policy: Policy, start_us: int, end_us: int) -> Iterator[tuple[int, Due]]:
    """When jobs that run every ``policy.every`` do what, after a full refresh as of ``start_us``, up to ``end_us``."""
    watermark = full = start_us
    step = duration_us(policy.every)
    for now in range(start_us + step, end_us + 1, step):
        for unit in due(policy, watermark_us=watermark, full_us=full, end_us=now, new_space=False):
            yield now, unit
            watermark = unit.end_us
            full = unit.end_us if unit.kind == "full" else full


def incremental_of(policy: Policy) -> Incremental:
    """The policy of the ticks of a policy."""
    if isinstance(policy, Hybrid):
        return policy.incremental
    return policy if isinstance(policy, Incremental) else Incremental()

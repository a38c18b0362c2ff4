"""Rows of the ledger, as the rest of the package sees them; times are microseconds since the epoch, UTC."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

RECEIVING: Final = ("live", "retained", "ready")
"""States of the fills that ticks go into."""


Ranges = Mapping[int, tuple[int, int]]
"""Partition → first and last offset."""


LONGEST_FILL: Final = 64
"""Letters of a fill's name."""


@dataclass(frozen=True)
class Tick:
    """A numbered unit of work. Its membership never changes once recorded.

    Attributes:
        view: The embedding view.
        number: Counts up per view, batch ticks, micro-batches and refreshes together.
        kind: ``"incremental"`` or ``"full"``.
        state: ``"recorded"``, ``"written"``, ``"published"`` or ``"abandoned"``.
        start_us, end_us: Members have event time in [start, end); no start: all before the end.
        created_from_us, created_until_us: Where the source has a created time: members were created before
            the second, and late ones (event time before the start) at or after the first.
        fills: The fills that it writes.
        members, digest: Count and digest of its accepted behaviors, once read.
        kept: Behaviors that it keeps of each history: the longest context among the encoders then in use.
        window_start_us, published_us: The publish window; within it, either vector may be read.
        rows: Rows of vectors that it holds.
        encoded: Histories or items that were encoded for it.
        lane, source, ranges: Of a stream's micro-batch, whose members are messages: the lane that formed it, as
            ``"0/2"``, the name of the stream, and the offsets. Its end is when it was formed.
    """

    view: str
    number: int
    kind: str
    state: str
    start_us: int | None
    end_us: int
    created_from_us: int | None
    created_until_us: int
    fills: tuple[str, ...]
    members: int | None
    digest: str | None
    kept: int | None
    window_start_us: int | None
    published_us: int | None
    rows: int
    encoded: int
    lane: str | None = None
    source: str = ""
    ranges: Ranges = field(default_factory=dict)

    @classmethod
    def of(cls, row: Any) -> Tick:
        """A tick, from its row in the ledger."""
        read = {
            "number": row["tick"],
            "fills": tuple(json.loads(row["fills"])),
            "source": row["source"] or "",
            "ranges": ranges_from_json(row["ranges"] or "{}"),
        }
        return cls(**{key: row[key] for key in cls.__dataclass_fields__ if key in row} | read)

    @property
    def streamed(self) -> bool:
        """Whether it is a micro-batch of a stream."""
        return self.lane is not None

    @property
    def series(self) -> str:
        """Which ticks of its view it is one of that are written one after the other: a lane's, jobs', or refreshes."""
        return self.lane or ("refreshes" if self.kind == "full" else "ticks")

    @property
    def positions(self) -> dict[int, int]:
        """A micro-batch's last offset of each partition."""
        return {partition: last for partition, (_, last) in self.ranges.items()}

    def bridges(self, refresh: Tick) -> bool:
        """Whether this tick brought the members of a refresh that was still being made to the fills in use."""
        bounds = (self.end_us, self.created_until_us) == (refresh.end_us, refresh.created_until_us)
        return bounds and self.kind == "incremental" and not self.streamed and self.number > refresh.number


def fill_name(view: str, number: int, space: str) -> str:
    """The name of the fill that a refresh makes; a long view's is told apart by a digest, not by its whole name."""
    end = f"-{number}-{space[:8]}"
    if len(view) + len(end) <= LONGEST_FILL:
        return view + end
    return f"{view[:20]}-{hashlib.blake2b(view.encode(), digest_size=8).hexdigest()}{end}"


def ranges_to_json(ranges: Ranges) -> str:
    """Ranges as the ledger keeps them."""
    return json.dumps({str(partition): list(bounds) for partition, bounds in sorted(ranges.items())})


def ranges_from_json(text: str) -> dict[int, tuple[int, int]]:
    """The inverse of :func:`ranges_to_json`."""
    return {int(partition): (first, last) for partition, (first, last) in json.loads(text).items()}


@dataclass(frozen=True)
class Space:
    """A vector space, and the dtype and backend that its vectors were computed on."""

    space: str
    encoder: str
    dim: int
    numeric_path: str
    registered_us: int


@dataclass(frozen=True)
class Fill:
    """All vectors of one view in one space, as the online store holds them."""

    fill: str
    view: str
    encoder: str
    space: str
    state: str
    tick: int
    rows: int
    made_us: int


@dataclass(frozen=True)
class Generation:
    """A manifest {view → fill} of an encoder; ``cutover_us`` is None while the switch is still to be done."""

    encoder: str
    generation: int
    fills: Mapping[str, str]
    rollback: bool
    window_start_us: int | None
    cutover_us: int | None


@dataclass(frozen=True)
class Serving:
    """From ``from_us`` on, reads of ``space`` in a view returned rows of ``fill``."""

    from_us: int
    window_start_us: int
    fill: str
    space: str

"""Deduplication, and the causal rules against bots, bursts and cancelled behaviors.

Every rule is causal: whether a behavior is refused as a bot's or a burst's depends only on behaviors before
it. A cancellation is the one exception by nature: it takes back a behavior that was accepted until then.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from feast_embeddings.models.errors import DeclarationError
from feast_embeddings.models.types import Bools, Int64s
from feast_embeddings.transformations.behaviors.contract import BehaviorContract
from feast_embeddings.transformations.behaviors.ordering import lex_order, rank_in_run, ranks, starts_of_runs
from feast_embeddings.transformations.behaviors.table import Behaviors, content_keys
from feast_embeddings.transformations.behaviors.times import DAY_US

BOT, BURST, CANCELLATION, CANCELLED = "bot", "burst", "cancellation", "cancelled"
_LAST_TIME = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True)
class CleaningRules:
    """Which accepted-looking behaviors are not to count.

    Attributes:
        max_per_day: An entity's behaviors beyond this number within one UTC day are a bot's; None for no
            limit.
        burst: ``(n, seconds)``: an entity's behaviors beyond n within one window of so many seconds. Windows
            are aligned to midnight UTC, so ``seconds`` divides a day. None for no limit.
        cancellations: Whether behavior types that cancel others do so; if not, they are behaviors like any
            other.

    Raises:
        DeclarationError: A limit is below 1, or the window does not divide a day.
    """

    max_per_day: int | None = None
    burst: tuple[int, int] | None = None
    cancellations: bool = True

    def __post_init__(self) -> None:
        if self.max_per_day is not None and self.max_per_day < 1:
            raise DeclarationError(f"max_per_day is {self.max_per_day}; allow 1 or more, or None for no limit.")
        if self.burst is None:
            return
        object.__setattr__(self, "burst", tuple(self.burst))
        if len(self.burst) != 2 or self.burst[0] < 1 or self.burst[1] < 1 or 86_400 % self.burst[1]:
            raise DeclarationError(
                f"burst is {self.burst}; give (behaviors, seconds), both 1 or more, where the seconds "
                "divide a day, "
                "such as (20, 60)."
            )

    def to_json(self) -> str:
        """The rules as JSON with sorted keys."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> CleaningRules:
        """The rules that ``to_json`` wrote.

        Raises:
            DeclarationError: The text is not that of cleaning rules.
        """
        try:
            return cls(**json.loads(text))
        except (TypeError, ValueError) as error:
            raise DeclarationError(f"The JSON is not that of cleaning rules: {error}; use to_json().") from error


def clean(behaviors: Behaviors, contract: BehaviorContract, rules: CleaningRules) -> Behaviors:
    """The behaviors that the rules leave; see ``prepare`` for the whole chain with its counts."""
    reasons = refusals(behaviors.table, contract, rules)
    return behaviors.select(np.asarray(reasons == "", dtype=np.bool_))


def deduplicate(table: pa.Table, is_context: Bools) -> tuple[Int64s, Bools]:
    """Finds rows that repeat another.

    Rows with one dedup id are one behavior, of which the first by created time, then content, stays. Rows
    without a dedup id are one behavior if all canonical columns are equal. Context rows come before all
    others: they have been applied.

    Args:
        table: Canonical columns [N].
        is_context: bool [N].

    Returns:
        The rows in the order of ``Behaviors`` (ties by created time and dedup id, so that it depends on
        content alone), int64 [N], and which rows repeat another, bool [N], in the order of ``table``.
    """
    content, created, dedup = content_keys(table), _created_keys(table), ranks(table["dedup_id"])
    repeated = np.zeros(table.num_rows, dtype=np.bool_)
    sorted_rows = lex_order(*content, created, dedup, ~is_context)
    repeated[sorted_rows] = ~starts_of_runs(*(key[sorted_rows] for key in (*content, created, dedup)))
    named = np.flatnonzero(dedup > 0)
    if len(named):
        keys = (dedup, ~is_context, created, *content)
        order = named[lex_order(*(key[named] for key in keys))]
        repeated[order] = ~starts_of_runs(dedup[order])
    return sorted_rows, repeated


def refusals(table: pa.Table, contract: BehaviorContract, rules: CleaningRules) -> npt.NDArray[np.object_]:
    """Why each row is no behavior: a reason, or "" where it is one: str [N].

    Bots and bursts are judged on all behaviors but cancellations, each rule by itself; cancellations then act
    on what is left.

    Args:
        table: Canonical columns, deduplicated, in the order of ``Behaviors``.
        contract: Which types cancel which.
        rules: What does not count.
    """
    reasons = np.full(table.num_rows, "", dtype=object)
    entity, times, items, types, _ = content_keys(table)
    entity, times, items, codes = (np.asarray(key, dtype=np.int64) for key in (entity, times, items, types))
    cancels = contract.cancellations if rules.cancellations else {}
    acts = np.flatnonzero(~np.isin(codes, list(cancels)))
    if rules.burst is not None:
        limit, seconds = rules.burst
        reasons[_beyond(acts, entity, times // (seconds * 1_000_000), limit)] = BURST
    if rules.max_per_day is not None:
        reasons[_beyond(acts, entity, times // DAY_US, rules.max_per_day)] = BOT
    for cancelling, cancelled in cancels.items():
        rows = np.flatnonzero(((codes == cancelling) | (codes == cancelled)) & (reasons == ""))
        is_cancellation = codes[rows] == cancelling
        taken_back = _taken_back(entity[rows], items[rows], times[rows], is_cancellation)
        reasons[rows[is_cancellation]] = CANCELLATION
        reasons[rows[taken_back]] = CANCELLED
    return reasons


def _beyond(rows: Int64s, entity: Int64s, window: Int64s, limit: int) -> Int64s:
    """Those of ``rows`` (in order of entity and time) that come after the first ``limit`` of their window."""
    starts = starts_of_runs(entity[rows], window[rows])
    return rows[rank_in_run(starts) >= limit]


def _taken_back(entity: Int64s, items: Int64s, times: Int64s, is_cancellation: Bools) -> Bools:
    """Which rows are behaviors that a later cancellation takes back: bool [N].

    Each (entity, item) is a stack: a behavior is put on it, a cancellation takes the topmost off, if there is
    one. The height of each stack is the running sum of +1 and −1, lifted wherever it would fall below zero. A
    behavior that reaches height h and the next cancellation that leaves height h belong together.
    """
    order = lex_order(entity, items, times, is_cancellation)
    cancelling = is_cancellation[order]
    starts = starts_of_runs(entity[order], items[order])
    group = np.cumsum(starts, dtype=np.int64)
    step = np.where(cancelling, -1, 1).astype(np.int64)
    height, missed = _heights(step, starts, group)
    level = np.where(cancelling, height + 1, height)
    live = np.flatnonzero(~missed)
    stacked = live[lex_order(group[live], level[live])]
    followed = np.zeros(len(stacked), dtype=np.bool_)
    followed[:-1] = ~starts_of_runs(group[stacked], level[stacked])[1:] & cancelling[stacked][1:]
    result = np.zeros(len(order), dtype=np.bool_)
    result[order[stacked[followed & ~cancelling[stacked]]]] = True
    return result


def _heights(step: Int64s, starts: Bools, group: Int64s) -> tuple[Int64s, Bools]:
    """Height of the stack after each step, and which cancellations found it empty."""
    total = np.cumsum(step)
    before_group = (total - step)[starts][group - 1]
    total = total - before_group
    # Groups further on start lower than any earlier one ended, so that one running minimum serves them all.
    drop = group * (len(step) + 1)
    floor = np.minimum.accumulate(np.minimum(total, 0) - drop) + drop
    previous = np.concatenate([[0], floor[:-1]])
    previous[starts] = 0
    return total - floor, np.asarray(floor < previous, dtype=np.bool_)


def _created_keys(table: pa.Table) -> Int64s:
    """Created times that compare as numbers, null last."""
    return np.asarray(table["created_time"].cast(pa.int64()).fill_null(_LAST_TIME).to_numpy(), dtype=np.int64)

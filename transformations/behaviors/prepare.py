"""From raw rows to behaviors: validate → deduplicate → clean, every row accounted for."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from feast_embeddings.models.encoder import ValueNormalizer
from feast_embeddings.models.errors import BehaviorSourceError
from feast_embeddings.models.types import Bools
from feast_embeddings.transformations.behaviors.cleaning import CleaningRules, deduplicate, refusals
from feast_embeddings.transformations.behaviors.contract import BehaviorContract
from feast_embeddings.transformations.behaviors.table import Behaviors
from feast_embeddings.transformations.behaviors.validate import quarantine_rows, validate


@dataclass(frozen=True, slots=True)
class Counts:
    """Where every row read went.

    Law: ``read == accepted + deduplicated + erased + sum(quarantined.values())``.

    Attributes:
        read: Raw rows, without context.
        accepted: Behaviors.
        deduplicated: Rows that repeat a behavior, of this table or of the context.
        quarantined: Rows per reason.
        erased: Rows of erased entities, left out before anything else; ``prepare`` itself knows of none.
    """

    read: int
    accepted: int
    deduplicated: int
    quarantined: dict[str, int] = field(default_factory=dict)
    erased: int = 0


@dataclass(frozen=True, slots=True)
class Prepared:
    """What ``prepare`` makes of raw rows.

    Attributes:
        behaviors: The accepted behaviors.
        quarantined: The refused rows as text, with their reasons: ``validate.QUARANTINE_SCHEMA``.
        counts: Where every row went.
        normalization: Kind, mean and scale of the normalizer that made ``normalized_value``, if one was
            given.
    """

    behaviors: Behaviors
    quarantined: pa.Table
    counts: Counts
    normalization: dict[str, Any] | None = None


def prepare(
    raw: pa.Table,
    contract: BehaviorContract,
    rules: CleaningRules,
    now_us: int,
    *,
    context: pa.Table | None = None,
    normalizer: ValueNormalizer | None = None,
) -> Prepared:
    """Validates, deduplicates and cleans raw rows; the result does not depend on their order.

    Args:
        raw: The contract's source columns, as ``read_behaviors`` returns them.
        contract: What the columns mean.
        rules: Which behaviors do not count.
        now_us: Present time, microseconds since the epoch, UTC.
        context: Raw rows that earlier jobs have dealt with. They inform the rules and the deduplication, and
            are neither counted nor returned. Daily rules, bursts and exact duplicates need the rows from the
            start of the UTC day of the earliest raw row; a cancellation needs the behavior that it takes
            back.
        normalizer: Fitted on earlier values; adds the column ``normalized_value``.

    Raises:
        BehaviorSourceError: A column is missing or of a type that cannot mean what the contract says.
    """
    ours = validate(raw, contract, now_us)
    # raw row of each canonical row; -1 for context
    table, rows = ours.table, ours.rows
    if context is not None and context.num_rows:
        before = validate(context, contract, now_us).table
        table = pa.concat_tables([before, table])
        rows = np.concatenate([np.full(before.num_rows, -1, dtype=np.int64), rows])
    order, repeated = deduplicate(table, rows < 0)
    order = order[~repeated[order]]
    kept, kept_rows = table.take(pa.array(order)), rows[order]
    reasons = refusals(kept, contract, rules)
    member = kept_rows >= 0
    accepted = member & np.asarray(reasons == "", dtype=np.bool_)
    refused = member & ~accepted
    behaviors = Behaviors.from_sorted(kept.filter(pa.array(accepted)))
    bad_rows = np.concatenate([ours.bad_rows, kept_rows[refused]])
    bad_reasons = ours.reasons + list(reasons[refused])
    if normalizer is not None:
        behaviors = behaviors.with_normalized_values(normalizer)
    return Prepared(
        behaviors,
        quarantine_rows(raw, contract, bad_rows, bad_reasons),
        _counts(raw, behaviors, repeated & (rows >= 0), bad_reasons),
        None if normalizer is None else normalizer.to_json(),
    )


def _counts(raw: pa.Table, behaviors: Behaviors, repeated: Bools, reasons: list[str]) -> Counts:
    counts = Counts(
        read=raw.num_rows,
        accepted=len(behaviors),
        deduplicated=int(np.count_nonzero(repeated)),
        quarantined=dict(sorted(Counter(reasons).items())),
    )
    found = counts.accepted + counts.deduplicated + len(reasons)
    if counts.read != found:
        raise BehaviorSourceError(
            f"Of {counts.read} rows read, {found} are accounted for: {counts}. This is a fault of the "
            "package; "
            "nothing was applied."
        )
    return counts

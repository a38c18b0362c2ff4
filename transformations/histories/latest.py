"""The latest behavior of an entity as of any time, by the one total order of behaviors."""

from __future__ import annotations

from typing import Final

import numpy as np
import pyarrow as pa

from feast_embeddings.models.types import Ids, Int64s
from feast_embeddings.transformations.behaviors import BehaviorContract, Behaviors
from feast_embeddings.transformations.histories.histories import pair_times, segments_before

LATEST_FEATURES: Final = {"item": "item_id", "behavior_type": "behavior_type", "value": "value"}
"""Canonical column → feature of a behaviors view."""


def latest_rows(
    behaviors: Behaviors, entities: Ids, as_of_us: int | Int64s, written_us: Int64s | None = None
) -> Int64s:
    """The row of each entity's latest behavior at or before its time; of several at one time, the last in order.

    Args:
        behaviors: Everything that may count.
        entities: Ids [B], repeated and unknown ones allowed.
        as_of_us: One time for all or int64 [B], microseconds since the epoch, UTC.
        written_us: When each behavior was written, int64 [N]: what was written after the time is not known yet.

    Returns:
        Row numbers int64 [B]; -1 where there is none.
    """
    times = pair_times(entities, as_of_us)
    start, end = segments_before(behaviors, entities, times + 1)
    row = end - 1
    while written_us is not None and len(written_us):
        unknown = (row >= start) & (written_us[row] > times)
        if not unknown.any():
            break
        row -= unknown
    return np.where(row >= start, row, -1)


def latest(behaviors: Behaviors, contract: BehaviorContract, rows: Int64s) -> pa.Table:
    """The features of ``rows``, int64 [B]: those of ``LATEST_FEATURES`` that the contract has; null for row -1."""
    table = behaviors.table.take(pa.array(rows, mask=rows < 0))
    names = pa.array(contract.type_names, pa.string())
    columns = {"item": table["item"], "behavior_type": names.take(table["behavior_type"]), "value": table["value"]}
    return pa.table({LATEST_FEATURES[role]: columns[role] for role in columns if role in contract.columns})

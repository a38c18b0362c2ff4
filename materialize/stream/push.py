"""Behaviors on their way into the stream: those that ``store.push`` and ``feast serve`` hand over among them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from feast import FeatureView

from feast_embeddings.materialize.clock import us_of
from feast_embeddings.materialize.online import stream_key
from feast_embeddings.materialize.serving import PUSHED
from feast_embeddings.materialize.stream.redis_streams import FIELD, agreed_partitions
from feast_embeddings.materialize.stream.source import partition_of
from feast_embeddings.transformations import BehaviorContract, contract_of
from feast_embeddings.transformations.views import tags

WriteRow = tuple[Any, dict[str, Any], datetime, datetime | None]
"""As Feast has it: entity key, values by feature, event time, created time."""

_ROLES = {"item_id": "item", "behavior_type": "behavior_type", "value": "value"}


def append_behaviors(
    client: Any,
    project: str,
    behaviors: str,
    partitions: int,
    entity_ids: Sequence[int | str],
    payloads: Sequence[bytes],
) -> None:
    """Append one payload per entity id, each to the stream of its entity's partition, in one pipeline."""
    keys = [stream_key(project, behaviors, partition) for partition in range(partitions)]
    pipe = client.pipeline(transaction=False)
    for entity_id, payload in zip(entity_ids, payloads, strict=True):
        pipe.execute_command("XADD", keys[partition_of(entity_id, partitions)], "*", FIELD, payload)
    pipe.execute()


def append_pushed(client: Any, project: str, table: FeatureView, rows: Sequence[WriteRow]) -> int:
    """Append the rows of a behaviors view to its stream, where it declares ``push``; nothing for any other view.

    Rows are taken as they are: what is no behavior is judged, counted and quarantined by whoever applies them.

    Delivery guarantee: at least once. One pipeline, not one transaction: after an error, some of the rows may be in
    the stream, and a caller that pushes all of them again repeats those; a tick counts equal behaviors once.

    Args:
        client: A redis-py client.
        project: Feast project.
        table: The view that is written to.
        rows: What Feast writes.

    Returns:
        How many were appended.

    Raises:
        redis.RedisError: The server cannot be reached, or refuses.
    """
    if tags.PUSHED not in (table.tags or {}) or not rows:
        return 0
    contract = contract_of(table)
    ids = [_plain(entity_key.entity_values[0]) for entity_key, *_ in rows]
    payloads = [_payload(contract, entity_id, row) for entity_id, row in zip(ids, rows, strict=True)]
    partitions = agreed_partitions(client, project, table.name)
    append_behaviors(client, project, table.name, partitions, ids, payloads)
    PUSHED.labels(table.name).inc(len(rows))
    return len(rows)


def _payload(contract: BehaviorContract, entity_id: int | str, row: WriteRow) -> bytes:
    """One behavior as JSON, under the names that the contract has for its columns."""
    _, values, happened, written = row
    found = {contract.entity: entity_id, contract.event_time: us_of(happened)}
    if contract.created_time is not None and written is not None:
        found[contract.created_time] = us_of(written)
    for feature, value in values.items():
        column = contract.columns.get(_ROLES.get(feature, ""))
        if column is not None:
            found[column] = _plain(value)
    return json.dumps(found, allow_nan=True).encode()


def _plain(value: Any) -> Any:
    kind = value.WhichOneof("val")
    plain = None if kind is None else getattr(value, kind)
    return None if plain != plain else plain  # pandas has NaN for a value that is not there

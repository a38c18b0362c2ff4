"""Behaviors on their way into the stream: those that ``store.push`` and ``feast serve`` hand over among them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import pyarrow as pa
from feast import FeatureView
from feast.protos.feast.types.Value_pb2 import Value as ValueProto

from feast_embeddings.materialize.clock import now_us, us_of
from feast_embeddings.materialize.online import stream_key
from feast_embeddings.materialize.serving import PUSHED
from feast_embeddings.materialize.stream.redis_streams import FIELD, agreed_partitions
from feast_embeddings.materialize.stream.source import partition_of
from feast_embeddings.models.errors import OnlineStoreError
from feast_embeddings.transformations import BehaviorContract, contract_of
from feast_embeddings.transformations.behaviors import TIMESTAMP, content_keys, lex_order, raw_schema, validate
from feast_embeddings.transformations.histories import LATEST_FEATURES
from feast_embeddings.transformations.views import tags

WriteRow = tuple[Any, dict[str, Any], datetime, datetime | None]
"""As Feast has it: entity key, values by feature, event time, created time."""

_ROLES = {feature: role for role, feature in LATEST_FEATURES.items()}
_RAW = {TIMESTAMP: pa.int64()}


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


def check_pushed(table: FeatureView, rows: Sequence[WriteRow]) -> None:
    """Refuses rows of a behaviors view that no store can hold, before any row has an effect.

    Raises:
        OnlineStoreError: A row has no entity or no event time.
    """
    for name, lacking in (
        (table.join_keys[0], [_plain(entity_key.entity_values[0]) is None for entity_key, *_ in rows]),
        (contract_of(table).event_time, [happened is None or happened != happened for _, _, happened, _ in rows]),
    ):
        if any(lacking):
            raise OnlineStoreError(
                f"Of {len(rows)} behaviors for view {table.name!r}, {sum(lacking)} have no {name}, the first of "
                f"them row {lacking.index(True)}: nothing was written. Leave those rows out, such as with "
                f"frame.dropna(subset=[{name!r}]), and push again."
            )


def newest_first(table: FeatureView, rows: Sequence[WriteRow]) -> list[WriteRow]:
    """Pushed rows of a behaviors view that are behaviors, the latest of each entity first; those of other views as is.

    Of rows of one time, Feast writes the first.
    """
    if (table.tags or {}).get(tags.KIND) != tags.BEHAVIORS_KIND or not rows:
        return list(rows)
    contract = contract_of(table)
    schema = raw_schema(contract)
    features = {contract.columns[role]: feature for feature, role in _ROLES.items() if role in contract.columns}
    columns: dict[str, list[Any]] = {name: [None] * len(rows) for name in schema.names}
    columns[contract.entity] = [_plain(entity_key.entity_values[0]) for entity_key, *_ in rows]
    columns[contract.event_time] = [us_of(happened) for _, _, happened, _ in rows]
    for column, feature in features.items():
        columns[column] = [_plain(values.get(feature, ValueProto())) for _, values, *_ in rows]
    arrays = [pa.array(columns[field.name], _RAW.get(field.type, field.type)).cast(field.type) for field in schema]
    judged = validate(pa.Table.from_arrays(arrays, schema=schema), contract, now_us())
    order = lex_order(*content_keys(judged.table))[::-1]
    return [rows[row] for row in judged.rows[order].tolist()]


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

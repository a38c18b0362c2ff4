"""The quarantine as a tool: what was refused and why, and the way back for rows that people have mended."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureStore

from feast_embeddings.materialize.clock import now_us
from feast_embeddings.materialize.declare import EmbeddingSpec, behaviors_of, source_of, user_spec
from feast_embeddings.materialize.files import PoisonMessages, Workspace, create, parts_folder
from feast_embeddings.materialize.online import OnlineServer
from feast_embeddings.materialize.stream import agreed_partitions, append_behaviors, decode
from feast_embeddings.models.errors import BehaviorSourceError, DeclarationError
from feast_embeddings.transformations import BehaviorContract, contract_of
from feast_embeddings.transformations.behaviors import QUARANTINE_SCHEMA, TIMESTAMP, entities_of, validate

_ROLES: Final = [name for name in QUARANTINE_SCHEMA.names if name != "reason"]


def refused(
    store: FeatureStore,
    view: str | None = None,
    reason: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> pa.Table:
    """Rows in quarantine, as text: view, tick, what the row held, and the reason; messages without their bytes.

    Args:
        store: The feature store.
        view: Only those of this embedding view.
        reason: Only those whose reason contains this text.
        since: Only those whose event time is at or after this one, UTC; rows without an event time are then left out.
        until: Only those whose event time is before this one, UTC; as ``since``.
    """
    workspace = Workspace.of(store.config)
    rows = workspace.quarantine().read(view)
    poison = PoisonMessages(workspace.state / "quarantine" / "messages")
    for name in poison.views() if view is None else [view]:
        rows = pa.concat_tables([rows, _as_rows(name, poison.read(name), rows.schema)])
    if reason is not None:
        rows = rows.filter(pc.match_substring(rows["reason"], reason))
    for bound, compare in ((since, pc.greater_equal), (until, pc.less)):
        if bound is not None:  # both are texts of one form, in UTC
            rows = rows.filter(compare(rows["event_time"], bound.strftime("%Y-%m-%d %H:%M:%S.%f")))
    return rows


def hand_back(store: FeatureStore, rows: pa.Table, view: str | None = None) -> int:
    """Hand mended rows of the quarantine back, as late behaviors: the next tick of their view applies them.

    Delivery guarantee: exactly once, also when run twice or stopped in between, because each row keeps its dedup id.

    Args:
        store: The feature store.
        rows: Columns of :func:`refused`, mended; others than the contract's roles are not read.
        view: The embedding view, where several are declared.

    Returns:
        How many behaviors were handed back; 0 where these very rows had been handed back before.

    Raises:
        BehaviorSourceError: A row is still no behavior; nothing was handed back.
        DeclarationError: The contract has no dedup id, by which a row is told from its copy; or the view has no
            stream, and its table no created time or no folder, without which ticks do not see what comes late, or
            the contract accepts the rows of the table by now.
        OnlineStoreError: Redis cannot be reached.
    """
    spec = user_spec(store, view)
    behaviors = behaviors_of(store.registry, store.project, spec)
    contract, workspace = contract_of(behaviors), Workspace.of(store.config)
    if contract.dedup_id is None:
        raise DeclarationError(
            f"Rows of view {spec.view!r} cannot be handed back exactly once: its contract has no dedup_id. Mend them "
            "in the behavior table, and run `feast materialize`, which reads it anew."
        )
    payloads = _payloads(rows, contract)
    raw = _judged(payloads, contract)
    if workspace.ledger.stream_end_us(spec.view) is not None:
        _append(store, spec, entities_of(raw, contract).to_pylist(), payloads)
        return len(raw)
    folder = parts_folder(str(workspace.root / source_of(behaviors).path))
    if contract.created_time is None or folder is None:
        raise DeclarationError(
            f"Rows of view {spec.view!r} cannot come late: ticks see such rows by their created time, in a folder of "
            "files, and its behaviors have no such "
            f"{'column' if contract.created_time is None else 'folder'}. Mend them in the behavior table, and run "
            "`feast materialize`, which reads it anew."
        )
    _check_originals(store, spec, contract, raw[contract.dedup_id])
    path = folder / f"handed-back-{hashlib.sha256(b''.join(payloads)).hexdigest()[:16]}.parquet"
    if path.exists():
        return 0
    written = pa.array(np.full(len(raw), now_us()), pa.int64()).cast(TIMESTAMP)
    at = raw.schema.get_field_index(contract.created_time)
    create(path, raw.set_column(at, contract.created_time, written.cast(raw.schema.field(at).type)))
    return len(raw)


def _as_rows(view: str, messages: pa.Table, schema: pa.Schema) -> pa.Table:
    reasons = [f"poison message: {reason}" for reason in messages["reason"].to_pylist()]
    known = {"view": [view] * len(reasons), "reason": reasons}
    columns = [pa.array(known.get(field.name, [None] * len(reasons)), field.type) for field in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def _payloads(rows: pa.Table, contract: BehaviorContract) -> list[bytes]:
    """Each row as a message has it, under the contract's names."""
    missing = [role for role in _ROLES if role in contract.columns and role not in rows.column_names]
    if missing:
        raise BehaviorSourceError(
            f"The mended rows have no column {missing[0]!r}: keep those that "
            "`feast-embeddings quarantine --export` writes."
        )
    return [json.dumps(_message(row, contract), sort_keys=True).encode() for row in rows.to_pylist()]


def _message(row: dict[str, Any], contract: BehaviorContract) -> dict[str, Any]:
    found = {contract.columns[role]: row[role] for role in _ROLES if role in contract.columns}
    value = found.get(contract.value or "")
    if isinstance(value, str):
        with suppress(ValueError):  # what is no number, the judge refuses
            found[contract.columns["value"]] = float(value)
    return found


def _judged(payloads: Sequence[bytes], contract: BehaviorContract) -> pa.Table:
    decoded = decode(payloads, contract)
    judged = validate(decoded.raw, contract, now_us())
    messages = decoded.message[judged.bad_rows].tolist()
    bad = decoded.poison | dict(zip(messages, judged.reasons, strict=True))
    unnamed = np.flatnonzero(decoded.raw[contract.columns["dedup_id"]].is_null().to_numpy())
    bad |= {int(decoded.message[row]): "dedup id missing" for row in unnamed}
    if bad:
        first = min(bad)
        raise BehaviorSourceError(
            f"{len(bad)} of {len(payloads)} rows are still no behaviors, so none was handed back; row {first + 1}: "
            f"{bad[first]}. Mend or remove them, and hand the rest back."
        )
    return decoded.raw


def _check_originals(
    store: FeatureStore, spec: EmbeddingSpec, contract: BehaviorContract, ids: pa.ChunkedArray
) -> None:
    """A copy of a row that the table holds as a behavior would count as its repetition, and never be applied."""
    rows = refused(store, spec.view)
    decoded = decode(_payloads(rows.filter(pc.is_in(rows["dedup_id"], ids.combine_chunks())), contract), contract)
    good = len(validate(decoded.raw, contract, now_us()).rows)
    if good:
        raise DeclarationError(
            f"{good} of these rows stand in the behavior table, and the contract of view {spec.view!r} takes them by "
            "now: run `feast materialize`, which reads the table anew and applies them."
        )


def _append(store: FeatureStore, spec: EmbeddingSpec, ids: list[Any], payloads: Sequence[bytes]) -> None:
    with OnlineServer.of(store.config).client() as client:
        partitions = agreed_partitions(client, store.project, spec.behaviors)
        append_behaviors(client, store.project, spec.behaviors, partitions, ids, payloads)

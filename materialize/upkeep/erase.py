"""Erasure: takes one entity out of everything this package keeps, and marks it so that nothing brings it back.

The tombstone is written first. Whatever stops the rest, the next run finishes; in between no tick applies the
entity's behaviors. The team's own tables are not this package's to rewrite, and the receipt says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from feast import Entity, FeatureStore, FileSource, RepoConfig, ValueType
from feast.errors import EntityNotFoundException
from rich.console import Console
from rich.table import Table

from feast_embeddings.materialize.clock import iso, now_us
from feast_embeddings.materialize.declare.views import EmbeddingSpec
from feast_embeddings.materialize.files.appended import erase_rows, parts_folder, parts_of
from feast_embeddings.materialize.files.behavior_log import BehaviorLog
from feast_embeddings.materialize.files.dead_letters import PoisonMessages
from feast_embeddings.materialize.files.workspace import Workspace, behaviors_of, embedding_specs
from feast_embeddings.materialize.ledger.offsets import StreamLedger
from feast_embeddings.materialize.ledger.records import RECEIVING
from feast_embeddings.materialize.ledger.tombstones import Tombstones
from feast_embeddings.materialize.online import keys
from feast_embeddings.materialize.online.stores import online_store_of
from feast_embeddings.materialize.online.versions import forget_changes, record_change
from feast_embeddings.materialize.online_store import EmbeddingOnlineStore
from feast_embeddings.materialize.upkeep.standstill import standstill
from feast_embeddings.models.errors import DeclarationError
from feast_embeddings.transformations.views.tags import ACTIVITY_KIND, KIND

_INTEGERS = (ValueType.INT64, ValueType.INT32)


@dataclass(frozen=True)
class Receipt:
    """What an erasure removed.

    Attributes:
        entity: Name of the entity.
        entity_id: Who was erased.
        erased_us: Behaviors up to this time, microseconds, are never applied again.
        removed: Place → rows removed there.
        left: Places that hold the entity still, and are not this package's to change.
    """

    entity: str
    entity_id: int | str
    erased_us: int
    removed: Mapping[str, int]
    left: Sequence[str]

    @property
    def total(self) -> int:
        """Rows removed, everywhere."""
        return sum(self.removed.values())


def forget(store: FeatureStore, entity: str, entity_id: int | str) -> Receipt:
    """Erase one entity: vectors of every fill, histories, ordinary features, logs, staged and quarantined rows.

    Behaviors of it that happened, or were written, up to now are dropped by every later tick, refresh, replay and
    retrieval, which count them as erased. One that happens after it is a new life, and is applied. An entity of item
    vectors has no behaviors: it stays away until its tombstone is removed. Can be repeated: that also erases what
    a new life has left.

    Args:
        store: The feature store.
        entity: Name of the entity, as declared.
        entity_id: Its id; text is read as an integer where the entity's ids are integers.

    Raises:
        DeclarationError: There is no such entity, or ``entity_id`` cannot be one of its ids.
        LeaseError: A job works on one of its views.
        OnlineStoreError: Redis cannot be reached; files are cleared already, run it again.
    """
    workspace, declared = Workspace.of(store.config), declared_entity(store, entity)
    online, found = online_store_of(store), entity_id_of(declared, entity_id)
    every = embedding_specs(store.registry, store.project)
    specs = sorted((spec for spec in every if spec.join_key == declared.join_key), key=lambda spec: spec.view)
    counts = _activity_views(store, declared.join_key)
    with standstill(workspace, store.project, specs, counts) as still_ours:
        erased_us = now_us()
        Tombstones(workspace.ledger, declared.join_key).record(found, erased_us)
        removed: dict[str, int] = {}
        for spec in specs:
            removed |= _erase_files(workspace, spec, found, still_ours)
            removed |= _erase_appended(workspace, store, spec)
        removed |= _erase_online(online, store.config, declared.join_key, found)
        _tell_readers(online, store.config, workspace, specs)
        streams = StreamLedger(workspace.ledger)
        streamed = [spec.view for spec in specs if streams.last_end_us(spec.view) is not None]
    return Receipt(entity, found, erased_us, removed, _left(store, declared, streamed))


def print_receipt(receipt: Receipt, console: Console | None = None) -> None:
    """Print what was removed where, and what is left to others."""
    console = console or Console()
    table = Table("place", "rows removed", title=f"Erased {receipt.entity} {receipt.entity_id}", title_justify="left")
    for place, rows in receipt.removed.items():
        table.add_row(place, f"{rows:,}")
    console.print(table)
    if not receipt.total:
        console.print("Nothing was left of it here.")
    console.print(f"Its behaviors up to {iso(receipt.erased_us)} are never applied again.")
    for place in receipt.left:
        console.print(f"Not changed: {place}", markup=False)


def _erase_files(
    workspace: Workspace, spec: EmbeddingSpec, entity_id: int | str, still_ours: Callable[[], None]
) -> dict[str, int]:
    logged, staged = workspace.log(spec).erase(entity_id, still_ours)
    removed = {f"embedding log of {spec.view}": logged, f"staged files of {spec.view}": staged}
    if spec.tower == "user":
        removed[f"quarantine of {spec.view}"] = workspace.quarantine().erase(spec.view, entity_id)
        messages = PoisonMessages(workspace.state / "quarantine" / "messages").erase(spec.view, entity_id)
        removed |= {f"refused messages of {spec.view}": messages} if messages else {}
    return removed


def _activity_views(store: FeatureStore, join_key: str) -> list[str]:
    """Views of an entity's counts: their jobs hold behaviors in memory, and would write the erased back."""
    views = store.registry.list_feature_views(store.project)
    return [view.name for view in views if (view.tags or {}).get(KIND) == ACTIVITY_KIND and join_key in view.join_keys]


def _erase_appended(workspace: Workspace, store: FeatureStore, spec: EmbeddingSpec) -> dict[str, int]:
    """Take its rows out of the files that the view's stream appended to the behavior log."""
    if spec.tower != "user":
        return {}
    log = BehaviorLog.of(behaviors_of(store.registry, store.project, spec), workspace.root, workspace.ledger)
    folder = parts_folder(log.path)
    appended = parts_of(folder, spec.view) if folder is not None else []
    if folder is None or not appended:
        return {}
    return {f"behaviors that the stream of {spec.view} appended": erase_rows(folder, spec.view, log.living)}


def _erase_online(
    online: EmbeddingOnlineStore, config: RepoConfig, join_key: str, entity_id: int | str
) -> dict[str, int]:
    """Remove the entity's whole key, of exactly this project; what stood in it, by view and fill."""
    ids = np.array([entity_id], np.int64 if isinstance(entity_id, int) else object)
    (key,) = keys.entity_keys(config.project, join_key, ids)
    with online.redis(config) as client:
        fields = client.hkeys(key)
        client.unlink(key)
    mark = keys.timestamp_field("")
    names = sorted(field[len(mark) :].decode() for field in fields if field.startswith(mark))
    return {f"Redis: {name}": 1 for name in names} or {"Redis": int(bool(fields))}


def _tell_readers(
    online: EmbeddingOnlineStore, config: RepoConfig, workspace: Workspace, specs: Sequence[EmbeddingSpec]
) -> None:
    """Who holds a copy of a fill reads it anew; the records of earlier changes, which name ids, are dropped."""
    with online.redis(config) as client:
        for spec in specs:
            for fill in workspace.ledger.fills(view=spec.view, states=RECEIVING):
                name = keys.qualified(spec.view, fill.fill)
                forget_changes(client, config.project, name)
                record_change(client, config.project, name, np.empty(0, np.int64))


def declared_entity(store: FeatureStore, name: str) -> Entity:
    """The entity of a name; raises DeclarationError, with the names there are, where there is none."""
    try:
        return store.registry.get_entity(name, store.project)
    except EntityNotFoundException as error:
        known = ", ".join(sorted(each.name for each in store.registry.list_entities(store.project))) or "none"
        raise DeclarationError(
            f"Project {store.project!r} declares no entity {name!r}; its entities: {known}. Name one of them, or run "
            "`feast apply`."
        ) from error


def entity_id_of(entity: Entity, entity_id: int | str) -> int | str:
    """An id as the entity has its ids; raises DeclarationError where it can be none."""
    if entity.value_type not in _INTEGERS:
        return str(entity_id)
    try:
        found = int(entity_id)
    except ValueError:
        found = 1 << 63
    if not -(1 << 63) <= found < 1 << 63:
        raise DeclarationError(
            f"Entity {entity.name!r} has integer ids, and {entity_id!r} is none: give the id as its views have it."
        )
    return found


def _left(store: FeatureStore, entity: Entity, streamed: Sequence[str]) -> list[str]:
    """What still holds the entity, in words."""
    views = [view for view in store.registry.list_feature_views(store.project) if entity.join_key in view.join_keys]
    sources = [view.batch_source for view in views if view.batch_source is not None]
    paths = sorted({source.path if isinstance(source, FileSource) else source.name for source in sources})
    return [
        *(f"your table {path}: delete its rows there" for path in paths),
        *(f"messages that wait in the stream of {view}: they are dropped when they are read" for view in streamed),
        "encoders that were trained on its behaviors: train again where that counts",
        "backups, and the files that Redis persists until it next writes them",
    ]

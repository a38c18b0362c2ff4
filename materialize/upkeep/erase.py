"""Erasure: takes one entity out of everything this package keeps, and marks it so that nothing brings it back.

The tombstone is written first. Whatever stops the rest, the next run finishes; in between no tick applies the
entity's behaviors. The team's own tables are not this package's to rewrite, and the receipt says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from feast import Entity, FeatureStore, FileSource

from feast_embeddings.materialize.clock import now_us
from feast_embeddings.materialize.declare import (
    EmbeddingSpec,
    declared_entity,
    embedding_specs,
    entity_id_of,
)
from feast_embeddings.materialize.files import PoisonMessages, Workspace, erase_rows, parts_folder, parts_of
from feast_embeddings.materialize.ledger import RECEIVING, Tombstones
from feast_embeddings.materialize.online import OnlineServer, record_erasure, remove_entity, stored_name
from feast_embeddings.materialize.upkeep.standstill import standstill
from feast_embeddings.transformations.views import ACTIVITY_KIND, KIND


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
    server, found = OnlineServer.of(store.config), entity_id_of(declared, entity_id)
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
        removed |= _erase_online(server, declared.join_key, found)
        _tell_readers(server, workspace, specs)
        streamed = [spec.view for spec in specs if workspace.ledger.stream_end_us(spec.view) is not None]
    return Receipt(entity, found, erased_us, removed, _left(store, declared, streamed))


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
    log = workspace.behavior_log(store.registry, store.project, spec)
    folder = parts_folder(log.path)
    appended = parts_of(folder, spec.view) if folder is not None else []
    if folder is None or not appended:
        return {}
    return {f"behaviors that the stream of {spec.view} appended": erase_rows(folder, spec.view, log.living)}


def _erase_online(server: OnlineServer, join_key: str, entity_id: int | str) -> dict[str, int]:
    """Remove the entity's whole key, of exactly this project; what stood in it, by view and fill."""
    return {f"Redis: {name}": 1 for name in remove_entity(server, join_key, entity_id)} or {"Redis": 0}


def _tell_readers(server: OnlineServer, workspace: Workspace, specs: Sequence[EmbeddingSpec]) -> None:
    """Who holds a copy of a fill reads it anew."""
    for spec in specs:
        for fill in workspace.ledger.fills(view=spec.view, states=RECEIVING):
            record_erasure(server, stored_name(spec.view, fill.fill))


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

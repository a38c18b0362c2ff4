"""Removal of a fill's, a view's, an entity's or a project's data from Redis: by exact project, in small steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import redis
from feast import FeatureView

from feast_embeddings.materialize.declare import kind_of
from feast_embeddings.materialize.online import keys
from feast_embeddings.materialize.online.keys import FillPlace
from feast_embeddings.materialize.online.server import OnlineServer
from feast_embeddings.materialize.online.versions import forget_all_changes, forget_changes
from feast_embeddings.transformations.views import tags

SCAN_COUNT: Final = 1000
PAUSE_SECONDS: Final = 0.001  # between steps, so that reads go first


@dataclass(frozen=True, slots=True)
class ScanPlace:
    """How far a removal came.

    Attributes:
        server: Which run of which server: a restarted one gives its keys another order.
        cursor: Where its scan goes on.
        seen: Keys looked at so far.
        keys: Keys that there were.
    """

    server: str
    cursor: int
    seen: int
    keys: int


def remove_fill(server: OnlineServer, place: FillPlace) -> None:
    """Removes a retired fill's fields from every entity of the project; can be repeated.

    Raises:
        OnlineStoreError: Redis cannot be reached.
    """
    for _ in fill_removal(server, place):
        time.sleep(PAUSE_SECONDS)


def fill_removal(
    server: OnlineServer, place: FillPlace, start: ScanPlace | None = None, count: int = SCAN_COUNT
) -> Iterator[ScanPlace | None]:
    """As :func:`remove_fill`, step by step: each looks at ``count`` keys, about.

    Yields where the next step begins; None where that is not known, as in a cluster, which has a cursor per node.
    ``start`` is such a place; one of another server means nothing, and the removal begins anew.
    """
    with server.client() as client:
        for batch, reached in _steps(client, server.project, place.join_key, start, count):
            with client.pipeline(transaction=False) as pipe:
                for key in batch:
                    pipe.hdel(key, *place.fields())
                pipe.execute()
            yield reached
    forget_changes(server, place.name)


def remove_view(server: OnlineServer, table: FeatureView, stored_name: str) -> None:
    """Removes a view's fields from every entity of the project; an embedding view's of all its fills.

    Raises:
        OnlineStoreError: Redis cannot be reached.
    """
    features = [feature.name for feature in table.features]
    if kind_of(table) == tags.EMBEDDING_KIND:
        features = [tags.EMBEDDING]  # the name that vectors are stored under
    prefix = keys.timestamp_field(keys.stored_name(table.name, ""))
    own = kind_of(table) is not None

    def fields_of(present: Sequence[bytes]) -> list[bytes]:
        fills = [name[len(b"_ts:") :].decode() for name in present if own and name.startswith(prefix)]
        return [field for name in (stored_name, *fills) for field in _fields_under(name, features)]

    with server.client() as client:
        _delete_fields(client, server.project, table.join_keys, fields_of)
    forget_all_changes(server, table.name)


def remove_records(server: OnlineServer, table: FeatureView) -> None:
    """Removes what is kept of an embedding view beside its rows: its encoder's manifest, and records of changes.

    Raises:
        OnlineStoreError: Redis cannot be reached.
    """
    if kind_of(table) == tags.EMBEDDING_KIND:
        with server.client() as client:
            server.manifests.delete(client, table.tags[tags.ENCODER])
    forget_all_changes(server, table.name)


def remove_entities(server: OnlineServer, join_keys: Sequence[str]) -> None:
    """Removes every entity with these join keys from the project, all views alike.

    Raises:
        OnlineStoreError: Redis cannot be reached.
    """
    with server.client() as client:
        for batch in entity_batches(client, server.project, join_keys):
            with client.pipeline(transaction=False) as pipe:
                for key in batch:
                    pipe.unlink(key)
                pipe.execute()


def remove_entity(server: OnlineServer, join_key: str, entity_id: int | str) -> list[str]:
    """Removes an entity's whole key; the stored names whose rows stood in it.

    Raises:
        OnlineStoreError: Redis cannot be reached.
    """
    ids = np.array([entity_id], np.int64 if isinstance(entity_id, int) else object)
    (key,) = keys.entity_keys(server.project, join_key, ids)
    with server.client() as client:
        fields = client.hkeys(key)
        client.unlink(key)
    mark = keys.timestamp_field("")
    return sorted(field[len(mark) :].decode() for field in fields if field.startswith(mark))


def entity_batches(client: Any, project: str, join_keys: Sequence[str]) -> Iterator[list[bytes]]:
    """The entity keys of exactly this project, in batches, with a pause after each."""
    batch: list[bytes] = []
    for key in client.scan_iter(keys.scan_pattern(project, join_keys), count=SCAN_COUNT):
        if keys.is_entity_key(key, project, join_keys):
            batch.append(key)
        if len(batch) == SCAN_COUNT:
            yield batch
            batch = []
            time.sleep(PAUSE_SECONDS)
    if batch:
        yield batch


def _steps(
    client: Any, project: str, join_key: str, start: ScanPlace | None, count: int
) -> Iterator[tuple[list[bytes], ScanPlace | None]]:
    """Entity keys, and where the scan goes on after them."""
    if not isinstance(client, redis.Redis):
        yield from ((batch, None) for batch in entity_batches(client, project, [join_key]))
        return
    one: Any = client  # whose commands have the types of both of redis-py's clients
    run, total = str(one.info("server")["run_id"]), int(one.dbsize())
    cursor, seen = (start.cursor, start.seen) if start is not None and start.server == run else (0, 0)
    while True:
        cursor, found = one.scan(cursor, match=keys.scan_pattern(project, [join_key]), count=count)
        seen += count
        batch = [key for key in found if keys.is_entity_key(key, project, [join_key])]
        yield batch, ScanPlace(run, cursor, seen, total) if cursor else None
        if not cursor:
            return


def _fields_under(name: str, features: Sequence[str]) -> list[bytes]:
    """All hash fields stored under ``name``."""
    values = [keys.feature_field(name, feature) for feature in features]
    return [*values, keys.timestamp_field(name)]


def _delete_fields(
    client: Any,
    project: str,
    join_keys: Sequence[str],
    fields_of: Callable[[Sequence[bytes]], list[bytes]],
) -> None:
    for batch in entity_batches(client, project, join_keys):
        with client.pipeline(transaction=False) as pipe:
            for key in batch:
                pipe.hkeys(key)
            present = pipe.execute()
        with client.pipeline(transaction=False) as pipe:
            for key, names in zip(batch, present, strict=True):
                pipe.hdel(key, *fields_of(names))
            pipe.execute()

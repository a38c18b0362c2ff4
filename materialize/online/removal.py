"""Removal of a view's or a project's data from Redis: by exact project, in small steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import redis
from feast import FeatureView

from feast_embeddings.materialize.online import keys
from feast_embeddings.materialize.serving.plan import kind_of

SCAN_COUNT: Final = 1000
PAUSE_SECONDS: Final = 0.001  # between steps, so that reads go first


def delete_view(client: Any, project: str, table: FeatureView, stored_name: str) -> None:
    """Removes a view's fields from every entity of ``project``; an embedding view's of all its fills."""
    features = [feature.name for feature in table.features]
    prefix = keys.timestamp_field(keys.qualified(table.name, ""))
    own = kind_of(table) is not None

    def fields_of(present: Sequence[bytes]) -> list[bytes]:
        fills = [name[len(b"_ts:") :].decode() for name in present if own and name.startswith(prefix)]
        return [field for name in (stored_name, *fills) for field in fields_under(name, features)]

    _delete_fields(client, project, table.join_keys, fields_of)


def delete_fill(client: Any, project: str, join_key: str, name: str, features: Sequence[str]) -> None:
    """Removes one fill's fields (``name`` is ``<view>@<fill>``) from every entity of ``project``."""
    for batch in entity_batches(client, project, [join_key]):
        delete_fields(client, batch, fields_under(name, features))


def delete_fields(client: Any, entities: Sequence[bytes], fields: Sequence[bytes]) -> None:
    """Removes these hash fields from entity keys, in one pipeline."""
    with client.pipeline(transaction=False) as pipe:
        for key in entities:
            pipe.hdel(key, *fields)
        pipe.execute()


def delete_entities(client: Any, project: str, join_keys: Sequence[str]) -> None:
    """Removes every entity with these join keys from ``project``, all views alike."""
    for batch in entity_batches(client, project, join_keys):
        with client.pipeline(transaction=False) as pipe:
            for key in batch:
                pipe.unlink(key)
            pipe.execute()


def fields_under(name: str, features: Sequence[str]) -> list[bytes]:
    """All hash fields stored under ``name``."""
    values = [keys.feature_field(name, feature) for feature in features]
    return [*values, keys.timestamp_field(name)]


def entity_batches(client: Any, project: str, join_keys: Sequence[str]) -> Iterator[list[bytes]]:
    """The entity keys of exactly this project, in batches, with a pause after each."""
    batch: list[bytes] = []
    for key in client.scan_iter(keys.scan_pattern(project, join_keys), count=SCAN_COUNT):
        if keys.belongs(key, project, join_keys):
            batch.append(key)
        if len(batch) == SCAN_COUNT:
            yield batch
            batch = []
            time.sleep(PAUSE_SECONDS)
    if batch:
        yield batch


def servers_of(client: Any) -> dict[str, Any]:
    """Run id → a client of each server: of the one, or of every master of a cluster."""
    cluster = isinstance(client, redis.RedisCluster)
    each = [client.get_redis_connection(node) for node in client.get_primaries()] if cluster else [client]
    return {str(one.info("server")["run_id"]): one for one in each}


def batches_from(
    servers: Mapping[str, Any], project: str, join_key: str, place: tuple[str, int], count: int = SCAN_COUNT
) -> Iterator[tuple[list[bytes], tuple[str, int]]]:
    """The entity keys of exactly this project from a place on, ``count`` keys looked at after the other.

    Servers are gone through by their run ids. A place is a run id and a cursor, 0 at either end; each batch comes with
    the one behind it.
    """
    pattern = keys.scan_pattern(project, [join_key])
    for server in sorted(each for each in servers if each >= place[0]):
        cursor = place[1] if server == place[0] else 0
        while True:
            cursor, found = servers[server].scan(cursor, match=pattern, count=count)
            yield [key for key in found if keys.belongs(key, project, [join_key])], (server, cursor)
            if not cursor:
                break


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

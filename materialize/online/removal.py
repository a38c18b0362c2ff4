"""Removal of a view's or a project's data from Redis: by exact project, in small steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from feast import FeatureView

from feast_embeddings.materialize.declare.kinds import kind_of
from feast_embeddings.materialize.online import keys

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
    fields = fields_under(name, features)
    for batch in entity_batches(client, project, [join_key]):
        with client.pipeline(transaction=False) as pipe:
            for key in batch:
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

"""What one online read asks Redis for, and what its answer means; the same for sync and async callers.

A read plans with the manifests it knows, and asks for them again at the end of the same pipeline. If one has
changed since, it plans anew. So every row of an answer comes from the generation that was live while it was
read, and all views of one encoder from the same one. In the usual case that is a single round trip.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from feast import FeatureView

from feast_embeddings.materialize import clock
from feast_embeddings.materialize.declare import kind_of, pinned_space, ttl_us
from feast_embeddings.materialize.online import (
    Manifest,
    OnlineServer,
    Strings,
    event_times,
    feature_field,
    manifest_key,
    queue_hmgets,
    reads,
    stored_name,
    timestamp_field,
)
from feast_embeddings.models.errors import SpaceError
from feast_embeddings.models.types import Int64s
from feast_embeddings.transformations.views import tags

MAX_PLANS: Final = 10  # copies of a whole fill, each of which a writer may outrun
_READ_PLANS: Final = 100  # a starved reader did meet ten cutovers in a row, and then found its fill removed


@dataclass(slots=True)
class ViewRead:
    """The part of a read that concerns one view.

    Attributes:
        table: The view.
        features: Features to read, in this order.
        entity_keys: Redis keys [n].
        name: Name its fields are stored under; None while it has no fill.
        problem: Why a pinned space cannot be read, by the manifest of this plan.
        replies: One reply per key: the features' values, then the timestamp's.
    """

    table: FeatureView
    features: list[str]
    entity_keys: Strings
    name: str | None = None
    problem: SpaceError | None = None
    replies: Sequence[Sequence[bytes | None]] = field(default_factory=list)

    @property
    def encoder(self) -> str | None:
        """Encoder whose manifest names the fill; None for a view that has no fills."""
        return self.table.tags[tags.ENCODER] if kind_of(self.table) == tags.EMBEDDING_KIND else None

    def resolve(self, manifests: Mapping[str, Manifest | None]) -> None:
        """Finds the name under which a view of fills is stored."""
        if self.encoder is None:
            return
        self.problem = None
        manifest = manifests[self.encoder] or Manifest(self.encoder, 0, {})
        try:
            fill = manifest.fill_of(self.table.name, pinned_space(self.table))
        except SpaceError as error:
            fill, self.problem = None, error
        self.name = stored_name(self.table.name, fill.fill) if fill else None

    def fields(self) -> list[bytes] | None:
        """Hash fields to ask for; None if there is nothing to ask."""
        if self.name is None:
            return None
        # vectors are stored under one name, whatever the view calls them
        stored = tags.EMBEDDING if self.encoder is not None else None
        asked = [feature_field(self.name, stored or feature) for feature in self.features]
        return [*asked, timestamp_field(self.name)]

    def times_us(self) -> Int64s:
        """Event times int64 [n] in microseconds; 0 where there is no row."""
        return event_times([reply[-1] for reply in self.replies])

    def expired(self) -> list[int]:
        """Positions of the rows past the view's ttl, whose values are withheld."""
        ttl = ttl_us(self.table)
        if ttl == 0 or not self.replies:
            return []
        times = self.times_us()
        found: list[int] = np.flatnonzero((times > 0) & (clock.now_us() - times > ttl)).tolist()
        return found


class Read:
    """A plan for several views: queue it, then ask whether the replies settle it, until they do."""

    def __init__(self, server: OnlineServer, views: list[ViewRead], followed: Iterable[str] = ()) -> None:
        self.views = views
        self._server = server
        self._plans = 0
        encoders = dict.fromkeys([*(view.encoder for view in views), *followed])
        self.manifests = {each: server.manifests.get(each) for each in encoders if each is not None}
        self._resolve()

    def run(self) -> None:
        """Asks until the replies settle it.

        Raises:
            SpaceError: A view is pinned to a space that is not served.
            OnlineStoreError: Redis cannot be reached, or a manifest is unreadable.
        """
        with self._server.client() as client:
            settled = False
            while not settled:
                pipe = reads(client)
                self._queue(pipe)
                settled = self._settled(pipe.execute())

    async def run_async(self) -> None:
        """As :meth:`run`."""
        with self._server.reaching():
            client, settled = self._server.open_async(), False
            while not settled:
                async with client.pipeline(transaction=False) as pipe:
                    self._queue(pipe)
                    settled = self._settled(await pipe.execute())

    def _resolve(self) -> None:
        self._plans += 1
        for view in self.views:
            view.resolve(self.manifests)

    def _queue(self, pipe: Any) -> None:
        """Queues the rows of every view, then the manifests: sync and async pipelines queue alike."""
        for view in self.views:
            fields = view.fields()
            if fields:
                queue_hmgets(pipe, view.entity_keys, fields)
        for encoder in self.manifests:
            pipe.get(manifest_key(self._server.project, encoder))

    def _settled(self, replies: list[Any]) -> bool:
        """Takes the replies in; False if a manifest has changed, and the read must be queued once more."""
        rows = len(replies) - len(self.manifests)
        current = {
            encoder: self._server.manifests.learn(encoder, text)
            for encoder, text in zip(self.manifests, replies[rows:], strict=True)
        }
        if current != self.manifests and self._plans < _READ_PLANS:
            self.manifests = current
            self._resolve()
            return False
        start = 0
        for view in self.views:
            if view.problem is not None:
                raise view.problem
            stop = start + (len(view.entity_keys) if view.name is not None else 0)
            view.replies = replies[start:stop]
            start = stop
        return True

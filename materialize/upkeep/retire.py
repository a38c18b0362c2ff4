"""Removal of retired fills from Redis: at a bounded rate, some seconds at a time, taken up where it stopped.

A cutover only marks fills as retired. Any later job of the repo gives some seconds at its end to the removal of their
rows, and `feast-embeddings retire` all that it takes; a lease keeps it to one at a time. How far it came stands in the
ledger.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from typing import Final

from feast.infra.registry.base_registry import BaseRegistry

from feast_embeddings.materialize.declare import EmbeddingSpec, embedding_specs
from feast_embeddings.materialize.files import Workspace
from feast_embeddings.materialize.ledger import Fill, Lease, Ledger, Removed, Retirements, held
from feast_embeddings.materialize.online import SCAN_COUNT, FillPlace, OnlineServer, ScanPlace, fill_removal
from feast_embeddings.materialize.ticks import reached
from feast_embeddings.transformations.views import EMBEDDING

KEYS_PER_SECOND: Final = 50_000
"""Looked at, at most: a core of Redis looks at several hundred thousand."""


def retire_resource(project: str) -> str:
    """Name of the lease on the removal of a project's retired fills."""
    return f"retirement of fills of project {project!r}"


def retire(
    workspace: Workspace,
    server: OnlineServer,
    registry: BaseRegistry,
    *,
    seconds: float = math.inf,
    keys_per_second: float = KEYS_PER_SECOND,
    scan: int = SCAN_COUNT,
) -> list[str]:
    """Remove retired fills; returns the names of those that are gone.

    Args:
        workspace: Of the feature repo.
        server: Its Redis.
        registry: Knows the views.
        seconds: After which the rest is left to the next call.
        keys_per_second: Keys looked at, at most.
        scan: Keys looked at in one go, about.

    Raises:
        LeaseError: Another job is at it.
        OnlineStoreError: Redis cannot be reached.
    """
    if not workspace.ledger.fills(states=("retired",)):
        return []
    specs = {spec.view: spec for spec in embedding_specs(registry, server.project)}
    with held(workspace.ledger, retire_resource(server.project)) as lease:
        removal = _Removal(workspace.ledger, server, lease, time.monotonic() + seconds, keys_per_second, scan)
        fills = workspace.ledger.fills(states=("retired",))
        return [fill.fill for fill in fills if removal.remove(fill, specs.get(fill.view))]


@dataclass(frozen=True)
class _Removal:
    """The removal of retired fills, until a time of the monotonic clock."""

    ledger: Ledger
    server: OnlineServer
    lease: Lease
    until: float
    keys_per_second: float
    scan: int

    def remove(self, fill: Fill, spec: EmbeddingSpec | None) -> bool:
        """Whether nothing is left of a fill; of a view that is not declared any more, nothing is."""
        if self._over or self._written(fill) or (spec is not None and not self._removed(fill, spec)):
            return False
        Retirements(self.ledger).finish(fill.fill)
        reached("retired")
        return True

    @property
    def _over(self) -> bool:
        return time.monotonic() >= self.until

    def _written(self, fill: Fill) -> bool:
        """Whether a tick is open that may still write to the fill: it was recorded before the fill was retired."""
        tick = self.ledger.open_tick(fill.view, "incremental")
        return tick is not None and fill.fill in tick.fills

    def _removed(self, fill: Fill, spec: EmbeddingSpec) -> bool:
        """Remove the fill's fields from every entity; False if the time was over before."""
        place, retirements = FillPlace(fill.view, spec.join_key, fill.fill, EMBEDDING), Retirements(self.ledger)
        known, began, looked = retirements.removed(fill.fill), time.monotonic(), 0
        start = None if known is None else ScanPlace(**asdict(known))
        for at in fill_removal(self.server, place, start, self.scan):
            reached("retiring")
            self.lease.check()
            looked += self.scan
            if at is not None:
                retirements.keep(fill.fill, Removed(**asdict(at)))
                if self._over:
                    return False
            time.sleep(max(began + looked / self.keys_per_second - time.monotonic(), 0))
        return True

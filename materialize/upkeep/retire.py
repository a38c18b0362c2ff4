"""Removal of retired fills from Redis: in the background, at a bounded rate, taken up where it stopped.

A cutover only marks fills as retired. Any later job of the repo removes their rows in a thread of its own, and so does
`feast-embeddings retire`; a lease keeps it to one at a time. How far it came stands in the ledger.
"""

from __future__ import annotations

import atexit
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, cast

import redis
import sqlalchemy as sa
from feast import RepoConfig
from feast.infra.registry.base_registry import BaseRegistry

from feast_embeddings.materialize.declare import EmbeddingSpec, embedding_specs
from feast_embeddings.materialize.files.workspace import Workspace
from feast_embeddings.materialize.ledger.database import Ledger
from feast_embeddings.materialize.ledger.leases import Lease, held
from feast_embeddings.materialize.ledger.records import Fill
from feast_embeddings.materialize.ledger.schema import retirements
from feast_embeddings.materialize.online import keys
from feast_embeddings.materialize.online.removal import SCAN_COUNT, entity_batches, fields_under
from feast_embeddings.materialize.online.versions import forget_changes
from feast_embeddings.materialize.online_store import EmbeddingOnlineStore
from feast_embeddings.materialize.ticks.milestones import reached
from feast_embeddings.transformations.views.tags import EMBEDDING

KEYS_PER_SECOND: Final = 50_000
"""Looked at, at most: a core of Redis looks at several hundred thousand."""
GRACE_S: Final = 2.0
"""How long a process that ends waits for its thread; the next job goes on from there."""

_threads: list[tuple[threading.Thread, threading.Event]] = []


def retire_resource(project: str) -> str:
    """Name of the lease on the removal of a project's retired fills."""
    return f"retirement of fills of project {project!r}"


def progress_of(ledger: Ledger, fill: str) -> float:
    """How much of a retired fill is removed, from 0 to 1, about."""
    with ledger.reading() as connection:
        row = connection.execute(sa.select(retirements).where(retirements.c.fill == fill)).mappings().first()
    return 0.0 if row is None else min(row["seen"] / max(row["keys"], 1), 1.0)


def retire(
    workspace: Workspace,
    store: EmbeddingOnlineStore,
    config: RepoConfig,
    registry: BaseRegistry,
    *,
    stopped: Callable[[], bool] = lambda: False,
    keys_per_second: float = KEYS_PER_SECOND,
) -> list[str]:
    """Remove every retired fill; returns their names.

    Args:
        workspace: Of the feature repo, as the next three.
        store: The online store.
        config: The configuration.
        registry: Knows the views.
        stopped: Asked after every step; once it says so, the rest is left to the next call.
        keys_per_second: Keys looked at, at most.

    Raises:
        LeaseError: Another job is at it.
        OnlineStoreError: Redis cannot be reached.
    """
    specs = {spec.view: spec for spec in embedding_specs(registry, config.project)}
    return _Retirement(workspace, store, config, specs, stopped, keys_per_second).run()


def retire_in_background(
    workspace: Workspace, store: EmbeddingOnlineStore, config: RepoConfig, registry: BaseRegistry
) -> threading.Thread | None:
    """Start :func:`retire` in a thread, where there is something to remove; what stops it is left to the next job."""
    if not workspace.ledger.fills(states=("retired",)):
        return None
    specs = {spec.view: spec for spec in embedding_specs(registry, config.project)}
    own = workspace.standing()  # the process may change its folder, and the job's ledger is under the job's leases
    stop = threading.Event()
    work = _Retirement(own, store, config, specs, stop.is_set, KEYS_PER_SECOND)

    def run() -> None:
        # the job is done, and nobody waits for this: the next job tries again, and `retire` says what is wrong
        with contextlib.suppress(Exception):
            work.run()
        own.ledger.close()

    thread = threading.Thread(target=run, name="retire fills", daemon=True)
    if not _threads:
        atexit.register(stop_background)
    _threads[:] = [each for each in _threads if each[0].is_alive()] + [(thread, stop)]
    thread.start()
    return thread


def stop_background(grace_s: float = GRACE_S) -> None:
    """End the threads of this process: those that are nearly done get a moment."""
    deadline = time.monotonic() + grace_s
    for thread, _ in _threads:
        thread.join(max(deadline - time.monotonic(), 0))
    for thread, stop in _threads:
        stop.set()
        thread.join(grace_s)
    _threads.clear()


class _Retirement:
    """The removal of the retired fills of one project."""

    def __init__(
        self,
        workspace: Workspace,
        store: EmbeddingOnlineStore,
        config: RepoConfig,
        specs: dict[str, EmbeddingSpec],
        stopped: Callable[[], bool],
        keys_per_second: float,
    ) -> None:
        self.ledger, self.store, self.config, self.specs = workspace.ledger, store, config, specs
        self._stopped = stopped
        self._rate = keys_per_second

    def run(self) -> list[str]:
        """Remove one fill after the other; the names of those that are gone."""
        gone: list[str] = []
        with held(self.ledger, retire_resource(self.config.project)) as lease:
            for fill in self.ledger.fills(states=("retired",)):
                if self._stopped():
                    break
                if self._written(fill):
                    continue
                if fill.view in self.specs and not self._remove(fill, self.specs[fill.view].join_key, lease):
                    break
                self._finish(fill)
                gone.append(fill.fill)
        return gone

    def _written(self, fill: Fill) -> bool:
        """Whether a tick is open that may still write to the fill: it was recorded before the fill was retired."""
        tick = self.ledger.open_tick(fill.view, "incremental")
        return tick is not None and fill.fill in tick.fills

    def _remove(self, fill: Fill, join_key: str, lease: Lease) -> bool:
        """Remove the fill's fields from every entity; False if it was stopped."""
        name = keys.qualified(fill.view, fill.fill)
        fields = fields_under(name, [EMBEDDING])
        with self.store.redis(self.config) as client:
            started = time.monotonic()
            looked = 0
            for found, seen in self._batches(client, fill, join_key):
                with client.pipeline(transaction=False) as pipe:
                    for key in found:
                        pipe.hdel(key, *fields)
                    pipe.execute()
                looked += seen
                reached("retiring")
                lease.check()
                if self._stopped():
                    return False
                time.sleep(max(started + looked / self._rate - time.monotonic(), 0))
            forget_changes(client, self.config.project, name)
        return True

    def _batches(self, client: Any, fill: Fill, join_key: str) -> Iterator[tuple[list[bytes], int]]:
        """Entity keys, and how many keys were looked at for them; the place after each stands in the ledger."""
        project = self.config.project
        if not isinstance(client, redis.Redis):  # a cluster has a cursor per node: a stop begins anew
            yield from ((found, SCAN_COUNT) for found in entity_batches(client, project, [join_key]))
            return
        pattern, plain = keys.scan_pattern(project, [join_key]), cast(Any, client)
        server, total = str(plain.info("server")["run_id"]), int(plain.dbsize())
        cursor, seen = self._place(fill, server)
        while True:
            cursor, found = plain.scan(cursor, match=pattern, count=SCAN_COUNT)
            seen += SCAN_COUNT
            yield [key for key in found if keys.belongs(key, project, [join_key])], SCAN_COUNT
            if not cursor:
                return
            self._keep_place(fill, server, cursor, seen, total)

    def _place(self, fill: Fill, server: str) -> tuple[int, int]:
        """Where to go on; from the start on another server: a restarted one gives its keys another order."""
        with self.ledger.reading() as connection:
            row = connection.execute(sa.select(retirements).where(retirements.c.fill == fill.fill)).mappings().first()
        return (int(row["cursor"]), row["seen"]) if row is not None and row["server"] == server else (0, 0)

    def _keep_place(self, fill: Fill, server: str, cursor: int, seen: int, total: int) -> None:
        values = {"fill": fill.fill, "server": server, "cursor": str(cursor), "seen": seen, "keys": total}
        with self.ledger.transaction() as connection:
            connection.execute(sa.delete(retirements).where(retirements.c.fill == fill.fill))
            connection.execute(sa.insert(retirements).values(**values))

    def _finish(self, fill: Fill) -> None:
        with self.ledger.transaction() as connection:
            connection.execute(sa.delete(retirements).where(retirements.c.fill == fill.fill))
        self.ledger.update_fill(fill.fill, state="removed")
        reached("retired")

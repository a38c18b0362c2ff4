"""The steps of one refresh: a new fill with every entity's vector, which ticks overtake and which catches up with them.

snapshot → staged files (exclusive) → Redis (guarded by tick number) → the ticks recorded since → ready for its cutover
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from feast_embeddings.materialize.files import BehaviorLog, Digest, counts_of
from feast_embeddings.materialize.ledger import NEVER, Tick, Tombstones
from feast_embeddings.materialize.ticks.catch_up import CatchUp
from feast_embeddings.materialize.ticks.compute import ByTime
from feast_embeddings.materialize.ticks.milestones import counter, reached
from feast_embeddings.materialize.ticks.pipeline import Pipeline
from feast_embeddings.materialize.ticks.ranges import snapshot
from feast_embeddings.materialize.ticks.view_work import ENCODE_ROWS, ViewWork
from feast_embeddings.models import Encoder
from feast_embeddings.models.types import Float32s
from feast_embeddings.transformations import Histories, Prepared


class Refreshes:
    """Finishes recorded refreshes of one view; the caller holds the lease of the view's refreshes."""

    def __init__(self, work: ViewWork) -> None:
        self.work, self._source = work, work.source
        self.pipeline = Pipeline(work)
        self.ledger, self.log, self.view = work.ledger, work.log, work.spec.view
        self._catching_up: CatchUp | None = None
        self._rows = 0

    def changed(self, tick: Tick) -> bool:
        """Whether a refresh that had no effect yet lost its membership: its behaviors are not what was recorded."""
        return self._source is not None and not self.pipeline.staged(tick) and self._by_time(tick).changed(tick)

    def abandon(self, tick: Tick) -> None:
        """Void a refresh that had no effect, with all that it left: counts, quarantined rows, staged files."""
        self.pipeline.abandon(tick)
        self.log.drop_caught_up(tick.fills[0])

    def still_ours(self) -> bool:
        """True; raises LeaseError if another worker took the lease over."""
        self.work.lease.check()
        return True

    def write(self, tick: Tick) -> Tick:
        """Compute what is not staged yet, and write it to Redis."""
        tick, self._rows = self.pipeline.write(self.pipeline.compute(tick, self._stage))
        if self._source is not None:
            self._catching_up = CatchUp(self.work, self._source, tick)
        return tick

    def catch_up(self) -> int:
        """Apply the ticks published since the last call; how many there were."""
        applied = 0 if self._catching_up is None else self._catching_up.apply()
        self.work.lease.check()
        return applied

    def make_ready(self, tick: Tick) -> Tick:
        """From here on the fill receives ticks itself; no tick is at work, and it has caught up with them."""
        tick = self.ledger.tick(self.view, tick.number)
        self.work.marks.check_before(tick)
        if self._source is not None:
            if self._counted_elsewhere(tick):
                self.ledger.void_counts(tick)
                self.work.workspace.quarantine().write(self.view, tick.number, pa.table({}))
            elif tick.digest is None:  # its members grew by those of a tick that was voided
                self._by_time(tick).record(tick)
        reached("caught-up-all")
        return self.ledger.make_ready(tick, self._rows)

    def _counted_elsewhere(self, tick: Tick) -> bool:
        """Whether a bridge, or micro-batches, count the same behaviors: each is counted once."""
        streamed = tick.start_us is not None and self.ledger.stream_end_us(self.view) is not None
        return streamed or any(each.bridges(tick) for each in self.ledger.applied_ticks(self.view))

    def _by_time(self, tick: Tick) -> ByTime:
        assert self._source is not None, self.view  # noqa: S101 - items have no behaviors
        return ByTime(self.work, self._source.before(tick))

    # ── compute ──────────────────────────────────────────────────────────────────────────────────────────

    def _stage(self, tick: Tick) -> None:
        if self._source is None:
            self._stage_items(tick)
            return
        if tick.start_us is not None:
            self._by_time(tick).record(tick)
        self._stage_users(tick, self._source.before(tick))

    def _stage_items(self, tick: Tick) -> None:
        encoder = self.work.encoder(self.ledger.fill(tick.fills[0]).space)
        ids = encoder.item_ids()
        ids = ids[Tombstones(self.ledger, self.work.spec.join_key).erased_us(pa.array(ids)) == NEVER]
        with self.log.staging(tick.fills[0], tick.number) as stage:
            for rows in _slices(len(ids)):
                stage(ids[rows], encoder.encode_items(ids[rows])[0] if len(ids) else _nothing(encoder))
                self.work.lease.check()
        self.work.encoded += len(ids)

    def _stage_users(self, tick: Tick, source: BehaviorLog) -> None:
        """Encode a range of entities after the other, while what was encoded goes to the disk."""
        encoder, kept = self.work.encoder(self.ledger.fill(tick.fills[0]).space), self.work.kept(tick)
        first = _First()
        with (
            self.log.staging(tick.fills[0], tick.number) as stage,
            self.log.staging_history(tick.number) as stage_history,
            counter(0, f"{self.view}: encode", "history") as shown,
        ):
            for prepared in snapshot(source, tick, self.work.workspace.state, self.work.lease.check):
                first.add(prepared)
                histories, ids = Histories(prepared.behaviors), prepared.behaviors.entities
                for rows in _slices(len(ids)):
                    batch = histories.as_of(ids[rows], tick.end_us, kept)
                    stage(ids[rows], encoder.encode(batch) if len(batch) else _nothing(encoder))
                    stage_history(ids[rows], batch)
                    self.work.lease.check()
                    shown.update(len(batch))
                self.work.encoded += len(ids)
            if tick.start_us is None:
                first.record(self.work, tick)


class _First:
    """What the first refresh of a view read, part by part: its members are everything there is."""

    def __init__(self) -> None:
        self._digest = Digest()
        self._counts: Counter[str] = Counter()
        self._quarantined: list[pa.Table] = []

    def add(self, prepared: Prepared) -> None:
        """Take note of a part."""
        self._digest.add(prepared.behaviors)
        self._counts.update(counts_of(prepared))
        self._quarantined.append(prepared.quarantined)

    def record(self, work: ViewWork, tick: Tick) -> None:
        """Record all of it."""
        work.workspace.quarantine().write(work.spec.view, tick.number, pa.concat_tables(self._quarantined))
        work.ledger.set_members(tick, self._digest.behaviors, self._digest.hexdigest(), self._counts)
        reached("members")


def _nothing(encoder: Encoder) -> Float32s:
    return np.empty((0, encoder.dim), np.float32)


def _slices(rows: int) -> Iterator[slice]:
    """At least one, also of nothing."""
    return (slice(start, start + ENCODE_ROWS) for start in range(0, max(rows, 1), ENCODE_ROWS))

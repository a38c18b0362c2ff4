"""The micro-batches of one lane: recorded by their offsets, then taken through the steps of every tick.

A micro-batch's members are what its messages hold: judged, deduplicated against the recent past, and appended to the
behavior log in a file created exclusively. Offsets are committed to the source only after the tick is published.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np

from feast_embeddings.materialize.files import PoisonMessages, digest
from feast_embeddings.materialize.ledger import MembersFound, Tick
from feast_embeddings.materialize.stream.judge import Judge, Members
from feast_embeddings.materialize.stream.payloads import Decoded, decode
from feast_embeddings.materialize.stream.source import Delivery, Source
from feast_embeddings.materialize.ticks import Pipeline, UserVectors, ViewWork, hold_resource, reached
from feast_embeddings.models.errors import DeclarationError, OvertakenError, StreamError
from feast_embeddings.transformations import Behaviors


@dataclass
class Applied:
    """What a micro-batch came to.

    Attributes:
        tick: The tick; its window is open once its rows are servable.
        found: What became of its behaviors.
        rows: Rows of vectors written.
        seconds: How long each stage took: encode, stage, write.
        unknown: Behaviors with an item that the encoder does not know.
    """

    tick: Tick
    found: MembersFound
    rows: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    unknown: int = 0


class MicroBatches:
    """Applies the micro-batches of one lane of one view; used by one thread, but for :meth:`publish`.

    Args:
        work: The lane's means; its writes to the ledger are under the lane's lease alone.
        project: Feast project.
        lane: Name of the lane.
        lateness_us: Behaviors that happened longer before a tick's end are refused; None: none is.
    """

    def __init__(self, work: ViewWork, project: str, lane: str, lateness_us: int | None = None) -> None:
        if work.source is None:
            raise DeclarationError(f"View {work.spec.view!r} has no behaviors of its own: stream its user view.")
        self.work, self.view, self.lane, self.lease = work, work.spec.view, lane, work.lease
        self.contract = work.source.contract
        self.pipeline = Pipeline(work)
        self.judge = Judge(work.source, self.view, lateness_us)
        self._vectors = UserVectors(work, work.source)
        self._hold = hold_resource(project, self.view)
        self._poison = PoisonMessages(work.workspace.state / "quarantine" / "messages")

    def take_up(self, source: Source) -> list[Tick]:
        """Finish what a stopped worker of this lane left, in order; then the lane may go on."""
        self.work.check()
        self.work.marks.check()
        found = self.work.ledger.open_micro_batches(self.view, self.lane)
        self.judge.remember(source.partitions, [tick.number for tick in found])
        for tick in found:
            if tick.source != source.name:
                raise StreamError(
                    f"Tick {tick.number} of view {tick.view!r} was begun from source {tick.source!r}, and this worker "
                    f"reads {source.name!r}: run a worker on {tick.source!r} once, which finishes it."
                )
            members = self.judge.find(tick)
            delivery = source.replay(tick.ranges) if members is None else None
            decoded = None if delivery is None else decode(delivery.payloads, self.contract)
            self.publish(self.apply(tick, delivery, decoded, members))
            source.commit(tick.positions)
        return found

    def record(self, delivery: Delivery) -> Tick:
        """Record a micro-batch, once the encoders of all fills that it writes are checked.

        Raises:
            HeldError: A refresh is at its last round: try again in a moment.
        """
        while True:
            try:
                tick = self.work.ledger.record_micro_batch(
                    self.view, self.lane, delivery.source, delivery.ranges, self.work.longest_context, self._hold
                )
                break
            except OvertakenError:
                self.work.check()
        reached("recorded")
        return tick

    def compute(
        self, tick: Tick, delivery: Delivery | None, decoded: Decoded | None, members: Members | None = None
    ) -> Applied:
        """Everything up to the staged files; nothing that reads return has changed yet.

        Pass either the messages, or the members that :meth:`Judge.find` found.
        """
        if members is None:
            assert delivery is not None and decoded is not None  # noqa: S101, PT018 - one or the other
            members = self.judge.members(tick, delivery, decoded, self.work.read_histories)
            self._keep_refused(tick, members)
        behaviors = members.behaviors
        self.judge.append(tick, members)
        reached("members")
        applied = Applied(tick, MembersFound(len(behaviors), digest(behaviors), members.counts))
        self.pipeline.compute(tick, lambda tick: self._vectors.stage(tick, behaviors))
        applied.seconds |= self._vectors.seconds
        applied.unknown = self._unknown(tick, behaviors)
        return applied

    def write(self, applied: Applied) -> None:
        """Open the window, and write the staged rows to Redis: from now on they are served."""
        began = time.perf_counter()
        applied.tick, applied.rows = self.pipeline.write(applied.tick)
        applied.seconds["write"] = time.perf_counter() - began

    def apply(
        self, tick: Tick, delivery: Delivery | None, decoded: Decoded | None, members: Members | None = None
    ) -> Applied:
        """:meth:`compute`, then :meth:`write`."""
        applied = self.compute(tick, delivery, decoded, members)
        self.write(applied)
        return applied

    def publish(self, applied: Applied) -> None:
        """The log and one commit of the ledger; offsets may be committed to the source after it."""
        self.pipeline.publish(applied.tick, applied.rows, applied.found)

    def _keep_refused(self, tick: Tick, members: Members) -> None:
        if len(members.quarantined) or len(members.poison):
            self.work.workspace.quarantine().write(self.view, tick.number, members.quarantined)
            self._poison.write(self.view, tick.number, members.poison)

    def _unknown(self, tick: Tick, behaviors: Behaviors) -> int:
        fills = self.work.targets(tick)
        index = getattr(self.work.encoder(fills[-1].space), "items", None) if fills else None
        return 0 if index is None else int(np.count_nonzero(index.rows(behaviors.items) == 0))

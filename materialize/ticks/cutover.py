"""Cutovers: the atomic switch of an encoder's live generation, all of its views at once, and rollbacks.

A cutover is recorded in the ledger, done by one command in Redis, then committed with its time. A job that stops
in between leaves a pending generation, which the next job of the encoder finishes. What it retires stays in Redis
until the background comes to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack

import numpy as np
from feast.infra.registry.base_registry import BaseRegistry

from feast_embeddings.materialize.declare import EmbeddingSpec, encoder_specs
from feast_embeddings.materialize.files import CaughtUp, EmbeddingLog, LogStamp, Workspace, newest_rows_at_once
from feast_embeddings.materialize.ledger import Fill, Generation, Lease, cutover_resource, held
from feast_embeddings.materialize.online import FillRef, Manifest, OnlineServer, publish_manifest, read_manifest
from feast_embeddings.materialize.ticks.beside import gently, held_back, in_rounds
from feast_embeddings.materialize.ticks.intact import Marks
from feast_embeddings.materialize.ticks.milestones import reached
from feast_embeddings.models.errors import SpaceError
from feast_embeddings.transformations.behaviors import concat_ids


class Cutovers:
    """Switches, takes up and rolls back generations of the encoders of one feature repo."""

    def __init__(self, workspace: Workspace, server: OnlineServer, registry: BaseRegistry) -> None:
        self.workspace = workspace
        self.ledger = workspace.ledger
        self.server = server
        self._registry = registry

    def attempt(self, encoder: str, space: str) -> str:
        """Cut over to the newest fills in ``space`` if every view of the encoder has one; says what happened."""
        with self._alone(encoder) as lease:
            self._finish_pending(encoder, lease)
            return self._attempt(encoder, space, lease)

    def _attempt(self, encoder: str, space: str, lease: Lease) -> str:
        specs = self._specs(encoder)
        chosen: dict[str, str] = {}
        for view in specs:
            fills = [fill for fill in self.ledger.fills(view=view, states=("ready", "live")) if fill.space == space]
            if fills:
                chosen[view] = fills[-1].fill
        missing = sorted(set(specs) - set(chosen))
        if missing:
            return f"its fill in space {space} is ready, and waits for {', '.join(missing)} before the cutover"
        live = self.ledger.live_generation(encoder)
        if live is not None and dict(live.fills) == chosen:
            return f"generation {live.generation} stays live"
        generation = self.ledger.record_generation(encoder, chosen)
        self._switch(generation, specs, lease)
        return f"generation {generation.generation} of encoder {encoder!r} is live, in space {space}"

    def resume(self, encoder: str) -> None:
        """Finish a cutover that a stopped job left pending."""
        with self._alone(encoder) as lease:
            self._finish_pending(encoder, lease)

    def rollback(self, encoder: str) -> Generation:
        """Make the retained generation live again; the one that was live is retained.

        Raises:
            SpaceError: No generation is retained.
            LeaseError: Another job has been cutting over for half a minute.
        """
        with self._alone(encoder) as lease:
            self._finish_pending(encoder, lease)
            return self._rollback(encoder, lease)

    def _rollback(self, encoder: str, lease: Lease) -> Generation:
        specs = self._specs(encoder)
        retained = {fill.view: fill.fill for fill in self.ledger.fills(encoder=encoder, states=("retained",))}
        live = self.ledger.live_generation(encoder)
        if live is None or not retained:
            raise SpaceError(
                f"Encoder {encoder!r} has no retained generation to roll back to: run `feast materialize`."
            )
        generation = self.ledger.record_generation(encoder, {**live.fills, **retained}, rollback=True)
        self._switch(generation, specs, lease)
        return self.ledger.generations(encoder)[-1]

    def _alone(self, encoder: str) -> AbstractContextManager[Lease]:
        """One cutover at a time: two at once could leave the ledger with the one and Redis with the other."""
        return held(self.ledger, cutover_resource(self.server.project, encoder), wait_s=30)

    def _finish_pending(self, encoder: str, lease: Lease) -> None:
        """A generation is finished before a later one is made, so that the ledger's last one is what Redis serves."""
        for generation in self.ledger.generations(encoder):
            if generation.cutover_us is None:
                self._switch(generation, self._specs(encoder), lease)

    def _switch(self, generation: Generation, specs: Mapping[str, EmbeddingSpec], lease: Lease) -> None:
        fills = {fill.fill: fill for fill in self.ledger.fills(encoder=generation.encoder)}
        states = _states(generation, fills)
        reached("cutover-recorded")
        lease.check()
        ready = [fills[name] for name in generation.fills.values() if fills[name].state == "ready"]
        self._check_ready(specs, ready)
        manifest = manifest_of(generation, fills, states)
        stored = read_manifest(self.server, generation.encoder)
        if stored is None or stored.generation < generation.generation:
            publish_manifest(self.server, manifest)
        reached("cutover-switched")
        lease.check()
        cutover_us = self.ledger.begin_cutover(generation)
        logged: dict[str, set[int]] = {}

        def log_meanwhile() -> int:
            """Log what ticks went on to make of the new fills."""
            found = {fill.fill: self._log_later(specs[fill.view], fill, logged[fill.fill]) for fill in ready}
            for name, numbers in found.items():
                logged[name] |= numbers
            return sum(map(len, found.values()))

        def log_all() -> None:
            logged.update({fill.fill: self._log(specs[fill.view], fill, cutover_us) for fill in ready})
            in_rounds(log_meanwhile)

        gently(log_all, streamed=any(self.ledger.stream_end_us(fill.view) is not None for fill in ready))
        reached("cutover-logged")
        with ExitStack() as stack:
            for fill in ready:
                stack.enter_context(held_back(self.ledger, self.server.project, fill.view))
            log_meanwhile()
            self._check_ready(specs, ready)
            while not self.ledger.finish_cutover(generation, cutover_us, states, logged):
                log_meanwhile()
        for name in generation.fills.values():
            log = self.workspace.log(specs[fills[name].view])
            log.drop_staged(fills[name].tick, [name])
            log.drop_caught_up(name)
        reached("cutover-done")

    def _check_ready(self, specs: Mapping[str, EmbeddingSpec], ready: Sequence[Fill]) -> None:
        for fill in ready:
            Marks(self.ledger, self.server, specs[fill.view]).check_ready(fill)

    def _log(self, spec: EmbeddingSpec, fill: Fill, cutover_us: int) -> set[int]:
        """Log the rows of a new fill as they stand now; numbers of the ticks that they know."""
        log, stamp_of = self.workspace.log(spec), self._stamps(spec, fill, cutover_us)
        known = {tick.number for tick in self.ledger.ticks_after(spec.view, fill.tick)}
        rows = [*log.caught_up(fill.fill), *_ticked(log, fill.fill)]
        log.publish_fill(stamp_of(fill.tick), rows, stamp_of, self._renew)
        return known

    def _log_later(self, spec: EmbeddingSpec, fill: Fill, known: set[int]) -> set[int]:
        """Log what ticks have made of a new fill since, which were published after it; numbers of those ticks."""
        log = self.workspace.log(spec)
        found = {tick.number for tick in self.ledger.ticks_after(spec.view, fill.tick)} - known
        for rows in _ticked(log, fill.fill, found) if found else ():
            log.publish_caught_up(rows, self._stamps(spec, fill, None))
        return found

    def _stamps(self, spec: EmbeddingSpec, fill: Fill, cutover_us: int | None) -> Callable[[int], LogStamp]:
        """Stamps of ticks, all as of a cutover, or each as of its own publication."""

        def stamp(number: int) -> LogStamp:
            tick = self.ledger.tick(spec.view, number)
            event_us = cutover_us or tick.published_us or 0
            written_us = tick.window_start_us or event_us
            return LogStamp(fill.fill, fill.space, number, tick.end_us, written_us, event_us)

        return stamp

    def _renew(self) -> None:
        """Renew every lease of this job, as any write to the ledger does; raises LeaseError if one was taken over."""
        with self.ledger.transaction():
            pass

    def _specs(self, encoder: str) -> dict[str, EmbeddingSpec]:
        return {spec.view: spec for spec in encoder_specs(self._registry, self.server.project, encoder)}


def _ticked(log: EmbeddingLog, fill: str, ticks: set[int] | None = None) -> Iterator[CaughtUp]:
    """What ticks made of a fill since it receives them itself, by the log; of some ticks, or of all."""
    since = 0 if ticks is None else min(ticks)
    found = newest_rows_at_once(log, fill, "retained", since)
    found = [rows for rows in found if ticks is None or rows.tick in ticks]
    if found:
        numbers = [np.full(len(rows.ids), rows.tick, np.int64) for rows in found]
        ids, vectors = concat_ids([rows.ids for rows in found]), np.concatenate([rows.vectors for rows in found])
        yield CaughtUp(ids, vectors, np.concatenate(numbers), tuple(sorted({rows.tick for rows in found})))


def _states(generation: Generation, fills: Mapping[str, Fill]) -> dict[str, str]:
    """States of an encoder's fills after a cutover: what was live until now is retained, the rest is retired."""
    states: dict[str, str] = {}
    for fill in fills.values():
        live = generation.fills.get(fill.view)
        if fill.fill == live:
            states[fill.fill] = "live"
        elif fill.state == "live":
            states[fill.fill] = "retained"
        elif fill.state == "retained" or (fill.state == "ready" and live and fill.space == fills[live].space):
            states[fill.fill] = "retired"
    return states


def manifest_of(generation: Generation, fills: Mapping[str, Fill], states: Mapping[str, str]) -> Manifest:
    """What Redis says of a generation, given its encoder's fills by name, and their states."""
    live = {view: FillRef(name, fills[name].space) for view, name in generation.fills.items()}
    retained: dict[str, tuple[FillRef, ...]] = {}
    for name, state in states.items():
        if state == "retained":
            fill = fills[name]
            retained[fill.view] = (*retained.get(fill.view, ()), FillRef(name, fill.space))
    return Manifest(generation.encoder, generation.generation, live, retained)

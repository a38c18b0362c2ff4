"""Runs what is due for one embedding view, under leases: ticks, refreshes, and what a stopped job left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Final

from feast.infra.registry.base_registry import BaseRegistry

from feast_embeddings.materialize.clock import iso
from feast_embeddings.materialize.declare import Due, EmbeddingSpec
from feast_embeddings.materialize.files import BehaviorLog, Workspace
from feast_embeddings.materialize.ledger import Lease, Tick, held, holder, new_owner, refresh_resource, view_resource
from feast_embeddings.materialize.online import OnlineServer
from feast_embeddings.materialize.ticks.activity import check_end
from feast_embeddings.materialize.ticks.agenda import Agenda
from feast_embeddings.materialize.ticks.beside import gently, held_back, in_rounds, settle, wait_for_compaction
from feast_embeddings.materialize.ticks.compute import TicksOfView, UserTicks
from feast_embeddings.materialize.ticks.cutover import Cutovers
from feast_embeddings.materialize.ticks.intact import Marks
from feast_embeddings.materialize.ticks.items import Followed, ItemTicks
from feast_embeddings.materialize.ticks.milestones import counter, reached
from feast_embeddings.materialize.ticks.refresh import Refreshes
from feast_embeddings.materialize.ticks.view_work import ViewWork
from feast_embeddings.models.errors import LeaseError, OvertakenError

TICKS_WAIT_S: Final = 600.0
"""How long a refresh waits for a job that runs ticks, catching up with it meanwhile."""
LAST_ROUND_WAIT_S: Final = 120.0
"""How long a job that runs ticks waits for the last round of a refresh."""


@dataclass
class Outcome:
    """What a job did.

    Attributes:
        units: Ticks and refreshes that it finished.
        rows: Rows of vectors in them.
        encoded: Histories and items that it encoded.
        notices: For people.
    """

    units: int = 0
    rows: int = 0
    encoded: int = 0
    notices: list[str] = field(default_factory=list)

    def add(self, tick: Tick) -> None:
        """Count a finished tick."""
        self.units += 1
        self.rows += tick.rows
        self.encoded += tick.encoded

    def notice(self, text: str) -> None:
        """Tell people something, once."""
        if text not in self.notices:
            self.notices.append(text)


class Runner:
    """Jobs of one embedding view."""

    def __init__(
        self,
        workspace: Workspace,
        server: OnlineServer,
        registry: BaseRegistry,
        spec: EmbeddingSpec,
        lease_s: float = 60,
    ) -> None:
        self.workspace, self.ledger = workspace, workspace.ledger
        self.server, self.spec = server, spec
        self.cutovers = Cutovers(workspace, server, registry)
        self.outcome = Outcome()
        self._marks = Marks(self.ledger, server, spec)
        self._source = _source(workspace, server.project, registry, spec)
        self._followed = Followed.of(workspace, server.project, registry, spec)
        created = self._source is not None and bool(self._source.contract.created_time)
        self.agenda = Agenda(workspace, spec, self.outcome.notice, created)
        self._lease_s = lease_s
        self._ticks_lease = view_resource(server.project, spec.view)
        self._refresh_lease = refresh_resource(server.project, spec.view)
        self._owner = new_owner()

    def refresh(self, end_us: int) -> Outcome:
        """A full refresh as of ``end_us`` into a new fill, and the cutover to it; ticks go on meanwhile.

        Raises:
            TickError: ``end_us`` lies in the future, or before the view's watermark.
            LeaseError: Another job refreshes the view, or its ticks have not come to an end for ten minutes.
        """
        check_end(self.spec.view, end_us)
        with self._refreshing(self._owner) as refreshes:
            self._take_up_stopped_tick()
            self.cutovers.resume(self.spec.encoder)
            resumed = self._take_up_refresh(refreshes, None)
            if self.spec.tower == "item" and self._serves_declared():
                self.outcome.notice("its items are live in the declared space already: 0 rows written")
            elif resumed is None or not self._is_refresh(resumed, end_us):
                self._finish_refresh(refreshes, self._record_refresh(refreshes, end_us), None)
        return self.outcome

    def run_due(self, end_us: int) -> Outcome:
        """Every tick and refresh that the policy has due up to ``end_us``; there may be none, and it says so.

        Raises:
            TickError: ``end_us`` lies in the future.
            LeaseError: Another job runs the view's ticks; or a refresh is due, and another job is at one.
            OnlineStoreError: Redis has lost the live generation.
        """
        check_end(self.spec.view, end_us)
        if self.agenda.streamed and not self._has_work(end_us):
            self._marks.check()
            self.outcome.notice(f"no refresh is due up to {iso(end_us)}: 0 rows written")
            return self.outcome
        with self._ticking() as ticks:
            self._marks.check()
            self.cutovers.resume(self.spec.encoder)
            self._take_up_tick(ticks)
            self._take_up_stopped_refresh(ticks)
            with counter(len(self.agenda.due(end_us)), f"{self.spec.view}: ticks", "tick") as shown:
                while units := self.agenda.due(end_us):
                    self._run(ticks, units[0])
                    shown.update(1)
            if not self.outcome.units:
                self.outcome.notice(f"nothing is due up to {iso(end_us)}: 0 rows written")
        return self.outcome

    # ── ticks ────────────────────────────────────────────────────────────────────────────────────────────

    def _run(self, ticks: TicksOfView, unit: Due) -> None:
        if unit.kind == "full":
            with self._refreshing() as refreshes:
                self._finish_refresh(refreshes, self._record_refresh(refreshes, unit.end_us), ticks)
            return
        ticks.pipeline.work.check()
        try:
            tick = self.agenda.record_tick(unit)
        except OvertakenError:  # a refresh was recorded meanwhile: what is due starts where it ends
            return
        reached("recorded")
        self.outcome.add(ticks.finish(tick))

    def _take_up_tick(self, ticks: TicksOfView) -> None:
        """Finish the tick that a stopped job left, or void it where that has become impossible."""
        tick = self.ledger.open_tick(self.spec.view, "incremental")
        if tick is None:
            return
        staged = ticks.pipeline.staged(tick)
        reason = "its behaviors changed" if ticks.changed(tick) else None if staged else self._lost()
        if reason is not None:
            ticks.abandon(tick)
            self._say_abandoned(tick, reason)
            return
        self.outcome.notice(f"took up tick {tick.number}, which a stopped job had left unfinished")
        self.outcome.add(ticks.finish(tick))

    def _take_up_stopped_tick(self) -> None:
        """Take up a tick that nobody works on; one that somebody does is left alone."""
        if self.ledger.open_tick(self.spec.view, "incremental") is None:
            return
        with ExitStack() as stack:
            try:
                ticks = stack.enter_context(self._ticking(self._owner, wait_s=0))
            except LeaseError:
                return
            self._take_up_tick(ticks)

    def _settle(self, refreshes: Refreshes, before: int, *, ticking: bool) -> None:
        """Wait until no tick is open that was recorded before a refresh: it would extend histories of that."""
        while not ticking:
            tick = self.ledger.open_tick(self.spec.view, "incremental")
            if tick is None or tick.number > before:
                break
            with self._ticking(self._owner, TICKS_WAIT_S, refreshes.still_ours) as ticks:
                self._take_up_tick(ticks)
        if self.agenda.streamed:
            settle(self.ledger, self.server.project, self.spec.view, refreshes.still_ours, before)
            wait_for_compaction(self.ledger, self.server.project, self.spec.view, refreshes.still_ours)

    # ── refreshes ────────────────────────────────────────────────────────────────────────────────────────

    def _record_refresh(self, refreshes: Refreshes, end_us: int) -> Tick:
        refreshes.work.check([self.workspace.declared_space(self.spec)])
        while True:
            try:
                tick = self.agenda.record_refresh(end_us)
                break
            except OvertakenError:
                continue
        reached("recorded")
        return tick

    def _finish_refresh(self, refreshes: Refreshes, tick: Tick, ticks: TicksOfView | None) -> None:
        """Make the fill, catch up, cut over. ``ticks`` where the job holds the lease of the ticks already."""
        self._settle(refreshes, tick.number, ticking=ticks is not None)
        recorded, streamed = tick, self.agenda.streamed
        tick = gently(lambda: refreshes.write(recorded), streamed=streamed)
        gently(lambda: in_rounds(refreshes.catch_up), streamed=streamed)
        with ExitStack() as stack:
            if ticks is None:
                ticks = stack.enter_context(self._ticking(self._owner, TICKS_WAIT_S, lambda: refreshes.catch_up() >= 0))
                self._take_up_tick(ticks)
            with held_back(self.ledger, self.server.project, self.spec.view):
                settle(self.ledger, self.server.project, self.spec.view, refreshes.still_ours)
                while refreshes.catch_up():
                    pass
                tick = refreshes.make_ready(tick)
            self.outcome.add(tick)
            space = self.ledger.fill(tick.fills[0]).space
            self.outcome.notice(self.cutovers.attempt(self.spec.encoder, space))

    def _take_up_refresh(self, refreshes: Refreshes, ticks: TicksOfView | None) -> Tick | None:
        """Finish the refresh, or the cutover, that a stopped job left; returns the refresh."""
        tick = self.ledger.open_tick(self.spec.view, "full")
        if tick is None:
            self._cut_over_ready()
            return None
        if refreshes.changed(tick):
            refreshes.abandon(tick)
            self._say_abandoned(tick, "its behaviors changed")
            return None
        self.outcome.notice(f"took up tick {tick.number}, which a stopped job had left unfinished")
        self._finish_refresh(refreshes, tick, ticks)
        return tick

    def _take_up_stopped_refresh(self, ticks: TicksOfView) -> None:
        """Take up a refresh that nobody works on; one that somebody does goes on beside the ticks."""
        if self.ledger.open_tick(self.spec.view, "full") is None:
            self._cut_over_ready()
            return
        with ExitStack() as stack:
            try:
                refreshes = stack.enter_context(self._refreshing())
            except LeaseError:
                return
            self._take_up_refresh(refreshes, ticks)

    def _cut_over_ready(self) -> None:
        """A job may have stopped between making a fill ready and recording its cutover."""
        for fill in self.ledger.fills(view=self.spec.view, states=("ready",)):
            self.outcome.notice(self.cutovers.attempt(self.spec.encoder, fill.space))

    def _is_refresh(self, tick: Tick, end_us: int) -> bool:
        """Whether a tick was the refresh as of ``end_us`` by the encoder that is declared now."""
        same = self.ledger.fill(tick.fills[0]).space == self.workspace.declared_space(self.spec)
        return same and tick.end_us == end_us

    def _serves_declared(self) -> bool:
        """Whether the view is live in the declared space, and Redis holds that generation."""
        live = self.ledger.fills(view=self.spec.view, states=("live",))
        declared = self.workspace.declared_space(self.spec)
        return bool(live) and live[-1].space == declared and not self._lost()

    def _say_abandoned(self, tick: Tick, reason: str) -> None:
        self.outcome.notice(f"tick {tick.number} had no effect yet and {reason}: it is recorded anew")

    # ── leases ───────────────────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def _ticking(
        self, owner: str | None = None, wait_s: float | None = None, on_wait: Callable[[], bool] | None = None
    ) -> Iterator[TicksOfView]:
        """Hold the lease of the view's ticks; the last round of a refresh is waited for."""
        self.workspace.declared_space(self.spec)
        wait, wait_s = on_wait or self._last_round, LAST_ROUND_WAIT_S if wait_s is None else wait_s
        with held(self.ledger, self._ticks_lease, self._lease_s, wait_s, owner, wait) as lease:
            work = self._work(lease)
            yield UserTicks(work, self._source) if self._source else ItemTicks(work, self._followed)

    @contextmanager
    def _refreshing(self, owner: str | None = None) -> Iterator[Refreshes]:
        """Hold the lease of the view's refreshes."""
        self.workspace.declared_space(self.spec)
        with held(self.ledger, self._refresh_lease, self._lease_s, owner=owner) as lease:
            yield Refreshes(self._work(lease))

    def _work(self, lease: Lease) -> ViewWork:
        return ViewWork(self.workspace, self.server, self.spec, self._source, lease)

    def _last_round(self) -> bool:
        """Whether a refresh holds the lease of the ticks, which it does briefly."""
        found = holder(self.ledger, self._ticks_lease)
        return found is not None and found == holder(self.ledger, self._refresh_lease)

    def _has_work(self, end_us: int) -> bool:
        """Whether something is due, or was left by a stopped job."""
        left = self.ledger.open_tick(self.spec.view) or self.ledger.fills(view=self.spec.view, states=("ready",))
        pending = any(each.cutover_us is None for each in self.ledger.generations(self.spec.encoder))
        return bool(left) or pending or bool(self.agenda.due(end_us))

    # ── checks ───────────────────────────────────────────────────────────────────────────────────────────

    def _lost(self) -> str | None:
        """What Redis should hold of the live generation, and does not."""
        lost = self._marks.lost_generation()
        return None if lost is None else f"Redis does not hold {lost}"


def _source(workspace: Workspace, project: str, registry: BaseRegistry, spec: EmbeddingSpec) -> BehaviorLog | None:
    if spec.tower == "item":
        return None
    return workspace.behavior_log(registry, project, spec)

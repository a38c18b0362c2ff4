"""Runs what is due for one embedding view, under a lease: ticks, refreshes, and what a stopped job left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from feast import RepoConfig
from feast.infra.registry.base_registry import BaseRegistry

from feast_embeddings.materialize import online_writes as online
from feast_embeddings.materialize.clock import iso, now_us
from feast_embeddings.materialize.cutover import Cutovers
from feast_embeddings.materialize.leases import held
from feast_embeddings.materialize.ledger_records import Fill, Tick
from feast_embeddings.materialize.members import BehaviorLog
from feast_embeddings.materialize.online_store import EmbeddingOnlineStore
from feast_embeddings.materialize.policy import Due, Incremental, due
from feast_embeddings.materialize.progress import progress
from feast_embeddings.materialize.steps import reached
from feast_embeddings.materialize.ticks import RECEIVING, Ticks
from feast_embeddings.materialize.views import EmbeddingSpec
from feast_embeddings.materialize.workspace import Workspace, behaviors_of, view_resource
from feast_embeddings.models.errors import OnlineStoreError, TickError


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


class Runner:
    """Jobs of one embedding view."""

    def __init__(
        self,
        workspace: Workspace,
        store: EmbeddingOnlineStore,
        config: RepoConfig,
        registry: BaseRegistry,
        spec: EmbeddingSpec,
        lease_s: float = 60,
    ) -> None:
        self.workspace = workspace
        self.ledger = workspace.ledger
        self.store = store
        self.config = config
        self.spec = spec
        self.cutovers = Cutovers(workspace, store, config, registry)
        self.outcome = Outcome()
        self._registry = registry
        self._lease_s = lease_s

    def refresh(self, end_us: int) -> Outcome:
        """A full refresh as of ``end_us`` into a new fill, and the cutover to it.

        Raises:
            TickError: ``end_us`` lies in the future, or before the view's watermark.
            LeaseError: Another job works on the view.
        """
        self._check_end(end_us)
        with self._ticks() as ticks:
            resumed = self._take_up(ticks)
            if self.spec.tower == "item" and self._serves_declared():
                self.outcome.notices.append("its items are live in the declared space already: 0 rows written")
            elif resumed is None or not self._is_refresh(resumed, end_us):
                watermark = self._watermark()
                if watermark is not None and end_us < watermark:
                    raise TickError(
                        f"View {self.spec.view!r} already stands at {iso(watermark)}; a refresh as of {iso(end_us)} "
                        "would go back in time: give an end at or after it, or roll back a generation."
                    )
                self._run(ticks, Due("full", watermark, end_us))
        return self.outcome

    def run_due(self, end_us: int) -> Outcome:
        """Every tick and refresh that the policy has due up to ``end_us``; there may be none, and it says so.

        Raises:
            TickError: ``end_us`` lies in the future.
            LeaseError: Another job works on the view.
            OnlineStoreError: Redis has lost the live generation.
        """
        self._check_end(end_us)
        with self._ticks() as ticks:
            self._check_online()
            self._take_up(ticks)
            for unit in progress(self._due(end_us), f"{self.spec.view}: ticks", "tick"):
                self._run(ticks, unit)
            if not self.outcome.units:
                self.outcome.notices.append(f"nothing is due up to {iso(end_us)}: 0 rows written")
        return self.outcome

    def _is_refresh(self, tick: Tick, end_us: int) -> bool:
        """Whether a tick was the refresh as of ``end_us`` by the encoder that is declared now."""
        if (tick.kind, tick.end_us) != ("full", end_us):
            return False
        return self.ledger.fill(tick.fills[0]).space == self.workspace.declared_space(self.spec)

    # ── what is due ──────────────────────────────────────────────────────────────────────────────────────

    def _due(self, end_us: int) -> list[Due]:
        declared, served = self.workspace.declared_space(self.spec), self._newest_fill()
        watermark = self._watermark()
        new_space = served is not None and served.space != declared and not self._rolled_back_from(declared)
        if self.spec.tower == "item":
            fresh = served is not None and not new_space
            return [] if fresh else [Due("full", watermark, max(end_us, watermark or end_us))]
        if new_space and served is not None and isinstance(self.spec.policy, Incremental):
            self.outcome.notices.append(
                f"the declared encoder's space {declared} is not the live {served.space}, and an Incremental policy "
                "does not refresh by itself: run `feast materialize`"
            )
        full = self.ledger.last_tick(self.spec.view, "full")
        return due(
            self.spec.policy,
            watermark_us=watermark,
            full_us=full.end_us if full else None,
            end_us=end_us,
            new_space=new_space,
        )

    def _serves_declared(self) -> bool:
        """Whether the view is live in the declared space, and Redis holds that generation."""
        live = self.ledger.fills(view=self.spec.view, states=("live",))
        declared = self.workspace.declared_space(self.spec)
        return bool(live) and live[-1].space == declared and not self._lost()

    def _rolled_back_from(self, space: str) -> bool:
        """Whether the last cutover was a rollback away from ``space``: no policy may undo it."""
        live = self.ledger.live_generation(self.spec.encoder)
        retained = self.ledger.fills(view=self.spec.view, states=("retained",))
        if live is None or not live.rollback or all(fill.space != space for fill in retained):
            return False
        self.outcome.notices.append(
            f"the declared space {space} was rolled back from: run `feast materialize` to go forward to it again"
        )
        return True

    def _watermark(self) -> int | None:
        last = self.ledger.last_tick(self.spec.view)
        return last.end_us if last else None

    def _newest_fill(self) -> Fill | None:
        fills = self.ledger.fills(view=self.spec.view, states=("live", "ready"))
        return fills[-1] if fills else None

    # ── running it ───────────────────────────────────────────────────────────────────────────────────────

    def _run(self, ticks: Ticks, unit: Due) -> None:
        last = self.ledger.last_tick(self.spec.view)
        created = last.created_until_us if last else None
        view = self.spec.view
        if unit.kind == "full":
            space = self.workspace.declared_space(self.spec)
            tick = self.ledger.record_refresh(
                view,
                self.spec.encoder,
                space,
                start_us=unit.start_us,
                end_us=unit.end_us,
                created_from_us=created,
            )
        else:
            targets = [fill.fill for fill in self.ledger.fills(view=view, states=RECEIVING)]
            tick = self.ledger.record_tick(
                view, start_us=unit.start_us, end_us=unit.end_us, created_from_us=created, targets=targets
            )
        reached("recorded")
        self._finish(ticks, tick)

    def _finish(self, ticks: Ticks, tick: Tick) -> None:
        tick = ticks.finish(tick)
        self.outcome.units += 1
        self.outcome.rows += tick.rows
        self.outcome.encoded += tick.encoded
        if tick.kind == "full":
            space = self.ledger.fill(tick.fills[0]).space
            self.outcome.notices.append(self.cutovers.attempt(self.spec.encoder, space))

    def _take_up(self, ticks: Ticks) -> Tick | None:
        """Finish what a stopped job left: a cutover, a tick. Returns the tick it finished."""
        self.cutovers.resume(self.spec.encoder)
        tick = self.ledger.open_tick(self.spec.view)
        if tick is None:
            self._cut_over_ready()
            return None
        reason = "its behaviors changed" if ticks.changed(tick) else self._lost() if ticks.reads_state(tick) else None
        if reason is not None:
            ticks.abandon(tick)
            self.outcome.notices.append(f"tick {tick.number} had no effect yet and {reason}: it is recorded anew")
            return None
        self.outcome.notices.append(f"took up tick {tick.number}, which a stopped job had left unfinished")
        self._finish(ticks, tick)
        return tick

    def _cut_over_ready(self) -> None:
        """A job may have stopped between making a fill ready and recording its cutover."""
        for fill in self.ledger.fills(view=self.spec.view, states=("ready",)):
            self.outcome.notices.append(self.cutovers.attempt(self.spec.encoder, fill.space))

    @contextmanager
    def _ticks(self) -> Iterator[Ticks]:
        self.workspace.declared_space(self.spec)
        with held(self.ledger, view_resource(self.config.project, self.spec.view), self._lease_s) as lease:
            yield Ticks(self.workspace, self.store, self.config, self.spec, self._source(), lease)

    def _source(self) -> BehaviorLog | None:
        if self.spec.tower == "item":
            return None
        behaviors = behaviors_of(self._registry, self.config.project, self.spec)
        return BehaviorLog.of(behaviors, self.workspace.root, self.ledger)

    def _check_end(self, end_us: int) -> None:
        if end_us > now_us():
            raise TickError(
                f"View {self.spec.view!r}: the end {iso(end_us)} lies in the future: a watermark there would skip "
                "the behaviors still to come; give an end at or before now."
            )

    def _check_online(self) -> None:
        lost = self._lost()
        if lost is not None:
            raise OnlineStoreError(
                f"View {self.spec.view!r}: {lost}, which the ledger says is live: it was emptied or replaced. "
                "Run `feast-embeddings restore` to fill it from the logs as it was, or `feast materialize` for a "
                "full refresh."
            )

    def _lost(self) -> str | None:
        """What Redis should hold of the live generation, and does not."""
        live = self.ledger.live_generation(self.spec.encoder)
        if live is None:
            return None
        manifest = online.read_manifest(self.store, self.config, self.spec.encoder)
        if manifest is not None and manifest.generation >= live.generation:
            return None
        return f"Redis does not hold generation {live.generation} of encoder {self.spec.encoder!r}"

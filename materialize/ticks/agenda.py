"""What is due for one embedding view, from where the next tick or refresh goes on, and its recording.

Numbers are given in the order in which work is recorded, and say in which order it counts: a tick that was recorded
while a refresh was being made comes after that refresh, also where it is published long before.
"""

from __future__ import annotations

from collections.abc import Callable

from feast_embeddings.materialize.clock import iso
from feast_embeddings.materialize.declare import Due, EmbeddingSpec, Incremental, due
from feast_embeddings.materialize.files import Workspace
from feast_embeddings.materialize.ledger import RECEIVING, Fill, Follows, Tick
from feast_embeddings.models.errors import TickError


class Agenda:
    """What is to be done for a view.

    Args:
        workspace: Of the feature repo.
        spec: The view's declaration.
        notice: Tells people something.
        created: Whether its behaviors have a created time, so that late ones are told from old ones.
    """

    def __init__(self, workspace: Workspace, spec: EmbeddingSpec, notice: Callable[[str], None], created: bool) -> None:
        self.workspace, self.ledger = workspace, workspace.ledger
        self.spec, self.view = spec, spec.view
        self._notice = notice
        self._created = created
        self._unseen = Follows(self.ledger, spec.view, spec.users) if spec.users else None

    def due(self, end_us: int) -> list[Due]:
        """Units of work due up to a time, in order; a refresh that is being made counts as done."""
        declared, served = self.workspace.declared_space(self.spec), self._newest_fill()
        watermark = self._position()[0]
        new_space = served is not None and served.space != declared and not self._rolled_back_from(declared)
        if self.spec.tower == "item":
            fresh = served is not None and not new_space
            return self._following(end_us) if fresh else [Due("full", watermark, max(end_us, watermark or end_us))]
        if new_space and served is not None and isinstance(self.spec.policy, Incremental):
            self._notice(
                f"the declared encoder's space {declared} is not the live {served.space}, and an Incremental policy "
                "does not refresh by itself: run `feast materialize`"
            )
        full = self._refresh() or self.ledger.last_tick(self.view, "full")
        units = due(
            self.spec.policy,
            watermark_us=watermark,
            full_us=full.end_us if full else None,
            end_us=end_us,
            new_space=new_space,
        )
        if not self.streamed:
            return units
        if any(unit.kind == "incremental" for unit in units):
            self._notice("its ticks are those of its stream: only refreshes are run here")
        return [unit for unit in units if unit.kind == "full"]

    def _following(self, end_us: int) -> list[Due]:
        """The next tick of an item view, if its user view has ticks that it has not followed yet."""
        waiting = self._unseen.waiting(end_us) if self._unseen else []
        return [Due("incremental", None, max(tick.end_us for tick in waiting))] if waiting else []

    @property
    def streamed(self) -> bool:
        """Whether a stream feeds the view: its micro-batches are its ticks then."""
        return self._stream_end_us() is not None

    def _stream_end_us(self) -> int | None:
        return self.ledger.stream_end_us(self.view) if self.spec.tower == "user" else None

    def record_tick(self, unit: Due) -> Tick:
        """Record the next tick: the one that is due, or a bridge before it.

        A refresh that is being made owns what happened up to its end, for its own fill. Where ticks go on before it
        is done, a tick with the very same members brings them to the fills in use first: the bridge.

        Raises:
            OvertakenError: Another job recorded something meanwhile.
        """
        if self._unseen is not None:
            return self._unseen.record(self._unseen.waiting(unit.end_us))
        number, _ = self.ledger.newest(self.view)
        targets = [fill.fill for fill in self.ledger.fills(view=self.view, states=RECEIVING)]
        refresh = self._refresh()
        if refresh is not None and self._is_last(refresh) and self._has_members(refresh):
            return self.ledger.record_tick(
                self.view,
                start_us=refresh.start_us,
                end_us=refresh.end_us,
                created_from_us=refresh.created_from_us,
                created_until_us=refresh.created_until_us,
                targets=targets,
                after=number,
            )
        created = self._position()[1]
        return self.ledger.record_tick(
            self.view,
            start_us=unit.start_us,
            end_us=unit.end_us,
            created_from_us=created,
            targets=targets,
            after=number,
        )

    def record_refresh(self, end_us: int) -> Tick:
        """Record a refresh as of a time, and the fill that it makes.

        Raises:
            TickError: The view stands at a later time already.
            OvertakenError: Another job recorded something meanwhile.
        """
        number, newest = self.ledger.newest(self.view)
        end_us = max(end_us, self._stream_end_us() or end_us)  # it holds all that its stream has applied
        if self.spec.tower == "item" and newest is not None:
            end_us = max(end_us, newest.end_us)  # its vectors are the encoder's at any time
        if newest is not None and end_us < newest.end_us:
            raise TickError(
                f"View {self.view!r} already stands at {iso(newest.end_us)}; a refresh as of {iso(end_us)} "
                "would go back in time: give an end at or after it, or roll back a generation."
            )
        return self.ledger.record_refresh(
            self.view,
            self.spec.encoder,
            self.workspace.declared_space(self.spec),
            start_us=newest.end_us if newest else None,
            end_us=end_us,
            created_from_us=newest.created_until_us if newest else None,
            after=number,
        )

    # ── where the view stands ────────────────────────────────────────────────────────────────────────────

    def _position(self) -> tuple[int | None, int | None]:
        """The event time up to which behaviors have been given to ticks, and the created time of the late ones."""
        refresh, last = self._refresh(), self.ledger.last_tick(self.view)
        if refresh is not None and self._is_last(refresh):
            last = refresh
        return (last.end_us, last.created_until_us) if last else (None, None)

    def _refresh(self) -> Tick | None:
        """The refresh that is being made."""
        return self.ledger.open_tick(self.view, "full")

    def _is_last(self, refresh: Tick) -> bool:
        """Whether nothing was applied that was recorded after a refresh."""
        last = self.ledger.last_tick(self.view)
        return last is None or last.number < refresh.number

    def _has_members(self, refresh: Tick) -> bool:
        """Whether a refresh may hold behaviors that the fills in use do not know."""
        if refresh.start_us is None:
            return False  # nothing is in use before the first one
        late = self._created and refresh.created_from_us != refresh.created_until_us
        return late or refresh.start_us < refresh.end_us

    def _rolled_back_from(self, space: str) -> bool:
        """Whether the last cutover was a rollback away from ``space``: no policy may undo it."""
        live = self.ledger.live_generation(self.spec.encoder)
        retained = self.ledger.fills(view=self.view, states=("retained",))
        if live is None or not live.rollback or all(fill.space != space for fill in retained):
            return False
        self._notice(f"the declared space {space} was rolled back from: run `feast materialize` to go forward to it")
        return True

    def _newest_fill(self) -> Fill | None:
        fills = self.ledger.fills(view=self.view, states=("live", "ready", "building"))
        return fills[-1] if fills else None

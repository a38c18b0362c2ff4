"""Whether Redis still holds what ticks have written: looked at before a tick counts on it, and before it says so.

The ledger knows the last tick of each series that Redis was seen to hold, and Redis has a mark of it. A tick reads its
vectors and histories between two marks: where the second is another one, what it read is not what was written.
"""

from __future__ import annotations

from feast_embeddings.materialize.declare import EmbeddingSpec
from feast_embeddings.materialize.ledger import Fill, Ledger, Tick
from feast_embeddings.materialize.online import OnlineServer, mark_tick, read_manifest, read_marks, write_marks
from feast_embeddings.models.errors import LedgerError, OnlineStoreError


class Marks:
    """The marks of one view, as one job, or one lane of a stream, sets and finds them."""

    def __init__(self, ledger: Ledger, server: OnlineServer, spec: EmbeddingSpec) -> None:
        self._ledger, self._server, self._spec = ledger, server, spec
        self._known: dict[str, int] = {}

    def check(self) -> None:
        """Check that Redis holds the live generation, and the last tick of each series.

        Raises:
            OnlineStoreError: It does not: it was emptied, replaced, or went back to an older state.
            LedgerError: It holds more than the ledger knows.
        """
        view = self._spec.view
        if self._ledger.live_generation(self._spec.encoder) is None:
            return
        lost = self.lost_generation()
        if lost is not None:
            raise self._lost(f"{lost}, which the ledger says is live")
        found, (newest, _) = read_marks(self._server, view), self._ledger.newest(view)
        last = max(map(abs, found.values()), default=0)
        if last > newest:
            raise LedgerError(
                f"Redis holds rows of tick {last} of view {view!r}, and the ledger's last one is {newest}: the ledger "
                "is older than this Redis, or another's. Bring back the ledger that belongs to it, or connect an empty "
                "Redis and run `feast-embeddings restore`."
            )
        for series, number in self._ledger.marks(view).items():
            if series != "refreshes" and found.get(series, 0) < number:
                raise self._lost(f"tick {number} of view {view!r}")

    def lost_generation(self) -> str | None:
        """The live generation, where Redis does not hold it."""
        live = self._ledger.live_generation(self._spec.encoder)
        if live is None:
            return None
        manifest = read_manifest(self._server, self._spec.encoder)
        if manifest is not None and manifest.generation >= live.generation:
            return None
        return f"generation {live.generation} of encoder {self._spec.encoder!r}"

    def check_before(self, tick: Tick) -> None:
        """Check that what a tick has read of Redis is what the ticks before it had written.

        Raises:
            OnlineStoreError: Redis lost some of it.
        """
        before = self._before(tick)
        if before is not None and self._found(tick.series) not in (before, tick.number):
            raise self._lost(f"tick {before} of view {self._spec.view!r}")

    def begin(self, refresh: Tick) -> None:
        """Say that a refresh is being written; nothing of it is there yet."""
        write_marks(self._server, self._spec.view, {refresh.series: -refresh.number})
        self._known[refresh.series] = -refresh.number

    def set(self, tick: Tick) -> None:
        """Say that the rows of a tick are in Redis.

        Raises:
            OnlineStoreError: Redis lost what the tick before had written, or the beginning of this one.
        """
        before = self._before(tick)
        if not mark_tick(self._server, self._spec.view, tick.series, tick.number, before):
            raise self._lost(f"tick {abs(before or tick.number)} of view {self._spec.view!r}")
        self._known[tick.series] = tick.number

    def check_ready(self, fill: Fill) -> None:
        """Check, before a cutover, that Redis holds a fill.

        Raises:
            OnlineStoreError: Redis lost it. A restore brings it back; before anything was live, the next job writes it
                again.
        """
        refresh = self._ledger.tick(self._spec.view, fill.tick)
        if self._ledger.marks(self._spec.view).get(refresh.series) != fill.tick:
            return  # made by a version that set no marks
        if self._found(refresh.series) != fill.tick:
            if self._ledger.live_generation(fill.encoder) is None:
                self._ledger.reopen(refresh)
            raise self._lost(f"the rows of refresh {fill.tick} of view {self._spec.view!r}, which was ready")

    def _before(self, tick: Tick) -> int | None:
        """The tick of the same series that Redis should hold, as far as that is known."""
        if tick.series not in self._known:
            self._known = self._ledger.marks(self._spec.view) | self._known
        return self._known.get(tick.series)

    def _found(self, series: str) -> int | None:
        return read_marks(self._server, self._spec.view).get(series)

    def _lost(self, what: str) -> OnlineStoreError:
        return OnlineStoreError(
            f"View {self._spec.view!r}: Redis does not hold {what}: it was emptied, replaced, or went back to an older "
            "state. Run `feast-embeddings restore` to fill it from the logs as it was, or `feast materialize` for a "
            "full refresh."
        )

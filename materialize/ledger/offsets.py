"""What the ledger knows of streams: micro-batches by their offsets, recorded first, and how far each partition is."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from feast_embeddings.materialize.clock import now_us
from feast_embeddings.materialize.ledger.database import Ledger
from feast_embeddings.materialize.ledger.leases import Lease
from feast_embeddings.materialize.ledger.records import RECEIVING
from feast_embeddings.materialize.ledger.schema import fills, metadata, ticks
from feast_embeddings.materialize.ledger.stream_schema import TABLES, stream_positions, stream_ticks, stream_totals
from feast_embeddings.materialize.stream.source import Ranges, ranges_from_json, ranges_to_json
from feast_embeddings.models.errors import TickError


@dataclass(frozen=True)
class StreamTick:
    """One micro-batch. Its membership, the ranges, never changes once recorded.

    Attributes:
        view: The embedding view.
        number: Counts up per view, together with its batch ticks.
        lane: Which lane formed it, as ``"0/2"``.
        source: Name of the stream.
        ranges: Partition → first and last offset.
        state: ``"recorded"`` or ``"published"``.
        end_us: When it was formed; its behaviors happened before.
        fills: The fills that it writes.
        kept: Behaviors that it keeps of each history.
        counts: What became of its behaviors; None before it is published.
        rows: Rows of vectors that it wrote.
        window_start_us, published_us: The publish window; within it, either vector may be read.
    """

    view: str
    number: int
    lane: str
    source: str
    ranges: Ranges
    state: str
    end_us: int
    fills: tuple[str, ...]
    kept: int
    counts: Mapping[str, int] | None
    rows: int
    window_start_us: int | None
    published_us: int | None

    @property
    def positions(self) -> dict[int, int]:
        """The last offset of each partition."""
        return {partition: last for partition, (_, last) in self.ranges.items()}


class StreamLedger:
    """Reads and writes the stream's tables; writes renew the lane's lease in their transaction, or fail with it."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        with ledger.unguarded() as connection:
            metadata.create_all(connection, tables=TABLES)

    def record(
        self,
        lease: Lease,
        view: str,
        lane: str,
        source: str,
        ranges: Ranges,
        kept_of: Callable[[Sequence[str]], int],
    ) -> StreamTick:
        """Record a micro-batch before anything is computed from it; it ends now.

        Args:
            lease: The lane's.
            view: The embedding view.
            lane: Name of the lane.
            source: Name of the stream.
            ranges: The membership.
            kept_of: Behaviors to keep of each history, given the spaces that the tick writes.

        Raises:
            LeaseError: Another worker took the lane over; nothing is recorded.
            TickError: The view has no live generation.
        """
        with self._writing(lease) as connection:
            found = connection.execute(
                sa.select(fills.c.fill, fills.c.space)
                .where(fills.c.view == view, fills.c.state.in_(RECEIVING))
                .order_by(fills.c.made_us)
            ).all()
            if not found:
                raise TickError(f"View {view!r} has never been live: run `feast materialize` once, then its stream.")
            number, now = _next_number(connection, view), now_us()
            last = connection.scalar(sa.select(sa.func.max(stream_ticks.c.end_us)).where(*_lane(view, lane)))
            row = {
                "view": view,
                "tick": number,
                "lane": lane,
                "source": source,
                "ranges": ranges_to_json(ranges),
                "state": "recorded",
                "end_us": max(now, (last or 0) + 1),
                "fills": json.dumps([fill for fill, _ in found]),
                "kept": kept_of(sorted({space for _, space in found})),
                "recorded_us": now,
                "rows": 0,
            }
            connection.execute(sa.insert(stream_ticks).values(**row))
            for partition, (_, position) in ranges.items():
                _advance(connection, view, source, partition, position)
        blank = dict.fromkeys(("counts", "window_start_us", "published_us"))
        return _tick({**row, **blank})

    def begin_write(self, lease: Lease, tick: StreamTick) -> StreamTick:
        """Open the publish window: from now on, reads may return the tick's rows."""
        if tick.window_start_us is not None:
            with self._writing(lease):
                return tick
        start = now_us()
        with self._writing(lease) as connection:
            connection.execute(sa.update(stream_ticks).where(*_key(tick)).values(window_start_us=start))
        return replace(tick, window_start_us=start)

    def publish(
        self, lease: Lease, tick: StreamTick, counts: Mapping[str, int], digest: str, rows: int, us: int
    ) -> None:
        """Commit a tick: its counts join the view's totals, once."""
        values = {
            "state": "published",
            "published_us": us,
            "rows": rows,
            "digest": digest,
            "counts": json.dumps(counts),
        }
        with self._writing(lease) as connection:
            recorded = sa.update(stream_ticks).where(*_key(tick), stream_ticks.c.state == "recorded")
            if connection.execute(recorded.values(**values)).rowcount:
                _add_totals(connection, tick.view, counts)

    def open_ticks(self, view: str, lane: str | None = None) -> list[StreamTick]:
        """Recorded ticks that are not published, oldest first."""
        return self._ticks(stream_ticks.c.view == view, stream_ticks.c.state == "recorded", *_lane(view, lane))

    def ticks(self, view: str, after: int = 0) -> list[StreamTick]:
        """Published ticks behind number ``after``, oldest first."""
        return self._ticks(
            stream_ticks.c.view == view, stream_ticks.c.state == "published", stream_ticks.c.tick > after
        )

    def published(self, view: str, first: int) -> set[int]:
        """Numbers of the published ticks from ``first`` on."""
        mine = (stream_ticks.c.view == view, stream_ticks.c.state == "published", stream_ticks.c.tick >= first)
        with self.ledger.reading() as connection:
            return {int(number) for number in connection.scalars(sa.select(stream_ticks.c.tick).where(*mine))}

    def positions(self, view: str, source: str) -> dict[int, int]:
        """The last recorded offset of every partition."""
        mine = (stream_positions.c.view == view, stream_positions.c.source == source)
        query = sa.select(stream_positions.c.partition, stream_positions.c.position).where(*mine)
        with self.ledger.reading() as connection:
            return {int(partition): int(position) for partition, position in connection.execute(query)}

    def totals(self, view: str) -> dict[str, int]:
        """Behaviors of published ticks by what became of them."""
        query = sa.select(stream_totals.c.what, stream_totals.c.behaviors).where(stream_totals.c.view == view)
        with self.ledger.reading() as connection:
            return {what: int(count) for what, count in connection.execute(query.order_by(stream_totals.c.what))}

    def last_end_us(self, view: str) -> int | None:
        """End of the view's last micro-batch; None where it never had one, that is: no stream feeds it."""
        query = sa.select(sa.func.max(stream_ticks.c.end_us)).where(stream_ticks.c.view == view)
        with self.ledger.reading() as connection:
            found = connection.scalar(query)
        return None if found is None else int(found)

    def prune(self, view: str, before_us: int) -> int:
        """Forget published ticks that ended before a time, but for each lane's last; totals stay. How many."""
        last = (
            sa.select(sa.func.max(stream_ticks.c.tick)).where(stream_ticks.c.view == view).group_by(stream_ticks.c.lane)
        )
        old = (stream_ticks.c.view == view, stream_ticks.c.state == "published", stream_ticks.c.end_us < before_us)
        with self.ledger.transaction() as connection:
            kept = list(connection.scalars(last))
            return int(
                connection.execute(sa.delete(stream_ticks).where(*old, stream_ticks.c.tick.not_in(kept))).rowcount
            )

    def _ticks(self, *where: sa.ColumnElement[bool]) -> list[StreamTick]:
        query = sa.select(stream_ticks).where(*where).order_by(stream_ticks.c.tick)
        with self.ledger.reading() as connection:
            return [_tick(row) for row in connection.execute(query).mappings()]

    def _writing(self, lease: Lease) -> _Writing:
        return _Writing(self.ledger, lease)


class _Writing:
    """A transaction that begins with the renewal of a lease."""

    def __init__(self, ledger: Ledger, lease: Lease) -> None:
        self._transaction, self._lease = ledger.unguarded(), lease

    def __enter__(self) -> Connection:
        connection = self._transaction.__enter__()
        try:
            self._lease.renew(connection)
        except BaseException as error:
            self._transaction.__exit__(type(error), error, error.__traceback__)
            raise
        return connection

    def __exit__(self, *error: object) -> bool | None:
        return self._transaction.__exit__(*error)  # type: ignore[arg-type]


def _next_number(connection: Connection, view: str) -> int:
    """Batch ticks and micro-batches of a view are numbered together: Redis compares their numbers."""
    newest = [
        connection.scalar(sa.select(sa.func.max(t.c.tick)).where(t.c.view == view)) for t in (ticks, stream_ticks)
    ]
    return max(int(number or 0) for number in newest) + 1


def _advance(connection: Connection, view: str, source: str, partition: int, position: int) -> None:
    key = (
        stream_positions.c.view == view,
        stream_positions.c.source == source,
        stream_positions.c.partition == partition,
    )
    if not connection.execute(sa.update(stream_positions).where(*key).values(position=position)).rowcount:
        values = {"view": view, "source": source, "partition": partition, "position": position}
        connection.execute(sa.insert(stream_positions).values(**values))


def _add_totals(connection: Connection, view: str, counts: Mapping[str, int]) -> None:
    for what, count in counts.items():
        key = (stream_totals.c.view == view, stream_totals.c.what == what)
        more = sa.update(stream_totals).where(*key).values(behaviors=stream_totals.c.behaviors + count)
        if not connection.execute(more).rowcount:
            connection.execute(sa.insert(stream_totals).values(view=view, what=what, behaviors=count))


def _key(tick: StreamTick) -> tuple[sa.ColumnElement[bool], sa.ColumnElement[bool]]:
    return stream_ticks.c.view == tick.view, stream_ticks.c.tick == tick.number


def _lane(view: str, lane: str | None) -> list[sa.ColumnElement[bool]]:
    return [stream_ticks.c.view == view, *([] if lane is None else [stream_ticks.c.lane == lane])]


def _tick(row: RowMapping | Mapping[str, object]) -> StreamTick:
    kept = {name: row[name] for name in StreamTick.__dataclass_fields__ if name in row}
    counts = row["counts"]
    read = {
        "number": row["tick"],
        "ranges": ranges_from_json(str(row["ranges"])),
        "fills": tuple(json.loads(str(row["fills"]))),
        "counts": None if counts is None else json.loads(str(counts)),
    }
    return StreamTick(**{**kept, **read})  # type: ignore[arg-type]

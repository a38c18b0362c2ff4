"""What shows that Redis holds the rows of a view's ticks: a mark per series of ticks, the number of the last one.

A mark is written after the rows of its tick, by the same server: where the mark is, the rows are. A server that was
emptied, started from an older snapshot, or took over without the last writes has another mark than the ledger knows.
"""

from __future__ import annotations

from collections.abc import Mapping

from feast_embeddings.materialize.online import keys
from feast_embeddings.materialize.online.commands import call_script
from feast_embeddings.materialize.online.server import OnlineServer


def read_marks(server: OnlineServer, view: str) -> dict[str, int]:
    """Series → number of its last tick whose rows Redis holds; negative: the tick of that number is being written.

    Raises:
        OnlineStoreError: Redis cannot be reached.
    """
    with server.client() as client:
        found = client.hgetall(keys.marks_key(server.project, view))
    return {series.decode(): int(tick) for series, tick in found.items()}


def write_marks(server: OnlineServer, view: str, marks: Mapping[str, int]) -> None:
    """Set marks, whatever stands there; raises OnlineStoreError where Redis cannot be reached."""
    if marks:
        with server.client() as client:
            client.hset(keys.marks_key(server.project, view), mapping=dict(marks))


def mark_tick(server: OnlineServer, view: str, series: str, tick: int, before: int | None) -> bool:
    """Mark a tick where ``before`` stands, or its own mark; with None, where nothing or an earlier one does.

    Returns:
        Whether that was so; if not, nothing is changed.

    Raises:
        OnlineStoreError: Redis cannot be reached.
    """
    expected, marks = "" if before is None else before, [keys.marks_key(server.project, view)]
    with server.client() as client:
        return bool(call_script(client, "mark_tick.lua", marks, [series, tick, expected]))

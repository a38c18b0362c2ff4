"""A standstill: no tick, stream, refresh or cutover of some views runs, while something is done to their data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from feast_embeddings.materialize.declare import EmbeddingSpec
from feast_embeddings.materialize.files import Workspace
from feast_embeddings.materialize.ledger import cutover_resource, held, paused, refresh_resource, view_resource

CUTOVER_WAIT_S = 30.0


@contextmanager
def standstill(
    workspace: Workspace, project: str, specs: Sequence[EmbeddingSpec], others: Sequence[str] = ()
) -> Iterator[Callable[[], None]]:
    """Hold the leases of these views and of their encoders' cutovers; in the order in which jobs take them.

    ``others`` are names of views whose jobs take a lease of the view alone.

    Yields:
        A check, to be called now and then: renews the leases, or raises LeaseError if one was taken over.

    Raises:
        LeaseError: A job works on one of the views, or has been cutting over for half a minute.
    """
    names = sorted(spec.view for spec in specs)
    views = [resource(project, name) for resource in (refresh_resource, view_resource) for name in names]
    views += [view_resource(project, name) for name in sorted(others)]
    cutovers = sorted({cutover_resource(project, spec.encoder) for spec in specs})
    with ExitStack() as stack:
        streams = sorted(spec.view for spec in specs if spec.tower == "user")
        leases = [stack.enter_context(paused(workspace.ledger, project, view)) for view in streams]
        leases += [stack.enter_context(held(workspace.ledger, view)) for view in views]
        leases += [stack.enter_context(held(workspace.ledger, each, wait_s=CUTOVER_WAIT_S)) for each in cutovers]

        def still_ours() -> None:
            for lease in leases:
                lease.check()

        yield still_ours

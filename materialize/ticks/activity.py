"""Materializes activity views: counts and recency of every entity, as of the end of the job."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa
from feast.infra.common.materialization_job import MaterializationTask
from feast.infra.registry.base_registry import BaseRegistry

from feast_embeddings.materialize.clock import now_us, us_of
from feast_embeddings.materialize.declare import source_of
from feast_embeddings.materialize.files import BehaviorLog, Workspace
from feast_embeddings.materialize.ledger import held, view_resource
from feast_embeddings.materialize.ticks.milestones import counter
from feast_embeddings.transformations import activity, activity_spec_of, behaviors_name_of

_CHUNK_ROWS = 2_000


def write_activity(
    workspace: Workspace, registry: BaseRegistry, task: MaterializationTask, write: Callable[[pa.Table], None]
) -> int:
    """Write an activity view as of the task's end, part by part; returns the rows.

    Args:
        workspace: Of the feature repo.
        registry: Knows its views.
        task: Names the view and the end.
        write: Writes a part of the view's rows to the online store: keys, features, times.

    Raises:
        LeaseError: Another job writes the view, or an entity is being erased.
    """
    with held(workspace.ledger, view_resource(task.project, task.feature_view.name)) as lease:
        rows = _rows(workspace, registry, task)
        with counter(rows.num_rows, task.feature_view.name, "row") as shown:
            for start in range(0, rows.num_rows, _CHUNK_ROWS):
                lease.check()
                part = rows.slice(start, _CHUNK_ROWS).combine_chunks()
                write(part)
                shown.update(part.num_rows)
    return int(rows.num_rows)


def _rows(workspace: Workspace, registry: BaseRegistry, task: MaterializationTask) -> pa.Table:
    """Every entity's counts, as Feast's conversion wants them."""
    view = task.feature_view
    source = registry.get_feature_view(behaviors_name_of(view), task.project)
    log = BehaviorLog.of(source, workspace.root, workspace.ledger)
    end_us = us_of(task.end_time)
    behaviors = log.until(end_us, now_us())
    ids = behaviors.entities
    table = activity(behaviors, log.contract, activity_spec_of(view), ids, end_us)
    stamp = pa.repeat(pa.scalar(end_us, pa.timestamp("us", tz="UTC")), len(ids))
    features = [table[feature.name] for feature in view.features]
    times = [source_of(view).timestamp_field, source_of(view).created_timestamp_column]
    times = [name for name in times if name]  # Feast asks for every time that the source names
    names = [view.entity_columns[0].name, *(feature.name for feature in view.features), *times]
    return pa.Table.from_arrays([pa.array(ids), *features, *([stamp] * len(times))], names=names)

"""Materializes the views that have no ticks: activity as of the end of the job, and the latest behavior up to it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
from feast import FeatureView
from feast.infra.common.materialization_job import MaterializationTask
from feast.infra.registry.base_registry import BaseRegistry

from feast_embeddings.materialize.clock import iso, now_us, us_of
from feast_embeddings.materialize.declare import source_of
from feast_embeddings.materialize.files import BehaviorLog, Workspace
from feast_embeddings.materialize.ledger import held, view_resource
from feast_embeddings.materialize.ticks.milestones import counter
from feast_embeddings.models.errors import TickError
from feast_embeddings.models.types import Int64s
from feast_embeddings.transformations import activity, activity_spec_of, behaviors_name_of
from feast_embeddings.transformations.histories import latest, latest_rows
from feast_embeddings.transformations.views import BEHAVIORS_KIND, KIND

_CHUNK_ROWS = 2_000


def check_end(view: str, end_us: int) -> None:
    """Refuses a job whose end lies ahead: it would say of that time what is not known yet, or skip what comes.

    Raises:
        TickError: ``end_us`` lies in the future.
    """
    if end_us > now_us():
        raise TickError(
            f"View {view!r}: the end {iso(end_us)} lies in the future: a watermark there would skip "
            "the behaviors still to come; give an end at or before now."
        )


def write_plain(
    workspace: Workspace, registry: BaseRegistry, task: MaterializationTask, write: Callable[[pa.Table], None]
) -> int:
    """Write an activity or behaviors view up to the task's end, part by part; returns the rows.

    Args:
        workspace: Of the feature repo.
        registry: Knows its views.
        task: Names the view, the start and the end.
        write: Writes a part of the view's rows to the online store: keys, features, times.

    Raises:
        TickError: The end lies in the future.
        LeaseError: Another job writes the view, or an entity is being erased.
    """
    view = task.feature_view
    check_end(view.name, us_of(task.end_time))
    with held(workspace.ledger, view_resource(task.project, view.name)) as lease:
        rows = _latest(workspace, task) if view.tags[KIND] == BEHAVIORS_KIND else _activity(workspace, registry, task)
        with counter(rows.num_rows, view.name, "row") as shown:
            for start in range(0, rows.num_rows, _CHUNK_ROWS):
                lease.check()
                part = rows.slice(start, _CHUNK_ROWS).combine_chunks()
                write(part)
                shown.update(part.num_rows)
    return int(rows.num_rows)


def _activity(workspace: Workspace, registry: BaseRegistry, task: MaterializationTask) -> pa.Table:
    """Every entity's counts as of the end."""
    view = task.feature_view
    source = registry.get_feature_view(behaviors_name_of(view), task.project)
    log = BehaviorLog.of(source, workspace.root, workspace.ledger)
    end_us = us_of(task.end_time)
    behaviors = log.until(end_us, now_us())
    ids = behaviors.entities
    table = activity(behaviors, log.contract, activity_spec_of(view), ids, end_us)
    return _rows(view, pa.array(ids), table, np.full(len(ids), end_us, np.int64))


def _latest(workspace: Workspace, task: MaterializationTask) -> pa.Table:
    """The latest behavior of every entity that did anything from the start to the end, both included."""
    view = task.feature_view
    log = BehaviorLog.of(view, workspace.root, workspace.ledger)
    start_us, end_us = us_of(task.start_time), us_of(task.end_time)
    prepared = log.happened(start_us, end_us + 1)
    for reason, count in prepared.counts.quarantined.items():
        print(f"{view.name}: {count:,} rows left out: {reason}")
    behaviors = prepared.behaviors
    row = latest_rows(behaviors, behaviors.entities, end_us)
    ids = behaviors.table["entity"].take(pa.array(row))
    return _rows(view, ids, latest(behaviors, log.contract, row), behaviors.times_us[row])


def _rows(view: FeatureView, ids: pa.Array | pa.ChunkedArray, table: pa.Table, times_us: Int64s) -> pa.Table:
    """Keys, features and times as Feast's conversion wants them."""
    stamps = pa.array(times_us).cast(pa.timestamp("us", tz="UTC"))
    source = source_of(view)
    times = [name for name in (source.timestamp_field, source.created_timestamp_column) if name]  # Feast asks for all
    names = [view.entity_columns[0].name, *(feature.name for feature in view.features), *times]
    features = [table[feature.name] for feature in view.features]
    return pa.Table.from_arrays([ids, *features, *([stamps] * len(times))], names=names)

"""Feast's DuckDB store, extended: embedding, history, activity and behaviors views answer with what was served.

Every other view goes to stock Feast; only its relative paths are read from the feature repo, wherever the
process stands, and its rows come back in the order of ``entity_df``.
"""

from __future__ import annotations

import atexit
import copy
import uuid
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

import ibis
import ibis.expr.datatypes as dt
import numpy as np
import pandas as pd
import pyarrow as pa
from feast import FeatureView, OnDemandFeatureView, RepoConfig
from feast.data_source import DataSource
from feast.infra.offline_stores import ibis as stock

# What Feast's DuckDB store itself gives to the functions of its ibis module; nothing public reads or writes a source.
from feast.infra.offline_stores.duckdb import (
    DuckDBOfflineStore,
    DuckDBOfflineStoreConfig,
    _read_data_source,
    _write_data_source,
)
from feast.infra.offline_stores.file_source import FileSource
from feast.infra.offline_stores.offline_store import RetrievalJob
from feast.infra.registry.base_registry import BaseRegistry
from feast.saved_dataset import SavedDatasetStorage

from feast_embeddings.materialize.declare import check_inputs
from feast_embeddings.materialize.files import Workspace, create
from feast_embeddings.materialize.retrieval import (
    ANSWERED,
    ROW,
    Asked,
    Columns,
    EntityRows,
    Past,
    ServedRetrievalJob,
    check_names,
)
from feast_embeddings.models.errors import DeclarationError
from feast_embeddings.transformations.views import BEHAVIORS_KIND, KIND


@atexit.register
def _close_duckdb() -> None:
    """Close the DuckDB that ibis keeps: left open beside torch, it reports its own objects as leaks at exit."""
    backend = ibis.options.default_backend
    if backend is not None:
        ibis.options.default_backend = None
        backend.disconnect()


class EmbeddingOfflineStoreConfig(DuckDBOfflineStoreConfig):
    """Options of ``offline_store`` in feature_store.yaml: those of Feast's DuckDB store."""

    type: Literal["feast_embeddings.materialize.offline_store.EmbeddingOfflineStore"] = (
        "feast_embeddings.materialize.offline_store.EmbeddingOfflineStore"
    )


class EmbeddingOfflineStore(DuckDBOfflineStore):
    """Training reads what serving returned: one space per retrieval, nothing from the future, in order."""

    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: pd.DataFrame | str | None,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
        filter_by_created_timestamp: bool = False,
        **kwargs: Any,
    ) -> RetrievalJob:
        """Features of every row of ``entity_df``, at its time; computed when the job is asked for its result.

        An embedding view answers from one space: that of its pin, or the one live when the job computes. Rows
        and their order are those of ``entity_df``.

        Args:
            config: The feature repo's configuration.
            feature_views: The views, projections of them included.
            feature_refs: ``view:feature`` references.
            entity_df: Join keys and an event timestamp per row; timestamps without a zone are UTC.
            registry: The registry.
            project: The project.
            full_feature_names: Name columns ``view__feature``.
            filter_by_created_timestamp: As in Feast, for ordinary views; vectors and histories know only what
                their ticks knew anyway.
            kwargs: ``start_date`` and ``end_date`` of a retrieval without ``entity_df``, which is refused.

        Raises:
            DeclarationError: ``entity_df`` is no data frame or lacks a column, a name is taken twice, or
                activity is asked for by created time.
            SpaceError: A pinned space is not served (raised when the job computes).
        """
        rows = EntityRows.of(entity_df)
        asked = [Asked.of(view, feature_refs, full_feature_names) for view in feature_views]
        check_names(rows, asked)
        ours = [each for each in asked if each.view.tags.get(KIND) in ANSWERED]
        ordinary = [each.view for each in asked if each.view.tags.get(KIND) not in ANSWERED]
        for each in ours:
            rows.ids(each.view)
            _check_created(each.view, filter_by_created_timestamp)
        on_demand = OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry)
        check_inputs(on_demand, registry, project)
        past = Past(Workspace.of(config), registry, project, filter_by_created_timestamp) if ours else None
        compute = [partial(past.answer, each, rows) for each in ours] if past else []
        if ordinary or any(view.mode == "substrait" for view in on_demand):
            by_created = filter_by_created_timestamp
            job = _stock_job(rows, ordinary, feature_refs, config, registry, full_feature_names, by_created)
            compute.insert(0, partial(_stock_columns, job, rows))
        return ServedRetrievalJob(
            rows,
            asked,
            lambda: {name: column for part in compute for name, column in part().items()},
            on_demand=[view for view in on_demand if view.mode != "substrait"],
            full_feature_names=full_feature_names,
            features=feature_refs,
            write=partial(_persist, config),
        )

    @staticmethod
    def pull_latest_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None,
        start_date: datetime,
        end_date: datetime,
    ) -> RetrievalJob:
        """As stock Feast; relative paths start at the feature repo."""
        return stock.pull_latest_from_table_or_query_ibis(
            data_source=data_source,
            join_key_columns=join_key_columns,
            feature_name_columns=feature_name_columns,
            timestamp_field=timestamp_field,
            created_timestamp_column=created_timestamp_column,
            start_date=start_date,
            end_date=end_date,
            **_stock_options(config),
        )

    @staticmethod
    def pull_all_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> RetrievalJob:
        """As stock Feast; relative paths start at the feature repo."""
        return stock.pull_all_from_table_or_query_ibis(
            data_source=data_source,
            join_key_columns=join_key_columns,
            feature_name_columns=feature_name_columns,
            timestamp_field=timestamp_field,
            created_timestamp_column=created_timestamp_column,
            start_date=start_date,
            end_date=end_date,
            **_stock_options(config),
        )

    @staticmethod
    def offline_write_batch(
        config: RepoConfig, feature_view: FeatureView, table: pa.Table, progress: Callable[[int], Any] | None
    ) -> None:
        """As stock Feast; relative paths start at the feature repo.

        Raises:
            DeclarationError: The view is an embedding, history or activity view: nothing is written to those.
        """
        kind = feature_view.tags.get(KIND)
        if kind in ANSWERED and kind != BEHAVIORS_KIND:
            raise DeclarationError(
                f"Feature view {feature_view.name!r} is an {kind} view, written by materialization alone: append "
                "behaviors to its behavior table instead."
            )
        stock.offline_write_batch_ibis(
            config=config,
            feature_view=feature_view,
            table=table,
            progress=progress,
            data_source_writer=_write_resolved,
        )


def _check_created(view: FeatureView, filter_by_created_timestamp: bool) -> None:
    created = view.batch_source is not None and view.batch_source.created_timestamp_column
    if filter_by_created_timestamp and view.tags[KIND] == "activity" and created:
        raise DeclarationError(
            f"Activity view {view.name!r} counts by event time, and cannot leave out what was created later: ask for "
            "it without filter_by_created_timestamp, in a retrieval of its own."
        )


@ibis.udf.scalar.builtin  # type: ignore[untyped-decorator]
def epoch_ns(moment: dt.unknown) -> dt.int64:
    """DuckDB's function of this name."""


@ibis.udf.scalar.builtin  # type: ignore[untyped-decorator]
def divide(number: dt.int64, by: dt.int64) -> dt.int64:
    """DuckDB's whole division."""


@ibis.udf.scalar.builtin  # type: ignore[untyped-decorator]
def make_timestamptz(us: dt.int64) -> dt.Timestamp("UTC", 6):  # type: ignore[valid-type]
    """DuckDB's function of this name."""


# ── ordinary views ───────────────────────────────────────────────────────────────────────────────────────────


def _stock_options(config: RepoConfig) -> dict[str, Any]:
    return {
        "config": config,
        "data_source_reader": _read_resolved,
        "data_source_writer": _write_resolved,
        "staging_location": config.offline_store.staging_location,
        "staging_location_endpoint_override": config.offline_store.staging_location_endpoint_override,
    }


def _stock_job(
    rows: EntityRows,
    views: list[FeatureView],
    feature_refs: list[str],
    config: RepoConfig,
    registry: BaseRegistry,
    full_feature_names: bool,
    filter_by_created_timestamp: bool,
) -> RetrievalJob:
    return stock.get_historical_features_ibis(
        entity_df=rows.frame.assign(**{ROW: np.arange(len(rows))}),
        feature_views=views,
        feature_refs=feature_refs,
        registry=registry,
        project=config.project,
        full_feature_names=full_feature_names,
        filter_by_created_timestamp=filter_by_created_timestamp,
        **_stock_options(config),
    )


def _stock_columns(job: RetrievalJob, rows: EntityRows) -> Columns:
    """What stock Feast adds to the entity rows, in their order again."""
    table = job._to_arrow_internal()
    order = pa.array(np.argsort(table[ROW].to_numpy(), kind="stable"))
    added = [name for name in table.column_names if name != ROW and name not in rows.table.column_names]
    return {name: table[name].take(order) for name in added}


def _read_resolved(source: DataSource, repo_path: str) -> ibis.Table:
    table = _read_data_source(_resolved(source, repo_path, reading=True), repo_path)
    # pandas' default in parquet, which DuckDB reads as a type that it neither compares nor casts to other timestamps
    finer = [name for name, kind in table.schema().items() if kind.is_unknown() and "TIMESTAMPTZ_NS" in str(kind)]
    floored = {name: make_timestamptz(divide(epoch_ns(table[name]), 1_000)) for name in finer}
    return table.mutate(**floored) if finer else table


def _write_resolved(
    table: ibis.Table, source: DataSource, repo_path: str, mode: str = "append", allow_overwrite: bool = False
) -> None:
    resolved = _resolved(source, repo_path)
    folder = Path(resolved.path) if isinstance(resolved, FileSource) else None
    if mode == "append" and folder is not None and folder.is_dir() and not (folder / "_delta_log").exists():
        # Feast 0.67 reads a file, and writes it anew with the rows; of a folder it knows nothing.
        create(folder / f"pushed-{uuid.uuid4().hex}.parquet", table.to_pyarrow())
        return
    _write_data_source(table, resolved, repo_path, mode, allow_overwrite)


def _resolved(source: DataSource, repo_path: str, *, reading: bool = False) -> DataSource:
    """A file source whose relative path starts at the feature repo; a folder is read with all it holds."""
    if not isinstance(source, FileSource):
        return source
    path = FileSource.get_uri_for_file_path(repo_path, source.path)
    if reading and Path(path).is_dir() and not (Path(path) / "_delta_log").exists():
        path = str(Path(path) / "**" / "*.parquet")
    resolved = copy.copy(source)
    resolved.file_options = copy.copy(source.file_options)
    resolved.file_options.uri = path
    return resolved


def _persist(config: RepoConfig, table: pa.Table, storage: SavedDatasetStorage, allow_overwrite: bool) -> None:
    _write_resolved(ibis.memtable(table), storage.to_data_source(), str(config.repo_path), "overwrite", allow_overwrite)

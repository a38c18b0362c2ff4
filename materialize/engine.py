"""Feast's door to the ticks: a compute engine that runs embedding views by policy, and leaves the rest to Feast.

``feast materialize S E`` is a full refresh as of E; ``feast materialize-incremental E`` runs what is due up to E.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Final, Literal

import pyarrow as pa
from feast import Entity, FeatureStore, FeatureView, OnDemandFeatureView
from feast.infra.common.materialization_job import MaterializationJobStatus, MaterializationTask
from feast.infra.compute_engines.local.compute import LocalComputeEngine
from feast.infra.compute_engines.local.job import LocalMaterializationJob
from feast.infra.registry.base_registry import BaseRegistry
from feast.repo_config import FeastConfigBaseModel
from feast.utils import _convert_arrow_to_proto

from feast_embeddings.materialize.clock import us_of
from feast_embeddings.materialize.declare import STATE, is_embedding, spec_of
from feast_embeddings.materialize.files import Workspace
from feast_embeddings.materialize.online import OnlineServer
from feast_embeddings.materialize.ticks import Outcome, Runner, check_end, write_plain
from feast_embeddings.materialize.upkeep import retire
from feast_embeddings.models.errors import FeastEmbeddingsError
from feast_embeddings.transformations.views import ACTIVITY_KIND, BEHAVIORS_KIND, EMBEDDING_KIND, HISTORY_KIND, KIND

RETIRE_S: Final = 20.0
"""How long a job goes on removing retired fills: a million keys of Redis. The next job takes it up there."""


class EmbeddingEngineConfig(FeastConfigBaseModel):
    """The ``batch_engine`` of ``feature_store.yaml``.

    Attributes:
        state: Folder of the ledger, the encoders by space and the quarantine, relative to the feature repo.
        ledger: SQLAlchemy URL of the ledger; default SQLite in ``state``.
        device: ``cuda``, ``mps`` or ``cpu``; default the best there is.
        precision: ``float32`` or ``bf16``; default float32.
        lease_seconds: How long a dead worker keeps others from its view.
    """

    type: Literal["feast_embeddings.materialize.engine.EmbeddingEngine"] = (
        "feast_embeddings.materialize.engine.EmbeddingEngine"
    )
    state: str = STATE
    ledger: str | None = None
    device: str | None = None
    precision: str | None = None
    lease_seconds: float = 60


class EmbeddingEngine(LocalComputeEngine):
    """Runs embedding views through ticks; every other view goes to Feast's local engine.

    A failed job returns its exception, so that Feast raises it and moves no watermark. Exactly once: whatever
    a stopped job left is finished by the next one, and ends in the same vectors.
    """

    def __init__(
        self,
        *,
        type: str = "",  # noqa: A002 - Feast passes every key of the yaml
        state: str = STATE,
        ledger: str | None = None,
        device: str | None = None,
        precision: str | None = None,
        lease_seconds: float = 60,
        **kwargs: Any,
    ) -> None:
        super().__init__(backend=None, **kwargs)
        self.lease_seconds = lease_seconds
        self._workspace: Workspace | None = None

    @property
    def workspace(self) -> Workspace:
        """The state of this feature repo."""
        if self._workspace is None:
            self._workspace = Workspace.of(self.repo_config)
        return self._workspace

    def update(
        self,
        project: str,
        views_to_delete: Sequence[FeatureView],
        views_to_keep: Sequence[FeatureView | OnDemandFeatureView],
        entities_to_delete: Sequence[Entity],
        entities_to_keep: Sequence[Entity],
    ) -> None:
        """`feast apply`: give every embedding view an empty log, so that any reader finds its columns."""
        for view in views_to_keep:
            if isinstance(view, FeatureView) and is_embedding(view):
                self.workspace.log(spec_of(view)).create()

    def teardown_infra(self, project: str, fvs: Sequence[FeatureView], entities: Sequence[Entity]) -> None:
        """`feast teardown`: remove the project's views with the history of their versions; logs and ledger stay."""
        # SqlRegistry.delete_project of Feast 0.67 leaves that history, and the next `feast apply` fails on it.
        registry = FeatureStore(config=self.repo_config).registry
        for view in registry.list_all_feature_views(project):
            registry.delete_feature_view(view.name, project)

    def _materialize_one(
        self, registry: BaseRegistry, task: MaterializationTask, **kwargs: Any
    ) -> LocalMaterializationJob:
        kind = task.feature_view.tags.get(KIND)
        if kind not in (EMBEDDING_KIND, HISTORY_KIND, ACTIVITY_KIND, BEHAVIORS_KIND):
            return super()._materialize_one(registry, task, **kwargs)
        job_id = f"{task.feature_view.name}-{task.start_time}-{task.end_time}"
        try:
            if kind == EMBEDDING_KIND:
                self._embed(registry, task)
            elif kind in (ACTIVITY_KIND, BEHAVIORS_KIND):
                rows = write_plain(self.workspace, registry, task, partial(self._write, task.feature_view))
                print(f"{task.feature_view.name}: {rows:,} rows as of {task.end_time:%Y-%m-%d %H:%M:%S}")
            else:
                check_end(task.feature_view.name, us_of(task.end_time))
                print(f"{task.feature_view.name}: written by the ticks of its embedding view")
        except Exception as error:
            return LocalMaterializationJob(job_id=job_id, status=MaterializationJobStatus.ERROR, error=error)
        return LocalMaterializationJob(job_id=job_id, status=MaterializationJobStatus.SUCCEEDED)

    def _write(self, view: FeatureView, rows: pa.Table) -> None:
        """Feast's own online write of rows that the package computed."""
        # Feast's public ways from a table to its protos are methods of a store or a provider; an engine has neither.
        key_types = {column.name: column.dtype.to_value_type() for column in view.entity_columns}
        protos = _convert_arrow_to_proto(rows, view, key_types)
        # A write without a progress is a push to the online store, which appends pushed behaviors to their stream.
        self.online_store.online_write_batch(self.repo_config, view, protos, lambda _: None)

    def _embed(self, registry: BaseRegistry, task: MaterializationTask) -> None:
        spec = spec_of(task.feature_view)
        server = OnlineServer.of(self.repo_config)
        runner = Runner(self.workspace, server, registry, spec, self.lease_seconds)
        if _is_incremental(task):
            outcome = runner.run_due(us_of(task.end_time))
        else:
            print(f"{spec.view}: a full refresh as of the end; the start is not used")
            outcome = runner.refresh(us_of(task.end_time))
        _report(spec.view, outcome)
        self._retire(server, registry)

    def _retire(self, server: OnlineServer, registry: BaseRegistry) -> None:
        """Go on with the removal of retired fills; the job is done, and what hinders it is left to the next one."""
        try:
            retire(self.workspace, server, registry, seconds=RETIRE_S)
        except FeastEmbeddingsError as error:
            print(f"retired fills are left to a later job: {error}")


def _is_incremental(task: MaterializationTask) -> bool:
    """Whether `materialize-incremental` made this task.

    Feast 0.67 hands over the tasks of both commands alike, but for the progress-bar builder: a closure that
    carries the name of the method it was made in.
    """
    return "materialize_incremental" in getattr(task.tqdm_builder, "__qualname__", "")


def _report(view: str, outcome: Outcome) -> None:
    if outcome.units:
        print(f"{view}: {outcome.units} unit(s) of work, {outcome.encoded:,} encoded, {outcome.rows:,} rows written")
    for notice in outcome.notices:
        print(f"{view}: {notice}")

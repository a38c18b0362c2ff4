"""What behaviors, embedding, history and activity views answer in a retrieval, each by its kind."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from feast import FeatureView
from feast.infra.registry.base_registry import BaseRegistry

from feast_embeddings.materialize.clock import iso
from feast_embeddings.materialize.declare import EmbeddingSpec, embedding_specs, pinned_space, spec_of, ttl_us
from feast_embeddings.materialize.files import BehaviorLog, Workspace, ids_of
from feast_embeddings.materialize.retrieval.recomputed import activity_at, behaviors_at, history_at
from feast_embeddings.materialize.retrieval.rows import Asked, EntityRows
from feast_embeddings.materialize.retrieval.served import served_space, served_vectors
from feast_embeddings.models import read_manifest
from feast_embeddings.transformations import activity_spec_of
from feast_embeddings.transformations.views import (
    ACTIVITY_KIND,
    BEHAVIORS,
    BEHAVIORS_KIND,
    EMBEDDING_KIND,
    HISTORY_KIND,
    KIND,
)

Columns = Mapping[str, pa.ChunkedArray]
ANSWERED = (EMBEDDING_KIND, HISTORY_KIND, ACTIVITY_KIND, BEHAVIORS_KIND)
"""Kinds of views that :class:`Past` answers."""


@dataclass(frozen=True)
class Past:
    """The past of one project.

    Attributes:
        by_created: Whether behaviors count from their created time on.
    """

    workspace: Workspace
    registry: BaseRegistry
    project: str
    by_created: bool = False

    def answer(self, asked: Asked, rows: EntityRows) -> Columns:
        """The features asked of one view, [n], by the names of their columns.

        Raises:
            SpaceError: The view is pinned to a space that is not served.
        """
        kind = asked.view.tags[KIND]
        answers = {
            EMBEDDING_KIND: self._embedding,
            HISTORY_KIND: self._history,
            ACTIVITY_KIND: self._activity,
            BEHAVIORS_KIND: self._behaviors,
        }
        found = answers[kind](asked.view, rows)
        return {column: found[feature] for feature, column in asked.columns.items()}

    def _embedding(self, view: FeatureView, rows: EntityRows) -> Columns:
        spec, ledger = spec_of(view), self.workspace.ledger
        space = served_space(ledger, spec, pinned_space(view))
        vectors = served_vectors(ledger, self.workspace.log(spec), spec, space, rows.ids(view), rows.times_us)
        if len(rows) and vectors.null_count == len(rows):
            cutovers = [step.from_us for step in ledger.serving(spec.view, spec.encoder)]
            _warn_of_times_before(min(cutovers, default=None), spec, rows)
        return {spec.feature: vectors}

    def _history(self, view: FeatureView, rows: EntityRows) -> Columns:
        log = self._behaviors_of(view)
        owner = next((spec for spec in embedding_specs(self.registry, self.project) if spec.history == view.name), None)
        ticks = self.workspace.ledger.published_ticks(owner.view) if owner else []
        contexts = self._contexts(owner) if owner else {}
        kept = {tick.number: tick.kept or max(contexts[fill] for fill in tick.fills) for tick in ticks}
        return _computed(view, rows, lambda ids, times_us: history_at(log, ticks, kept, ttl_us(view), ids, times_us))

    def _activity(self, view: FeatureView, rows: EntityRows) -> Columns:
        log, spec = self._behaviors_of(view), activity_spec_of(view)
        return _computed(view, rows, lambda ids, times_us: activity_at(log, spec, ids, times_us))

    def _behaviors(self, view: FeatureView, rows: EntityRows) -> Columns:
        log = BehaviorLog.of(view, self.workspace.root, self.workspace.ledger)
        return _computed(view, rows, lambda ids, times_us: behaviors_at(log, ids, times_us, by_created=self.by_created))

    def _behaviors_of(self, view: FeatureView) -> BehaviorLog:
        behaviors = self.registry.get_feature_view(view.tags[BEHAVIORS], self.project)
        return BehaviorLog.of(behaviors, self.workspace.root, self.workspace.ledger)

    def _contexts(self, spec: EmbeddingSpec) -> dict[str, int]:
        """Fill → how many behaviors of a history its encoder reads."""
        fills = self.workspace.ledger.fills(view=spec.view)
        spaces = {fill.space for fill in fills}
        contexts = {space: read_manifest(self.workspace.paths.encoder(space)).context for space in spaces}
        return {fill.fill: contexts[fill.space] for fill in fills}


def _warn_of_times_before(first_us: int | None, spec: EmbeddingSpec, rows: EntityRows) -> None:
    """Say why no row has a vector, where that is because nothing was served yet."""
    asked = rows.times_us[rows.timed]
    if not len(asked) or (first_us is not None and int(asked.max()) >= first_us):
        return
    served_from = (
        "has served none yet" if first_us is None else f"serves vectors since its first cutover at {iso(first_us)}"
    )
    warnings.warn(
        f"View {spec.view!r} has no vector for any row: it {served_from}, and historical retrieval returns what was "
        "served. Run `feast materialize` once, then `feast materialize-incremental` on a schedule, and ask for times "
        "after the first of them.",
        UserWarning,
        stacklevel=2,
    )


def _computed(view: FeatureView, rows: EntityRows, at: Callable[..., pa.Table]) -> Columns:
    """The features of the rows that have an entity and a time; null for the others."""
    ids = rows.ids(view)
    asked = rows.timed & np.asarray(ids.is_valid())
    place = np.where(asked, np.cumsum(asked) - 1, 0)
    table = at(ids_of(ids.filter(pa.array(asked))), rows.times_us[asked])
    full = table.take(pa.array(place, mask=~asked))
    return {name: full[name] for name in full.column_names}

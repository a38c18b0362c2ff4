"""Ticks of an item view: items that the encoder never saw are placed where the users who came to them were.

Such a tick follows published ticks of the user view, and reads the same behaviors. A behavior counts with the vector
that reads returned for its user just before the user's tick was published, in the space of the fill that is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast.infra.registry.base_registry import BaseRegistry

from feast_embeddings.materialize.declare import EmbeddingSpec, embedding_specs
from feast_embeddings.materialize.files import BehaviorLog, UnseenSums, Workspace, ids_of, matrix_of
from feast_embeddings.materialize.ledger import NEVER, Follows, Tick, Tombstones
from feast_embeddings.materialize.retrieval import served_vectors
from feast_embeddings.materialize.ticks.milestones import reached
from feast_embeddings.materialize.ticks.pipeline import Pipeline
from feast_embeddings.materialize.ticks.view_work import ViewWork
from feast_embeddings.models.derived import UnseenItems, trained_length
from feast_embeddings.models.encoder import Encoder
from feast_embeddings.models.errors import DeclarationError
from feast_embeddings.models.types import Float32s, Int64s

_MEMBERS = ("entity", "item")


@dataclass(frozen=True)
class Followed:
    """The user view that an item view follows.

    Attributes:
        spec: Its declaration.
        source: Its behaviors.
    """

    spec: EmbeddingSpec
    source: BehaviorLog

    @classmethod
    def of(cls, workspace: Workspace, project: str, registry: BaseRegistry, spec: EmbeddingSpec) -> Followed | None:
        """What ``spec`` declares that it follows, if anything.

        Raises:
            DeclarationError: That view is not there any more, or its items have other ids.
        """
        if not spec.users:
            return None
        found = [each for each in embedding_specs(registry, project) if each.view == spec.users]
        if not found or found[0].encoder != spec.encoder:
            raise DeclarationError(
                f"View {spec.view!r} follows {spec.users!r}, and project {project!r} has no such embedding view "
                f"of encoder {spec.encoder!r}: correct unseen= in its declaration."
            )
        source = workspace.behavior_log(registry, project, found[0])
        if (source.contract.item_dtype == "string") != spec.string_ids:
            raise DeclarationError(
                f"View {spec.view!r} has ids of another type than the items of {found[0].behaviors!r} "
                f"({source.contract.item_dtype}): give its entity the value_type of those items."
            )
        return cls(found[0], source)

    def members(self, ticks: Sequence[Tick]) -> pa.Table:
        """Behaviors of these ticks: entity, item, and ``before``, the last microsecond before their publication."""
        table, numbers = self.source.members_of(ticks)
        published = np.array([tick.published_us or 0 for tick in ticks], np.int64)
        order = np.argsort([tick.number for tick in ticks])
        at = order[np.searchsorted(np.sort([tick.number for tick in ticks]), numbers)]
        return table.select(_MEMBERS).append_column("before", pa.array(published[at] - 1, pa.int64()))


class ItemTicks:
    """Finishes recorded ticks of an item view, which has none where it follows no user view."""

    def __init__(self, work: ViewWork, followed: Followed | None) -> None:
        self.work, self.pipeline = work, Pipeline(work)
        self.ledger, self.log, self.view = work.ledger, work.log, work.spec.view
        self._followed = followed
        self._following = Follows(work.ledger, self.view, work.spec.users)
        self._sums = UnseenSums(self.log)

    def changed(self, tick: Tick) -> bool:
        """Never: it follows ticks that were published, and one that is not staged is computed anew."""
        return False

    def finish(self, tick: Tick) -> Tick:
        """As of any tick; there are no histories."""
        return self.pipeline.finish(tick, self._stage)

    def abandon(self, tick: Tick) -> None:
        """Void a tick that had no effect; what it followed waits for the next one."""
        self.pipeline.abandon(tick)
        for fill in tick.fills:
            self._sums.drop(fill, tick.number)

    def _stage(self, tick: Tick) -> None:
        assert self._followed is not None, self.view  # noqa: S101 - only then is one recorded
        followed = self._followed
        behaviors = self._living(followed.members(self._following.followed_by(tick)))
        self.ledger.update_tick(tick, members=len(behaviors))
        reached("members")
        for fill in self.work.targets(tick):
            encoder = self.work.encoder(fill.space)
            users, known = self._users_before(followed.spec, fill.space, behaviors)
            items = ids_of(behaviors["item"].filter(pa.array(known)))
            self.work.lease.check()
            sums = self._sums.add(fill.fill, tick.number, _unseen(encoder, fill.space, items, users))
            reached("summed")
            vectors = sums.vectors(trained_length(encoder)) if len(sums.ids) else np.empty((0, encoder.dim), np.float32)
            self.log.stage(fill.fill, tick.number, sums.ids, vectors)

    def _living(self, behaviors: pa.Table) -> pa.Table:
        """Behaviors with items that were not erased."""
        erased_us = Tombstones(self.ledger, self.work.spec.join_key).erased_us(behaviors["item"])
        return behaviors.filter(pa.array(erased_us == NEVER))

    def _users_before(self, spec: EmbeddingSpec, space: str, behaviors: pa.Table) -> tuple[Float32s, np.ndarray]:
        """Vectors float32 [m, dim] of the m behaviors whose users had one, and which these are: bool [n]."""
        pairs = behaviors.select(["entity", "before"]).append_column("row", pa.array(np.arange(len(behaviors))))
        asked = pairs.group_by(["entity", "before"], use_threads=False).aggregate([("row", "list")])
        vectors = served_vectors(
            self.ledger,
            self.work.workspace.log(spec),
            spec,
            space,
            asked["entity"].combine_chunks(),
            np.asarray(asked["before"].to_numpy(), np.int64),
        )
        rows = asked["row_list"].combine_chunks()
        pair: Int64s = np.empty(len(behaviors), np.int64)
        pair[rows.flatten().to_numpy()] = np.repeat(np.arange(len(asked)), rows.value_lengths().to_numpy())
        has = np.asarray(pc.is_valid(vectors).to_numpy(), np.bool_)
        matrix = matrix_of(vectors.drop_null()) if has.any() else np.empty((0, spec.dim), np.float32)
        known = has[pair]
        return matrix[(np.cumsum(has) - 1)[pair[known]]], known


def _unseen(encoder: Encoder, space: str, items: np.ndarray, users: Float32s) -> UnseenItems:
    if not len(items):
        return UnseenItems(space, items, np.empty((0, encoder.dim), np.int64), np.empty(0, np.int64))
    return UnseenItems.of(encoder, items, users)

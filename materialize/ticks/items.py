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
from feast import RepoConfig
from feast.infra.registry.base_registry import BaseRegistry

from feast_embeddings.materialize.declare.views import EmbeddingSpec
from feast_embeddings.materialize.files.appended import TICK, parts_folder, rows_of_ticks
from feast_embeddings.materialize.files.behavior_log import BehaviorLog
from feast_embeddings.materialize.files.embedding_log import ids_of, matrix_of
from feast_embeddings.materialize.files.item_sums import UnseenSums
from feast_embeddings.materialize.files.workspace import Workspace, behaviors_of, embedding_specs
from feast_embeddings.materialize.ledger.follows import UnseenLedger, UserTick
from feast_embeddings.materialize.ledger.offsets import StreamTick
from feast_embeddings.materialize.ledger.records import Tick
from feast_embeddings.materialize.ledger.tombstones import NEVER, Tombstones
from feast_embeddings.materialize.retrieval.served import served_vectors
from feast_embeddings.materialize.ticks.batch import Ticks
from feast_embeddings.materialize.ticks.milestones import reached
from feast_embeddings.materialize.ticks.view_work import ViewWork
from feast_embeddings.models.derived.unseen import UnseenItems, trained_length
from feast_embeddings.models.encoder.batch import Float32s, Int64s
from feast_embeddings.models.encoder.protocol import Encoder
from feast_embeddings.models.errors import DeclarationError
from feast_embeddings.transformations import Behaviors
from feast_embeddings.transformations.behaviors.columns import raw_schema
from feast_embeddings.transformations.behaviors.validate import validate

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
    def of(
        cls, workspace: Workspace, config: RepoConfig, registry: BaseRegistry, spec: EmbeddingSpec
    ) -> Followed | None:
        """What ``spec`` declares that it follows, if anything.

        Raises:
            DeclarationError: That view is not there any more, or its items have other ids.
        """
        if not spec.users:
            return None
        found = [each for each in embedding_specs(registry, config.project) if each.view == spec.users]
        if not found or found[0].encoder != spec.encoder:
            raise DeclarationError(
                f"View {spec.view!r} follows {spec.users!r}, and project {config.project!r} has no such embedding view "
                f"of encoder {spec.encoder!r}: correct unseen= in its declaration."
            )
        source = BehaviorLog.of(behaviors_of(registry, config.project, found[0]), workspace.root, workspace.ledger)
        if (source.contract.item_dtype == "string") != spec.string_ids:
            raise DeclarationError(
                f"View {spec.view!r} has ids of another type than the items of {found[0].behaviors!r} "
                f"({source.contract.item_dtype}): give its entity the value_type of those items."
            )
        return cls(found[0], source)

    def members(self, ticks: Sequence[UserTick]) -> pa.Table:
        """Behaviors of these ticks: entity, item, and ``before``, the last microsecond before their publication."""
        parts = [self._nothing(), self._streamed([tick for tick in ticks if isinstance(tick, StreamTick)])]
        for tick in ticks:
            if isinstance(tick, Tick):
                table = self.source.members(tick).behaviors.table.select(_MEMBERS)
                parts.append(_with_times(table, np.full(len(table), (tick.published_us or 0) - 1, np.int64)))
        return pa.concat_tables([part for part in parts if part is not None])

    def _nothing(self) -> pa.Table:
        return _with_times(Behaviors.empty(self.source.contract).table.select(_MEMBERS), np.empty(0, np.int64))

    def _streamed(self, ticks: Sequence[StreamTick]) -> pa.Table | None:
        """Behaviors that micro-batches appended to the behavior log."""
        folder = parts_folder(self.source.path)
        rows = rows_of_ticks(folder, self.spec.view, [tick.number for tick in ticks]) if ticks and folder else None
        if rows is None:
            return None
        rows, contract = self.source.living(rows), self.source.contract
        judged = validate(rows.select(raw_schema(contract).names), contract, np.iinfo(np.int64).max)
        numbers = np.asarray(rows[TICK].to_numpy(), np.int64)[judged.rows]
        published = np.array([tick.published_us or 0 for tick in ticks], np.int64)
        at = np.searchsorted(np.array([tick.number for tick in ticks], np.int64), numbers)
        return _with_times(judged.table.select(_MEMBERS), published[at] - 1)


class UnseenTicks(Ticks):
    """Finishes recorded ticks of an item view; the caller holds the view's lease."""

    def __init__(self, work: ViewWork, followed: Followed) -> None:
        super().__init__(work)
        self._followed = followed
        self._following = UnseenLedger(work.ledger, self.view, work.spec.users)
        self._sums = UnseenSums(self.log)

    def changed(self, tick: Tick) -> bool:
        """Never: it follows ticks that were published, and one that is not staged is computed anew."""
        return False

    def staged(self, tick: Tick) -> bool:
        """As of any tick; there are no histories."""
        return self.log.has_staged(tick.number, self._targets(tick), history=False)

    def abandon(self, tick: Tick) -> None:
        """Void a tick that had no effect; what it followed waits for the next one."""
        super().abandon(tick)
        for fill in tick.fills:
            self._sums.drop(fill, tick.number)

    def _stage(self, tick: Tick) -> None:
        self.work.lease.check()
        behaviors = self._living(self._followed.members(self._following.followed_by(tick)))
        self.ledger.update_tick(tick, members=len(behaviors))
        reached("members")
        for name in self._targets(tick):
            fill = self.ledger.fill(name)
            encoder = self.work.encoder(fill)
            users, known = self._users_before(fill.space, behaviors, encoder.dim)
            items = ids_of(behaviors["item"].filter(pa.array(known)))
            self.work.lease.check()
            sums = self._sums.add(name, tick.number, _unseen(encoder, fill.space, items, users))
            reached("summed")
            vectors = sums.vectors(trained_length(encoder)) if len(sums.ids) else np.empty((0, encoder.dim), np.float32)
            self.log.stage(name, tick.number, sums.ids, vectors)

    def _living(self, behaviors: pa.Table) -> pa.Table:
        """Behaviors with items that were not erased."""
        erased_us = Tombstones(self.ledger, self.work.spec.join_key).erased_us(behaviors["item"])
        return behaviors.filter(pa.array(erased_us == NEVER))

    def _users_before(self, space: str, behaviors: pa.Table, dim: int) -> tuple[Float32s, np.ndarray]:
        """Vectors float32 [m, dim] of the m behaviors whose users had one, and which these are: bool [n]."""
        pairs = behaviors.select(["entity", "before"]).append_column("row", pa.array(np.arange(len(behaviors))))
        asked = pairs.group_by(["entity", "before"], use_threads=False).aggregate([("row", "list")])
        vectors = served_vectors(
            self.ledger,
            self.work.workspace.log(self._followed.spec),
            self._followed.spec,
            space,
            asked["entity"].combine_chunks(),
            np.asarray(asked["before"].to_numpy(), np.int64),
        )
        rows = asked["row_list"].combine_chunks()
        pair: Int64s = np.empty(len(behaviors), np.int64)
        pair[rows.flatten().to_numpy()] = np.repeat(np.arange(len(asked)), rows.value_lengths().to_numpy())
        has = np.asarray(pc.is_valid(vectors).to_numpy(), np.bool_)
        matrix = matrix_of(vectors.drop_null()) if has.any() else np.empty((0, dim), np.float32)
        known = has[pair]
        return matrix[(np.cumsum(has) - 1)[pair[known]]], known


def _unseen(encoder: Encoder, space: str, items: np.ndarray, users: Float32s) -> UnseenItems:
    if not len(items):
        return UnseenItems(space, items, np.empty((0, encoder.dim), np.int64), np.empty(0, np.int64))
    return UnseenItems.of(encoder, items, users)


def _with_times(members: pa.Table, before_us: Int64s) -> pa.Table:
    return members.append_column("before", pa.array(before_us, pa.int64()))

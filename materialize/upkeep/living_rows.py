"""Rows of a behaviors view on their way to Redis, without those that an erasure covers.

The team's own table may hold an erased entity for a while; `feast materialize` and pushes must not bring it back.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import pyarrow as pa
from feast import FeatureView, RepoConfig

from feast_embeddings.materialize.clock import us_of
from feast_embeddings.materialize.files import Workspace
from feast_embeddings.materialize.ledger import Ledger, Tombstones
from feast_embeddings.models.errors import DeclarationError

WriteRow = tuple[Any, dict[str, Any], datetime, datetime | None]


class LivingRows:
    """Filters rows by the tombstones of one feature repo; its ledger stays open."""

    def __init__(self, config: RepoConfig) -> None:
        self.config = config
        self._ledger: Ledger | None = None
        try:
            self._ledger = Workspace.of(config).ledger
        except DeclarationError:  # a repo without our engine has no ledger, and can have erased no one
            return

    def of(self, table: FeatureView, data: Sequence[WriteRow]) -> list[WriteRow]:
        """The rows whose behavior happened, and was written, after its entity was erased, if it was."""
        if self._ledger is None or not data:
            return list(data)
        tombstones = Tombstones(self._ledger, table.join_keys[0])
        if not tombstones.marks().num_rows:
            return list(data)
        values = [row[0].entity_values[0] for row in data]  # a behaviors view has one entity
        erased_us = tombstones.erased_us(pa.array([getattr(value, value.WhichOneof("val")) for value in values]))
        return [
            row
            for row, erased in zip(data, erased_us.tolist(), strict=True)
            if min(us_of(moment) for moment in row[2:] if moment is not None) > erased
        ]

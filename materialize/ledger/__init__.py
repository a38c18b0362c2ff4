"""What was done, in SQL: ticks, fills, generations, offsets, leases and erasures."""

from feast_embeddings.materialize.ledger.follows import Follows
from feast_embeddings.materialize.ledger.leases import (
    Lease,
    compaction_resource,
    cutover_resource,
    held,
    holder,
    is_paused,
    lane_resource,
    lanes_held,
    left_resource,
    new_owner,
    paused,
    presence,
    refresh_resource,
    view_resource,
    workers_there,
)
from feast_embeddings.materialize.ledger.ledger import Ledger
from feast_embeddings.materialize.ledger.records import (
    RECEIVING,
    Fill,
    Generation,
    Ranges,
    Tick,
    ranges_from_json,
    ranges_to_json,
)
from feast_embeddings.materialize.ledger.retirements import Removed, Retirements
from feast_embeddings.materialize.ledger.schema import metadata
from feast_embeddings.materialize.ledger.ticks import MembersFound
from feast_embeddings.materialize.ledger.tombstones import NEVER, Tombstones

__all__ = [
    "NEVER",
    "RECEIVING",
    "Fill",
    "Follows",
    "Generation",
    "Lease",
    "Ledger",
    "MembersFound",
    "Ranges",
    "Removed",
    "Retirements",
    "Tick",
    "Tombstones",
    "compaction_resource",
    "cutover_resource",
    "held",
    "holder",
    "is_paused",
    "lane_resource",
    "lanes_held",
    "left_resource",
    "metadata",
    "new_owner",
    "paused",
    "presence",
    "ranges_from_json",
    "ranges_to_json",
    "refresh_resource",
    "view_resource",
    "workers_there",
]

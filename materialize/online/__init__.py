"""What is in Redis: the server of a feature repo, fills and histories guarded by their ticks, manifests, removal."""

from feast_embeddings.materialize.online import keys, tick_stamps, wire
from feast_embeddings.materialize.online.commands import Strings, queue_hmgets, reads
from feast_embeddings.materialize.online.embedded import HASHES, client_name, detach, detach_all, embedded_server
from feast_embeddings.materialize.online.fills import (
    FillPlace,
    FillRows,
    HistoryPlace,
    publish_manifest,
    read_fill,
    read_history,
    read_manifest,
    remove_fill,
    write_fill,
    write_history,
)
from feast_embeddings.materialize.online.manifest import FillRef, Manifest
from feast_embeddings.materialize.online.removal import (
    SCAN_COUNT,
    delete_entities,
    delete_view,
    entity_batches,
    fields_under,
)
from feast_embeddings.materialize.online.scripts import call_script
from feast_embeddings.materialize.online.server import OnlineOptions, OnlineServer
from feast_embeddings.materialize.online.tick_stamps import TickStamp
from feast_embeddings.materialize.online.versions import (
    VERSION,
    changed_since,
    forget_all_changes,
    forget_changes,
    record_change,
)

__all__ = [
    "HASHES",
    "SCAN_COUNT",
    "VERSION",
    "FillPlace",
    "FillRef",
    "FillRows",
    "HistoryPlace",
    "Manifest",
    "OnlineOptions",
    "OnlineServer",
    "Strings",
    "TickStamp",
    "call_script",
    "changed_since",
    "client_name",
    "delete_entities",
    "delete_view",
    "detach",
    "detach_all",
    "embedded_server",
    "entity_batches",
    "fields_under",
    "forget_all_changes",
    "forget_changes",
    "keys",
    "publish_manifest",
    "queue_hmgets",
    "read_fill",
    "read_history",
    "read_manifest",
    "reads",
    "record_change",
    "remove_fill",
    "tick_stamps",
    "wire",
    "write_fill",
    "write_history",
]

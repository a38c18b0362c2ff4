"""What is on disk: staged files, the embedding log, the behavior log and what a stream appends to it."""

from feast_embeddings.materialize.files.appended import (
    OFFSET,
    ORIGIN,
    PARTITION,
    SOURCE,
    TICK,
    create,
    erase_rows,
    erased_rows,
    part_name,
    parts_folder,
    parts_of,
    raw_rows,
    read_part,
    recent_rows,
    rows_of_ticks,
    uncovered,
)
from feast_embeddings.materialize.files.behavior_log import BehaviorLog, Digest, counts_of, digest
from feast_embeddings.materialize.files.compaction import Compaction
from feast_embeddings.materialize.files.dead_letters import POISON, PoisonMessages
from feast_embeddings.materialize.files.embedding_log import EmbeddingLog, LogStamp, ids_of, write_log
from feast_embeddings.materialize.files.item_sums import UnseenSums
from feast_embeddings.materialize.files.newest_rows import FillRowsOfTick, newest_rows, newest_rows_at_once
from feast_embeddings.materialize.files.staged import CaughtUp, StagedHistories, ahead, matrix_of, replace_file
from feast_embeddings.materialize.files.workspace import Workspace, behavior_log_of

__all__ = [
    "OFFSET",
    "ORIGIN",
    "PARTITION",
    "POISON",
    "SOURCE",
    "TICK",
    "BehaviorLog",
    "CaughtUp",
    "Compaction",
    "Digest",
    "EmbeddingLog",
    "FillRowsOfTick",
    "LogStamp",
    "PoisonMessages",
    "StagedHistories",
    "UnseenSums",
    "Workspace",
    "ahead",
    "behavior_log_of",
    "counts_of",
    "create",
    "digest",
    "erase_rows",
    "erased_rows",
    "ids_of",
    "matrix_of",
    "newest_rows",
    "newest_rows_at_once",
    "part_name",
    "parts_folder",
    "parts_of",
    "raw_rows",
    "read_part",
    "recent_rows",
    "replace_file",
    "rows_of_ticks",
    "uncovered",
    "write_log",
]

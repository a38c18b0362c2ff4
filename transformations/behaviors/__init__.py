"""Raw rows to behaviors: the contract, validation, deduplication, cleaning and quarantine."""

from feast_embeddings.transformations.behaviors.cleaning import CleaningRules, clean, deduplicate, refusals
from feast_embeddings.transformations.behaviors.columns import check_columns, check_names, raw_schema
from feast_embeddings.transformations.behaviors.contract import BehaviorContract, BehaviorType, IdType
from feast_embeddings.transformations.behaviors.durations import duration_us
from feast_embeddings.transformations.behaviors.json_rows import BadPayloadError, row_of, time_of
from feast_embeddings.transformations.behaviors.ordering import (
    bisect_segments,
    concat_ids,
    lex_order,
    ranks,
    starts_of_runs,
)
from feast_embeddings.transformations.behaviors.prepare import Counts, Prepared, prepare
from feast_embeddings.transformations.behaviors.quarantine import Quarantine
from feast_embeddings.transformations.behaviors.table import Behaviors, canonical_schema, content_keys, schema_of
from feast_embeddings.transformations.behaviors.times import DAY_US, TIMESTAMP, Times, read_times, ticks_at_or_after
from feast_embeddings.transformations.behaviors.validate import (
    QUARANTINE_SCHEMA,
    entities_of,
    quarantine_rows,
    validate,
)

__all__ = [
    "DAY_US",
    "QUARANTINE_SCHEMA",
    "TIMESTAMP",
    "BadPayloadError",
    "BehaviorContract",
    "BehaviorType",
    "Behaviors",
    "CleaningRules",
    "Counts",
    "IdType",
    "Prepared",
    "Quarantine",
    "Times",
    "bisect_segments",
    "canonical_schema",
    "check_columns",
    "check_names",
    "clean",
    "concat_ids",
    "content_keys",
    "deduplicate",
    "duration_us",
    "entities_of",
    "lex_order",
    "prepare",
    "quarantine_rows",
    "ranks",
    "raw_schema",
    "read_times",
    "refusals",
    "row_of",
    "schema_of",
    "starts_of_runs",
    "ticks_at_or_after",
    "time_of",
    "validate",
]

"""Behaviors that arrive as a stream: sources, micro-batches as ticks, workers, and what they measure."""

from feast_embeddings.materialize.stream.declared import SourceOptions, make_worker
from feast_embeddings.materialize.stream.health import LOOPBACK, PORT, SILENT_S, Health, health_of
from feast_embeddings.materialize.stream.judge import histories_left_by_stream
from feast_embeddings.materialize.stream.kafka import Kafka, partitions_of
from feast_embeddings.materialize.stream.metrics import COUNTERS, FRESHNESS, GAUGES, STAGES, StreamMetrics, quantile
from feast_embeddings.materialize.stream.micro_batch import MicroBatches
from feast_embeddings.materialize.stream.payloads import decode, to_arrow_payload, to_json_payloads
from feast_embeddings.materialize.stream.push import append_behaviors, append_pushed, check_pushed, newest_first
from feast_embeddings.materialize.stream.recompute import Replayed, lines_of, replay_stream
from feast_embeddings.materialize.stream.recorded import ParquetReplay
from feast_embeddings.materialize.stream.redis_streams import RedisStreams, agreed_partitions, waiting_since_us
from feast_embeddings.materialize.stream.source import Delivery, Source, partition_of
from feast_embeddings.materialize.stream.worker import StreamOptions, StreamWorker

__all__ = [
    "COUNTERS",
    "FRESHNESS",
    "GAUGES",
    "LOOPBACK",
    "PORT",
    "SILENT_S",
    "STAGES",
    "Delivery",
    "Health",
    "Kafka",
    "MicroBatches",
    "ParquetReplay",
    "RedisStreams",
    "Replayed",
    "Source",
    "SourceOptions",
    "StreamMetrics",
    "StreamOptions",
    "StreamWorker",
    "agreed_partitions",
    "append_behaviors",
    "append_pushed",
    "check_pushed",
    "decode",
    "health_of",
    "histories_left_by_stream",
    "lines_of",
    "make_worker",
    "newest_first",
    "partition_of",
    "partitions_of",
    "quantile",
    "replay_stream",
    "to_arrow_payload",
    "to_json_payloads",
    "waiting_since_us",
]

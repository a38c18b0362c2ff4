"""Clicks of a news site, 2017-10-01 … 08, and an encoder that learned from the days before.

The split: the future begins with 2017-10-07, 00:00 UTC. The encoder learned from the clicks of the four days before
it, 10-03 … 06, 2,000 users' last ones held out for validation; then it is frozen. An article with fewer than five
clicks in those days is unknown to it, as is every article of the future.

    python benchmarks/globo.py --data globo_clicks_1001_1008.parquet --encoder globo_encoder --minutes 9

The file, made from the clicks that Globo.com published for research (academic use; not part of this repository):
columns ``user_id`` int64, ``article_id`` int32, ``event_timestamp`` timestamp in UTC, one row per click.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from feast_embeddings.models import SequenceConfig, TrainingConfig, TrainResult, save_encoder, train
from feast_embeddings.transformations import Behaviors, Histories
from feast_embeddings.transformations.behaviors import canonical_schema

DAY_US = 86_400_000_000
TRAIN_START_US = int(datetime(2017, 10, 3, tzinfo=UTC).timestamp()) * 1_000_000
TRAIN_END_US = int(datetime(2017, 10, 7, tzinfo=UTC).timestamp()) * 1_000_000
TYPES = ("click",)
CONFIG = TrainingConfig(
    encoder=SequenceConfig(context=50),
    learning_rate=4e-3,
    average_decay=0.99,
    decay_epochs=3,
    min_item_count=5,
    max_epochs=20,
    validation_users=2000,
)


def read_globo(path: Path) -> Behaviors:
    """Every click of the file as behaviors of one type, without values."""
    raw = pq.read_table(path, columns=["user_id", "article_id", "event_timestamp"])
    rows = raw.num_rows
    schema = canonical_schema(pa.int64(), pa.int64())
    columns = [
        raw["user_id"],
        raw["article_id"].cast(pa.int64()),
        pa.array(np.zeros(rows, np.int32)),
        raw["event_timestamp"].cast(pa.timestamp("us", tz="UTC"), safe=False),
        pa.nulls(rows, pa.float64()),
        pa.nulls(rows, pa.timestamp("us", tz="UTC")),
        pa.nulls(rows, pa.string()),
    ]
    return Behaviors(pa.table(columns, schema=schema))


def trained(behaviors: Behaviors, minutes: float, seed: int = 0) -> TrainResult:
    """An encoder that learned from the clicks from :data:`TRAIN_START_US` to :data:`TRAIN_END_US`."""
    past = behaviors.between(TRAIN_START_US, TRAIN_END_US)
    longest = int(np.diff(past.offsets).max())
    histories = Histories(past).as_of(past.entities, TRAIN_END_US, longest)
    config = replace(CONFIG, max_minutes=minutes, seed=seed)
    return train(config, histories, behavior_types=TYPES, progress=True)


def main() -> None:
    """Trains the encoder and saves it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--encoder", type=Path, required=True, help="where to put the artifact")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(sys.argv[1:])
    result = trained(read_globo(options.data), options.minutes, options.seed)
    for report in result.epochs:
        print(report)
    print(save_encoder(result.encoder, options.encoder), result.stopped_by)


if __name__ == "__main__":
    main()

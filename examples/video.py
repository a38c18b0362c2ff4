"""A video platform: minutes watched are the value, a like is the strongest sign, a dislike takes it back.

Everyone is encoded anew each night: histories are long, batches on a GPU are cheap, and a vector that is exactly the
encoder's output is easy to reason about. Rollback to yesterday's is one command.

    python examples/video.py      # needs the extra `explain`: pip install ".[explain]"
"""

from datetime import timedelta

from feast import Entity, FeatureService, ValueType

from feast_embeddings.materialize import (
    EncoderRef,
    Full,
    Inputs,
    Serving,
    embedding_view,
    history_view,
    item_embedding_view,
)
from feast_embeddings.transformations import (
    BehaviorContract,
    BehaviorType,
    activity_view,
    behavior_source,
    behaviors_view,
)

viewer = Entity(name="viewer", join_keys=["viewer_id"], value_type=ValueType.INT64)
video = Entity(name="video", join_keys=["video_id"], value_type=ValueType.INT64)

contract = BehaviorContract(
    join_key="viewer_id",
    entity="viewer",
    item="video",
    behavior_type="kind",
    event_time="at",
    value="minutes",
    dedup_id="id",
    types=(
        BehaviorType("start", weight=0.1),
        BehaviorType("finish", weight=0.7),
        BehaviorType("like", weight=1.0),
        BehaviorType("dislike", weight=0.0, cancels="like"),
    ),
)
log = behavior_source("watch_log", path="data/behaviors/*.parquet", contract=contract)
behaviors = behaviors_view("behaviors", entity=viewer, source=log, contract=contract)
activity = activity_view("activity", entity=viewer, behaviors=behaviors, windows=("1d", "7d"))
history = history_view("history", entity=viewer, behaviors=behaviors)

encoder = EncoderRef("videos", dim=64)
viewer_embedding = embedding_view(
    "viewer_embedding",
    entity=viewer,
    inputs=Inputs(behaviors, history),
    encoder=encoder,
    policy=Full(every="1d"),
    serve=Serving(ttl=timedelta(days=90)),
)
video_embedding = item_embedding_view("video_embedding", entity=video, encoder=encoder)

watch_next = FeatureService(name="watch_next", features=[viewer_embedding, activity, history])
videos = FeatureService(name="videos", features=[video_embedding])

if __name__ == "__main__":
    from feast_embeddings.materialize.demo import run_example

    run_example(__file__)

"""A music service: taste is slow and moods are quick, so the vector of the week leans on the one before.

A listener plays hundreds of tracks a week. Encoding only the new ones is the cheapest tick there is
(``context="new"``), and the blend carries the past: with a half-life of a month, taste stays, moods pass.

    python examples/music.py      # needs the extra `explain`: pip install ".[explain]"
"""

from datetime import timedelta

from feast import Entity, FeatureService, ValueType

from feast_embeddings.materialize import (
    EncoderRef,
    Incremental,
    Inputs,
    Serving,
    embedding_view,
    history_view,
    item_embedding_view,
)
from feast_embeddings.transformations import (
    BehaviorContract,
    BehaviorType,
    CleaningRules,
    activity_view,
    behavior_source,
    behaviors_view,
)

listener = Entity(name="listener", join_keys=["listener_id"], value_type=ValueType.STRING)
track = Entity(name="track", join_keys=["track_id"], value_type=ValueType.INT64)

contract = BehaviorContract(
    join_key="listener_id",
    entity="account",
    item="track",
    entity_dtype="string",
    behavior_type="event",
    event_time="played_at",
    value="seconds",
    dedup_id="play_id",
    types=(
        BehaviorType("skip", weight=0.0),  # what was not wanted tells the encoder something, and is no target
        BehaviorType("play", weight=0.5),
        BehaviorType("save", weight=1.0, aliases=("add_to_playlist",)),
    ),
)
log = behavior_source("play_log", path="data/behaviors/*.parquet", contract=contract)
rules = CleaningRules(burst=(30, 60))  # thirty tracks in a minute are a script
behaviors = behaviors_view("behaviors", entity=listener, source=log, contract=contract, rules=rules)
activity = activity_view("activity", entity=listener, behaviors=behaviors, windows=("7d", "28d"))
history = history_view("history", entity=listener, behaviors=behaviors)

encoder = EncoderRef("music", dim=64)
listener_embedding = embedding_view(
    "listener_embedding",
    entity=listener,
    inputs=Inputs(behaviors, history),
    encoder=encoder,
    policy=Incremental(every="7d", half_life="30d", context="new"),
    serve=Serving(ttl=timedelta(days=730)),
)
track_embedding = item_embedding_view("track_embedding", entity=track, encoder=encoder)

radio = FeatureService(name="radio", features=[listener_embedding, activity])
tracks = FeatureService(name="tracks", features=[track_embedding])

if __name__ == "__main__":
    from feast_embeddings.materialize.demo import run_example

    run_example(__file__)

"""Advertising: impressions and clicks say little, conversions say much and come late.

A conversion is reported hours or days after it happened: with a created time it is applied in the tick after its
arrival, and counted. Vectors blend over three days, and are dropped after two weeks, as consent texts promise; one
person is erased from every store by ``feast-embeddings forget --entity device --id …``.

    python examples/advertising.py      # needs the extra `explain`: pip install ".[explain]"
"""

from datetime import timedelta

from feast import Entity, FeatureService, ValueType

from feast_embeddings.materialize import (
    EncoderRef,
    Hybrid,
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

device = Entity(name="device", join_keys=["device_id"], value_type=ValueType.STRING)
campaign = Entity(name="campaign", join_keys=["campaign_id"], value_type=ValueType.INT64)

contract = BehaviorContract(
    join_key="device_id",
    entity="device",
    item="campaign",
    entity_dtype="string",
    behavior_type="event",
    event_time="happened_at",
    created_time="reported_at",
    value="bid",
    dedup_id="event_id",
    types=(
        BehaviorType("impression", weight=0.0),
        BehaviorType("click", weight=0.3),
        BehaviorType("conversion", weight=1.0),
    ),
)
log = behavior_source("ad_log", path="data/behaviors/*.parquet", contract=contract)
rules = CleaningRules(max_per_day=5_000, burst=(100, 60))  # click farms
behaviors = behaviors_view("behaviors", entity=device, source=log, contract=contract, rules=rules)
activity = activity_view("activity", entity=device, behaviors=behaviors, windows=("1h", "1d", "7d"))
history = history_view("history", entity=device, behaviors=behaviors)

encoder = EncoderRef("ads", dim=32)
device_embedding = embedding_view(
    "device_embedding",
    entity=device,
    inputs=Inputs(behaviors, history),
    encoder=encoder,
    policy=Hybrid(every="6h", half_life="3d", full_every="7d"),
    serve=Serving(ttl=timedelta(days=14)),
)
campaign_embedding = item_embedding_view("campaign_embedding", entity=campaign, encoder=encoder)

bidding = FeatureService(name="bidding", features=[device_embedding, activity])
campaigns = FeatureService(name="campaigns", features=[campaign_embedding])

if __name__ == "__main__":
    from feast_embeddings.materialize.demo import run_example

    run_example(__file__)

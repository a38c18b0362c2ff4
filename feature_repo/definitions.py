"""The feature repo: entities, behaviors, the features made of them, and who reads them."""

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
    session_embedding_view,
)

# When to encode what, and how old and new vectors blend: Incremental, Full or Hybrid.
POLICY = Hybrid(every="1d", half_life="14d", full_every="28d")

user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)
item = Entity(name="item", join_keys=["item_id"], value_type=ValueType.INT64)

# Your own table: say which column is what. The order of the types is their code: add new ones at the end.
contract = BehaviorContract(
    join_key="user_id",
    entity="customer_id",
    item="product_id",
    behavior_type="event",
    event_time="occurred_at",
    value="amount",
    dedup_id="event_id",
    types=(
        BehaviorType("view", weight=0.2),
        BehaviorType("cart", weight=0.5),
        BehaviorType("purchase", weight=1.0),
        BehaviorType("coupon", weight=0.5),
    ),
)
behavior_log = behavior_source("behavior_log", path="data/behaviors/*.parquet", contract=contract)

behaviors = behaviors_view(
    "behaviors",
    entity=user,
    source=behavior_log,
    contract=contract,
    rules=CleaningRules(max_per_day=1_000),
)
activity = activity_view("activity", entity=user, behaviors=behaviors, windows=("1d", "7d", "28d"))
history = history_view("history", entity=user, behaviors=behaviors)

# Both towers of one encoder: they share a space, and are cut over together.
encoder = EncoderRef("main", dim=64)
user_embedding = embedding_view(
    "user_embedding",
    entity=user,
    inputs=Inputs(behaviors, history),
    encoder=encoder,
    policy=POLICY,
    serve=Serving(ttl=timedelta(days=365), feature="user_vector"),
)
item_embedding = item_embedding_view(
    "item_embedding", entity=item, encoder=encoder, serve=Serving(feature="item_vector")
)

# What a user does right now, together with what is stored: one vector, encoded while the request waits.
session_embedding = session_embedding_view(
    "session_embedding", history=history, behaviors=behaviors, embedding=user_embedding
)

# Training rows exist from the first `feast materialize` on: the past is what was served.
ranking_training = FeatureService(name="ranking_training", features=[user_embedding, activity])
ranking_serving = FeatureService(name="ranking_serving", features=[user_embedding, activity, history])
ranking_session = FeatureService(name="ranking_session", features=[session_embedding, activity])
candidate_items = FeatureService(name="candidate_items", features=[item_embedding])

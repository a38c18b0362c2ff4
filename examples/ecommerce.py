"""A shop: views, carts, purchases and refunds become a user vector that is fresh every day.

Refunds take their purchase back, so a returned item does not count as liked. The price is the value of a behavior.
Vectors blend with a half-life of two weeks, and everyone is encoded anew each four weeks.

    python examples/ecommerce.py      # on a generated shop; needs the extra `explain`: pip install ".[explain]"
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
    session_embedding_view,
)

customer = Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.INT64)
product = Entity(name="product", join_keys=["product_id"], value_type=ValueType.INT64)

contract = BehaviorContract(
    join_key="customer_id",
    entity="customer_id",
    item="product_id",
    behavior_type="event",
    event_time="occurred_at",
    created_time="loaded_at",  # late rows are applied in the tick after they arrive
    value="price",
    dedup_id="event_id",
    types=(
        BehaviorType("view", weight=0.1),
        BehaviorType("cart", weight=0.4),
        BehaviorType("purchase", weight=1.0, aliases=("order",)),
        BehaviorType("refund", weight=0.0, cancels="purchase"),
    ),
)
log = behavior_source("shop_log", path="data/behaviors/*.parquet", contract=contract)
# Nobody looks at 2,000 products in a day, or at 60 in a minute: those are bots.
rules = CleaningRules(max_per_day=2_000, burst=(60, 60))
behaviors = behaviors_view("behaviors", entity=customer, source=log, contract=contract, rules=rules)
activity = activity_view("activity", entity=customer, behaviors=behaviors, windows=("1d", "7d", "28d"))
history = history_view("history", entity=customer, behaviors=behaviors)

encoder = EncoderRef("shop", dim=64)
customer_embedding = embedding_view(
    "customer_embedding",
    entity=customer,
    inputs=Inputs(behaviors, history),
    encoder=encoder,
    policy=Hybrid(every="1d", half_life="14d", full_every="28d"),
    serve=Serving(ttl=timedelta(days=365)),
)
product_embedding = item_embedding_view("product_embedding", entity=product, encoder=encoder)
session_embedding = session_embedding_view(
    "session_embedding", history=history, behaviors=behaviors, embedding=customer_embedding
)

ranking = FeatureService(name="ranking", features=[customer_embedding, activity])
browsing = FeatureService(name="browsing", features=[session_embedding, activity])
candidates = FeatureService(name="candidates", features=[product_embedding])

if __name__ == "__main__":
    from feast_embeddings.materialize.demo import run_example

    run_example(__file__)

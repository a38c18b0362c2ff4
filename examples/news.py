"""A news site: what is read and shared now matters more than what was read last week.

Ticks of fifteen minutes, and no memory beyond the last clicks: an old vector is replaced, not blended. Articles live
for days, so the vector of a reader who stays away is dropped after a month.

    python examples/news.py      # needs the extra `explain`: pip install ".[explain]"
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

reader = Entity(name="reader", join_keys=["reader_id"], value_type=ValueType.STRING)
article = Entity(name="article", join_keys=["article_id"], value_type=ValueType.STRING)

contract = BehaviorContract(
    join_key="reader_id",
    entity="reader_id",
    item="article_id",
    entity_dtype="string",  # cookies and accounts
    item_dtype="string",  # slugs
    behavior_type="action",
    event_time="clicked_at",
    value="seconds_read",
    dedup_id="click_id",
    types=(
        BehaviorType("impression", weight=0.0),  # an input of the encoder, never something to predict
        BehaviorType("read", weight=0.5),
        BehaviorType("share", weight=1.0),
    ),
)
log = behavior_source("click_log", path="data/behaviors/*.parquet", contract=contract)
rules = CleaningRules(max_per_day=500)  # crawlers read everything
behaviors = behaviors_view("behaviors", entity=reader, source=log, contract=contract, rules=rules)
activity = activity_view("activity", entity=reader, behaviors=behaviors, windows=("1h", "1d"))
history = history_view("history", entity=reader, behaviors=behaviors)

encoder = EncoderRef("news", dim=32)
reader_embedding = embedding_view(
    "reader_embedding",
    entity=reader,
    inputs=Inputs(behaviors, history),
    encoder=encoder,
    policy=Incremental(every="15m", alpha=0.0),
    serve=Serving(ttl=timedelta(days=30)),
)
article_embedding = item_embedding_view("article_embedding", entity=article, encoder=encoder)

front_page = FeatureService(name="front_page", features=[reader_embedding, activity])
articles = FeatureService(name="articles", features=[article_embedding])

if __name__ == "__main__":
    from feast_embeddings.materialize.demo import run_example

    run_example(__file__)

"""Behaviors of one small contract, and a tick over them."""

from repo_fixture import DAY, T0

from feast_embeddings.materialize.ledger import Tick
from feast_embeddings.transformations import BehaviorContract, BehaviorType

CONTRACT = BehaviorContract(
    join_key="user_id",
    entity="user",
    item="item",
    behavior_type="event",
    event_time="at",
    value="price",
    created_time="created",
    dedup_id="id",
    types=(BehaviorType("view"), BehaviorType("purchase")),
)
TICK = Tick(
    view="v",
    number=2,
    kind="incremental",
    state="recorded",
    start_us=T0 + DAY,
    end_us=T0 + 2 * DAY,
    created_from_us=T0 + DAY,
    created_until_us=T0 + 2 * DAY,
    fills=("f",),
    members=None,
    digest=None,
    kept=None,
    window_start_us=None,
    published_us=None,
    rows=0,
    encoded=0,
)

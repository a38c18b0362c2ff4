"""The contract says what is wrong with a declaration, and survives JSON."""

from typing import Any

import pytest

from feast_embeddings.models.errors import DeclarationError
from feast_embeddings.transformations import BehaviorContract, BehaviorType

VIEW, BUY, REFUND = BehaviorType("view"), BehaviorType("buy", 2), BehaviorType("refund", 0, cancels="buy")


def contract(**changes: Any) -> BehaviorContract:
    declared: dict[str, Any] = {
        "join_key": "user_id",
        "entity": "uid",
        "item": "sku",
        "event_time": "at",
        "behavior_type": "kind",
        "types": (VIEW, BUY, REFUND),
    }
    return BehaviorContract(**(declared | changes))


def test_a_contract_survives_json() -> None:
    full = contract(
        value="price",
        created_time="written",
        dedup_id="id",
        entity_dtype="string",
        naive_time_zone="Europe/Paris",
        types=(BehaviorType("view", aliases=("v", "seen")), BUY, REFUND),
    )
    assert BehaviorContract.from_json(full.to_json()) == full


def test_equal_contracts_have_equal_json() -> None:
    assert contract(types=(BehaviorType("buy", 2),)).to_json() == contract(types=[BehaviorType("buy", 2.0)]).to_json()


def test_a_type_s_code_is_its_position_and_aliases_share_it() -> None:
    kinds = (BehaviorType("view", aliases=("v",)), BUY, REFUND)
    assert contract(types=kinds).type_codes == {"view": 0, "v": 0, "buy": 1, "refund": 2}
    assert contract(types=kinds).cancellations == {2: 1}


def test_columns_name_what_the_source_has() -> None:
    assert contract(behavior_type=None, default_type="buy").columns == {
        "entity": "uid",
        "item": "sku",
        "event_time": "at",
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"types": ()}, "has no types"),
        ({"types": (VIEW, VIEW)}, "'view' is declared twice"),
        ({"types": (VIEW, BehaviorType("buy", aliases=("view",)))}, "'view' is declared twice"),
        ({"types": (BehaviorType("refund", cancels="buy"),)}, "cancels 'buy', which is not declared"),
        ({"types": (VIEW, BUY, REFUND, BehaviorType("undo", cancels="refund"))}, "itself a cancellation"),
        ({"item": "uid"}, "'uid' stands for both entity and item"),
        ({"created_time": "at"}, "'at' stands for both event_time and created_time"),
        ({"entity": ""}, "has no entity"),
        ({"join_key": ""}, "has no join_key"),
        ({"value": ""}, "value is empty"),
        ({"behavior_type": None}, "either behavior_type"),
        ({"default_type": "view"}, "and not both"),
        ({"behavior_type": None, "default_type": "like"}, "'like' is not declared"),
        ({"entity_dtype": "int32"}, "entity_dtype is 'int32'"),
        ({"naive_time_zone": "Mars/Olympus"}, "not a time zone"),
    ],
)
def test_a_contract_that_cannot_be_right_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DeclarationError, match=message):
        contract(**changes)


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_a_weight_is_finite_and_not_negative(weight: float) -> None:
    with pytest.raises(DeclarationError, match="finite weight of 0 or more"):
        BehaviorType("view", weight)


def test_a_type_does_not_cancel_itself() -> None:
    with pytest.raises(DeclarationError, match="cancels itself"):
        BehaviorType("buy", cancels="buy")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"types": [], "colour": 1}', '{"types": 3}'])
def test_foreign_json_is_refused(text: str) -> None:
    with pytest.raises(DeclarationError):
        BehaviorContract.from_json(text)

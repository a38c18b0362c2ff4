"""What a repo writes: its parts, the spelling of earlier builds, and views that those applied."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from feast import Entity, FeatureView, StreamFeatureView, ValueType
from feast.protos.feast.core.StreamFeatureView_pb2 import StreamFeatureView as Proto
from google.protobuf.json_format import MessageToDict, ParseDict

from feast_embeddings.materialize import embed_behaviors
from feast_embeddings.materialize.declare import EncoderRef, Hybrid, Inputs, Serving, spec_of
from feast_embeddings.materialize.declare.views import embedding_view, history_view, item_embedding_view
from feast_embeddings.models.errors import DeclarationError
from feast_embeddings.transformations import BehaviorContract, BehaviorType, behavior_source, behaviors_view

APPLIED = json.loads(Path(__file__).with_name("applied_earlier.json").read_text())
USER = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING)
ITEM = Entity(name="item", join_keys=["item_id"], value_type=ValueType.INT64)
ENCODER = EncoderRef("main", dim=8, artifact="encoders/it")
POLICY = Hybrid(half_life="7d")


def read() -> Inputs:
    """Views that an embedding view reads."""
    contract = BehaviorContract(
        join_key="user_id",
        entity="user",
        item="item",
        behavior_type="event",
        event_time="at",
        entity_dtype="string",
        types=(BehaviorType("view"),),
    )
    source = behavior_source("log", path="data/behaviors", contract=contract)
    behaviors = behaviors_view("behaviors", entity=USER, source=source, contract=contract)
    return Inputs(behaviors, history_view("history", entity=USER, behaviors=behaviors))


def declared() -> list[StreamFeatureView]:
    """A view of users, and one of items that follows it."""
    serve = Serving(ttl=timedelta(days=30), storage="float16", state="state")
    users = embedding_view(
        "users", entity=USER, inputs=read(), encoder=ENCODER, policy=POLICY, serve=serve, description="who"
    )
    return [users, item_embedding_view("items", entity=ITEM, encoder=ENCODER, unseen=users)]


SAID = {
    "users": "embedding_view: write inputs=Inputs(behaviors=behaviors, history=history), "
    "encoder=EncoderRef(name='main', dim=8, artifact='encoders/it'), "
    "serve=Serving(ttl=datetime.timedelta(days=30), storage='float16', state='state'); its keywords",
    "items": "item_embedding_view: write encoder=EncoderRef(name='main', dim=8, artifact='encoders/it'); its",
}


def declared_as_before() -> list[StreamFeatureView]:
    """The same, in the spelling of earlier builds; each says how it is spelled now."""
    inputs = read()
    kept: dict[str, Any] = {"ttl": timedelta(days=30), "state": "state", "storage": "float16"}
    encoder: dict[str, Any] = {"encoder": "main", "dim": 8, "artifact": "encoders/it"}
    given: dict[str, Any] = {"behaviors": inputs.behaviors, "history": inputs.history, **encoder, **kept}
    with pytest.warns(DeprecationWarning, match=re.escape(SAID["users"])) as warned:
        users = embedding_view("users", entity=USER, policy=POLICY, description="who", **given)
    assert [each.filename for each in warned if each.category is DeprecationWarning] == [__file__]
    with pytest.warns(DeprecationWarning, match=re.escape(SAID["items"])):
        items = item_embedding_view("items", entity=ITEM, unseen=users, **encoder)
    return [users, items]


def plain(view: FeatureView) -> Any:
    """A view as a registry keeps it, but for the times of its declaration and how the function is named."""
    return _without(MessageToDict(view.to_proto()), {"meta", "body"})


def _without(value: Any, keys: set[str]) -> Any:
    if isinstance(value, dict):
        return {key: _without(each, keys) for key, each in value.items() if key not in keys}
    if isinstance(value, list):
        return sorted((_without(each, keys) for each in value), key=str)
    return value


@pytest.mark.parametrize("declare", [declared, declared_as_before])
def test_a_declaration_is_what_earlier_builds_applied(declare: Any) -> None:
    assert [plain(view) for view in declare()] == [_without(each, {"body"}) for each in APPLIED]


def test_a_view_that_an_earlier_build_applied_is_read() -> None:
    """Its registry names the function by a module that is gone."""
    views = [StreamFeatureView.from_proto(ParseDict(each, Proto())) for each in APPLIED]
    assert [view.udf for view in views] == [embed_behaviors, embed_behaviors]
    assert [spec_of(view) for view in views] == [spec_of(view) for view in declared()]


def test_a_registry_names_the_function_by_the_package() -> None:
    for view in declared():
        body = view.to_proto().spec.feature_transformation.user_defined_function.body
        assert b"feast_embeddings.materialize\x94\x8c\x0fembed_behaviors" in body
        assert StreamFeatureView.from_proto(view.to_proto()).udf is embed_behaviors


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"encoder": ENCODER, "dim": 8}, r"item_embedding_view\(dim\) says what encoder=EncoderRef\(…\) says"),
        ({"encoder": ENCODER, "serve": Serving(), "ttl": timedelta(1)}, r"\(ttl\) says what serve=Serving\(…\) says"),
    ],
)
def test_one_thing_said_twice_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(DeclarationError, match=words):
        item_embedding_view("items", entity=ITEM, **given)


def test_parts_are_checked() -> None:
    with pytest.raises(DeclarationError, match=r"EncoderRef\('main', dim=0\): that is no dimension"):
        EncoderRef("main", dim=0)
    with pytest.raises(DeclarationError, match=r"Serving\(storage='int4'\) is unknown: use one of 'float32'"):
        Serving(storage="int4")  # type: ignore[arg-type]


def test_a_history_that_is_none_is_refused() -> None:
    behaviors = read().behaviors
    with pytest.raises(DeclarationError, match=r"history='behaviors' was not made by history_view\(\)"):
        embedding_view("users", entity=USER, inputs=Inputs(behaviors, behaviors), encoder=ENCODER, policy=POLICY)


@pytest.mark.parametrize("name", ["../../../evil", "/etc/evil", "a/b", "", ".hidden", "..", "a\nb", "a\0b", "v" * 101])
def test_a_name_that_is_no_folder_s_is_refused(name: str) -> None:
    with pytest.raises(DeclarationError, match="is no name for an embedding view"):
        item_embedding_view(name, entity=ITEM, encoder=ENCODER)

"""The transformation of a session view stays in registries as text, and texts of earlier versions go on working."""

import subprocess
import sys

import pytest

from feast_embeddings.transformations import BehaviorContract, BehaviorType, CleaningRules
from feast_embeddings.transformations.views.session import SessionSpec

CONTRACT = BehaviorContract(
    join_key="user_id", entity="user", item="item", event_time="at", default_type="view", types=(BehaviorType("view"),)
)
SPEC = SessionSpec("now", "user_embedding", "main", 4, None, False, False, CONTRACT, CleaningRules())
CALL = """
from feast.transformation.udf_rehydrate import rehydrate_udf_from_source
udf = rehydrate_udf_from_source({source!r}, preferred_name="session_embedding")
print({{name: rows[0].shape for name, rows in udf({{"history_items": [None]}}).items()}})
"""


@pytest.mark.parametrize("module", ["feast_embeddings.transformations", "feast_embeddings.transformations.session"])
def test_a_stored_text_finds_the_transformation(module: str) -> None:
    """Given a process that has imported nothing of ours, when Feast runs the text, then it answers a sample."""
    text = f"""\
def session_embedding(inputs):
    from {module} import session_vectors

    return session_vectors(inputs, {SPEC.to_json()!r})
"""
    command = [sys.executable, "-W", "ignore", "-c", CALL.format(source=text)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.strip() == "{'now': (4,), 'now__now': (4,)}", done.stderr

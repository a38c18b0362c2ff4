"""`feast serve`, one process of it: sessions for eight clients at a time, and a push that arrives in the stream."""

from __future__ import annotations

import json
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from reading_processes import served
from repo_fixture import MakeRepo, day
from session_fixture import SESSION, matrix, rows_of, session_repo

from feast_embeddings.materialize.stream import RedisStreams, agreed_partitions


def post(port: int, path: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310
        text = response.read()
        return json.loads(text) if text else None


def test_eight_clients_get_their_own_sessions_and_a_push_arrives(make_repo: MakeRepo) -> None:
    repo, store = session_repo(make_repo, rules='), push=str("behaviors"')
    behaviors = repo.behaviors(day(5)).between(day(4), day(5))
    users = behaviors.entities.tolist()
    rows = rows_of(behaviors, users)
    alone = {user: {name: [cells[at]] for name, cells in rows.items()} for at, user in enumerate(users)}
    expected = dict(
        zip(users, matrix(store.get_online_features([SESSION], rows).to_dict()["session_embedding"]), strict=True)
    )

    with served(repo.folder) as port:

        def ask(user: int) -> np.ndarray:
            answer = post(port, "/get-online-features", {"features": [SESSION], "entities": alone[user]})
            (column,) = (
                result["values"]
                for name, result in zip(answer["metadata"]["feature_names"], answer["results"], strict=True)
                if name == "session_embedding"
            )
            return matrix(column)[0]

        with ThreadPoolExecutor(8) as pool:
            asked = users * 8
            found = list(pool.map(ask, asked))
        frame = {
            "user_id": [1, 2],
            "item_id": [101, 102],
            "behavior_type": ["view", "purchase"],
            "value": [None, 2.5],
            "at": ["2024-03-05T10:00:00.000000Z", "2024-03-05T10:00:00.000001Z"],
        }
        post(port, "/push", {"push_source_name": "behaviors", "df": frame, "to": "online"})

    for user, vector in zip(asked, found, strict=True):
        np.testing.assert_allclose(vector, expected[user], atol=1e-5)
    assert "Session views are not warm" not in (Path(repo.folder) / "serve.log").read_text()
    with repo.redis() as client:
        partitions = tuple(range(agreed_partitions(client, repo.project, "behaviors")))
    source = RedisStreams(repo.server.client, repo.project, "behaviors", "group", partitions)
    delivery = source.next_batch(100, 0.01)
    assert delivery is not None
    assert sorted(json.loads(payload)["item"] for payload in delivery.payloads) == [101, 102]

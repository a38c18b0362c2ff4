"""Cutovers under reader processes: a short sample of `make concurrency`."""

from pathlib import Path

import yaml
from feast import FeatureStore
from online_fixture import embedding, user
from reading_processes import Readers, publish


def test_no_process_reads_a_mixture_during_cutovers(valkey: str, tmp_path: Path) -> None:
    # given two views, and a process at each of two doors
    online = {"type": "feast_embeddings.materialize.online_store.EmbeddingOnlineStore", "connection_string": valkey}
    settings = {"project": "readers", "provider": "local", "registry": "registry.db", "online_store": online}
    (tmp_path / "feature_store.yaml").write_text(yaml.safe_dump({**settings, "entity_key_serialization_version": 3}))
    store = FeatureStore(str(tmp_path))
    store.apply([user, embedding("users"), embedding("items")])
    publish(store, 1)
    readers = Readers(tmp_path, ("async", "matrix"))

    # when generations change back to back, each one's rows removed as soon as the next is live
    for generation in range(2, 52):
        publish(store, generation)

    # then no answer was of two generations, and none failed
    found = readers.stop()
    assert {name: result["wrong"] for name, result in found.items()} == {name: [] for name in found}
    assert sum(result["answers"] for result in found.values()) > 20

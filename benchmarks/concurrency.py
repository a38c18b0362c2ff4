"""Cutovers back to back under eight reader processes: no answer may mix generations, none may fail.

Every vector of a generation is its number, and a generation's rows are removed as soon as the next one is live.
``make concurrency`` runs 1,000 cutovers.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
import warnings
from pathlib import Path

import yaml
from feast import FeatureStore

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))
RESULTS = ROOT / "benchmarks" / "results" / "concurrency.json"
DOORS = ("sync", "sync", "async", "async", "matrix", "matrix", "http", "http")


def made_store(folder: Path, url: str) -> FeatureStore:
    """A feature repo of two embedding views."""
    from online_fixture import embedding, user

    settings = {
        "project": "shop",
        "provider": "local",
        "registry": "registry.db",
        "entity_key_serialization_version": 3,
        "online_store": {
            "type": "feast_embeddings.materialize.online_store.EmbeddingOnlineStore",
            "connection_string": url,
        },
    }
    (folder / "feature_store.yaml").write_text(yaml.safe_dump(settings))
    store = FeatureStore(str(folder))
    store.apply([user, embedding("users"), embedding("items")])
    return store


def main() -> int:
    """The command line; 1 where an answer was mixed or failed."""
    from reading_processes import Readers, publish, served
    from servers_fixture import BINARIES, running

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cutovers", type=int, default=1000)
    parser.add_argument("--server", choices=BINARIES, default="valkey")
    parser.add_argument("--no-results", action="store_true", help="write no file of results")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(prefix="concurrency-") as name:
        folder = Path(name)
        with running(BINARIES[options.server], folder / "server") as server:
            store = made_store(folder, server.url)
            publish(store, 1)
            with served(folder) as port:
                readers = Readers(folder, DOORS, port)
                started = time.monotonic()
                for generation in range(2, options.cutovers + 2):
                    publish(store, generation)
                seconds = time.monotonic() - started
                found = readers.stop()
    answers, wrong = (sum(reader[what] for reader in found.values()) for what in ("answers", "errors"))
    print(f"{options.cutovers:,} cutovers in {seconds:.1f} s; {answers:,} answers, {wrong} mixed or failed")
    for reader, result in found.items():
        print(f"  {reader:10} {result}")
    result = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "server": options.server,
        "cutovers": options.cutovers,
        "seconds": round(seconds, 1),
        "answers": answers,
        "mixed or failed": wrong,
        "readers": found,
    }
    if not options.no_results:
        RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())

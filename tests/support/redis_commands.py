"""What a Redis holds, as plain commands: any server of any version takes them, which no dump or snapshot promises."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

Command = list[bytes]


def write_commands(client: Any, path: Path) -> None:
    """Write what fills an empty Redis alike: gzip of a JSON list of arguments in hex per line."""
    with gzip.GzipFile(path, "wb", mtime=0) as lines:
        for command in commands_of(client):
            lines.write(json.dumps([part.hex() for part in command]).encode() + b"\n")


def run_commands(client: Any, path: Path, kept: Callable[[Command], bool] = lambda _: True) -> None:
    """Run what :func:`write_commands` wrote, or some of it."""
    for command in filter(kept, _read(path)):
        client.execute_command(*command)


def _read(path: Path) -> Iterable[Command]:
    with gzip.open(path, "rt") as lines:
        yield from ([bytes.fromhex(part) for part in json.loads(line)] for line in lines)


def commands_of(client: Any) -> Iterator[Command]:
    """What fills an empty Redis alike; raises KeyError for a type that is not among these."""
    writers = {b"string": _string, b"hash": _hash, b"stream": _stream}
    for key in sorted(client.scan_iter(count=1000)):
        assert client.ttl(key) == -1
        for command in writers[client.type(key)](client, key):
            yield [part if isinstance(part, bytes) else str(part).encode() for part in command]


def _string(client: Any, key: bytes) -> Iterator[list[Any]]:
    yield ["SET", key, client.get(key)]


def _hash(client: Any, key: bytes) -> Iterator[list[Any]]:
    yield ["HSET", key, *(part for pair in sorted(client.hgetall(key).items()) for part in pair)]


def _stream(client: Any, key: bytes) -> Iterator[list[Any]]:
    for entry, fields in client.xrange(key):
        yield ["XADD", key, entry, *(part for pair in fields.items() for part in pair)]
    stream = client.xinfo_stream(key)
    counts = ["ENTRIESADDED", stream["entries-added"], "MAXDELETEDID", stream["max-deleted-entry-id"]]
    for group in client.xinfo_groups(key):
        name, read = group["name"], group["entries-read"]
        seen = [] if read is None else ["ENTRIESREAD", read]
        yield ["XGROUP", "CREATE", key, name, group["last-delivered-id"], "MKSTREAM", *seen]
        for consumer in client.xinfo_consumers(key, name):
            yield ["XGROUP", "CREATECONSUMER", key, name, consumer["name"]]
        for each in client.xpending_range(key, name, "-", "+", 10_000):
            claim = ["XCLAIM", key, name, each["consumer"], 0, each["message_id"]]
            yield [*claim, "TIME", 0, "RETRYCOUNT", each["times_delivered"], "FORCE", "JUSTID"]
    yield ["XSETID", key, stream["last-generated-id"], *counts]

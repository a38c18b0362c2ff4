"""Makes the archives beside it; see README.md. It is the record of how they were made, and runs on that head alone."""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
import sys
import tarfile
import tempfile
from collections.abc import Callable
from contextlib import chdir
from gzip import GzipFile
from pathlib import Path

import numpy as np
from earlier_head import DATA, EARLIER, Earlier, at, click, day, differing, run
from redis_commands import write_commands
from servers_fixture import BINARIES, running
from small_repo import UNSEEN, Repo, deliver, lived, ranked, sequence, stopping_at
from streamed import make_stream

from feast_embeddings.materialize.erasure import forget


def make_batch(repo: Repo) -> None:
    """Two generations, bad, doubled and late rows, an erasure; a tick of users and one of items are left open."""
    for number in range(8):
        deliver(f"day-{number}", lived(number, number + 1, number, 40, unseen=4))
    doubled = lived(3, 4, 3, 40, unseen=4)[0]
    deliver("late", [{**click(3, 104, day(2.5)), "created": day(3.6)}, click(4, UNSEEN, day(3.7))])
    deliver("erased", [click(7, 101, day(1.3)), click(7, 102, day(4.1)), click(7, 103, day(5.9)), doubled])
    teleport = click(2, 102, day(2.2), event="teleport")
    deliver("bad", [{**click(1, 101, day(1.2)), "item": None}, teleport, {**click(3, 103, day(3.3)), "user": None}])
    repo.encode_with(sequence(1))
    repo.materialize(2)
    repo.incremental(3)
    repo.incremental(4)
    with at(4.2):
        forget(repo.store, "user", 7)
    repo.encode_with(ranked(2))
    repo.materialize(5)
    repo.incremental(6, "user_embedding")
    with stopping_at("summed"):
        repo.incremental(6, "item_embedding")
    with stopping_at("written"):
        repo.incremental(7, "user_embedding")


def make_refresh(repo: Repo) -> None:
    """A refresh as of day 6 is left open; a tick beside it, which bridges it, has reached Redis and no log."""
    for number in range(8):
        deliver(f"day-{number}", lived(number, number + 1, 20 + number, 30, unseen=3))
    repo.encode_with(ranked(3))
    repo.materialize(3)
    repo.incremental(4)
    repo.incremental(5)

    def tick() -> None:
        with stopping_at("written"):
            repo.incremental(7, "user_embedding")

    with stopping_at("staged", tick):
        repo.materialize(6, ["user_embedding"], now=7)


MAKERS: dict[str, tuple[Callable[[Repo], None], str, str | None]] = {
    "batch": (make_batch, "Hybrid(alpha=0.5, full_every='30d')", "created"),
    "stream": (make_stream, "Incremental(alpha=0.5)", None),
    "refresh": (make_refresh, "Hybrid(alpha=0.5, full_every='30d')", None),
}


def make(earlier: Earlier, place: Path) -> None:
    """Make a repo, pack it, and let both it and what was packed go on: they must end alike."""
    maker, *options = MAKERS[earlier.name]
    folder, packed, opened = (place / f"{earlier.name}-{part}" for part in ("made", "packed", "opened"))
    folder.mkdir()
    with running(BINARIES["valkey"], place / "valkey") as server, chdir(folder):
        maker(Repo(earlier.name, server.url, *options))
        shutil.copytree(folder, packed, ignore=shutil.ignore_patterns("__pycache__"))
        with server.client() as client:
            write_commands(client, packed / "redis.jsonl.gz")
        _tidy(packed, server.url)
        before = earlier.before()
        with at(earlier.saved):
            (packed / "status.txt").write_text(run("status"))
        said, after = earlier.go_on(), earlier.after()
        if earlier.stream:
            (packed / "said.txt").write_text(said)
            (packed / "replay.txt").write_text(run("replay"))
    np.savez_compressed(packed / "before.npz", **before)
    np.savez_compressed(packed / "after.npz", **after)
    _pack(packed, DATA / f"{earlier.name}.tar.gz")
    with running(BINARIES["valkey"], place / "another") as server:
        earlier.open(opened, server.url)
        with chdir(opened):
            assert not differing(earlier.before(), before)
            earlier.go_on()
            assert not differing(earlier.after(), after)


def _tidy(folder: Path, url: str) -> None:
    """Leave nothing in a repo that belongs to this machine."""
    config = folder / "feature_store.yaml"
    config.write_text(config.read_text().replace(url, "embedded"))
    ledger = sqlite3.connect(folder / "data/embeddings/ledger.db")
    ledger.execute("PRAGMA journal_mode = DELETE")
    ledger.execute("VACUUM")
    assert ledger.execute("SELECT count(*) FROM feast_embeddings_leases").fetchone() == (0,)
    ledger.close()
    for path in (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".gz"):
        for own in (str(folder.parent), f"{socket.gethostname()}:{os.getpid()}"):
            assert own.encode() not in path.read_bytes(), f"{path} knows where it was made"


def _pack(folder: Path, archive: Path) -> None:
    """The same bytes of the same files, whoever packs them when."""

    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.mtime = member.uid = member.gid = 0
        member.uname = member.gname = ""
        return member

    with GzipFile(archive, "wb", mtime=0) as zipped, tarfile.open(fileobj=zipped, mode="w") as tar:
        for path in sorted(folder.rglob("*")):
            tar.add(path, str(path.relative_to(folder)), recursive=False, filter=plain)


if __name__ == "__main__":
    for each in EARLIER:
        if each.name in (sys.argv[1:] or MAKERS):
            with tempfile.TemporaryDirectory() as folder:
                make(each, Path(folder))

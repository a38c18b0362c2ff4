"""Lua scripts of this folder: each call is atomic in Redis."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files
from typing import Any

import redis


def call_script(client: Any, name: str, script_keys: Sequence[Any], arguments: Sequence[Any]) -> Any:
    """Runs the script in file ``name``, sending its text only to a server that does not know it yet.

    Raises:
        redis.RedisError: The server cannot be reached, or refuses.
    """
    text, digest = script(name)
    try:
        return client.evalsha(digest, len(script_keys), *script_keys, *arguments)
    except redis.exceptions.NoScriptError:
        return client.eval(text, len(script_keys), *script_keys, *arguments)


@lru_cache
def script(name: str) -> tuple[str, str]:
    """Text of the script in file ``name``, and the digest by which servers know it."""
    text = files("feast_embeddings.materialize.online").joinpath(name).read_text(encoding="utf-8")
    return text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

"""An encoder's live generation, as one string in Redis.

Writing that string is the cutover: every view of the encoder moves to its new fill at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from feast_embeddings.materialize.online import keys
from feast_embeddings.models.errors import OnlineStoreError, SpaceError


@dataclass(frozen=True, slots=True)
class FillRef:
    """One fill of a view: its name, and the space of its vectors."""

    fill: str
    space: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """Which fill of each view is live, and which ones are retained.

    Attributes:
        encoder: Name of the encoder whose views these are.
        generation: Grows with every cutover, rollbacks included.
        fills: View name → its live fill.
        retained: View name → earlier fills that go on receiving ticks, newest first.
    """

    encoder: str
    generation: int
    fills: Mapping[str, FillRef]
    retained: Mapping[str, tuple[FillRef, ...]] = field(default_factory=dict)

    def fill_of(self, view: str, space: str | None = None) -> FillRef | None:
        """The live fill of ``view``, or the one in ``space``, live or retained.

        Returns:
            The fill; None if the view has none yet and no space is asked for.

        Raises:
            SpaceError: No live or retained fill of the view is in ``space``.
        """
        live = self.fills.get(view)
        if space is None:
            return live
        kept = ([live] if live else []) + list(self.retained.get(view, ()))
        for ref in kept:
            if ref.space == space:
                return ref
        raise SpaceError(
            f"Feature view {view!r} of encoder {self.encoder!r} has no fill in space {space!r}. "
            f"Served spaces: {', '.join(ref.space for ref in kept) or 'none'}. "
            "Pin one of these, or read the view without a pin."
        )

    def to_json(self) -> str:
        """JSON text with sorted keys: equal manifests give equal text."""
        body = {
            "generation": self.generation,
            "fills": {view: _as_dict(ref) for view, ref in self.fills.items()},
            "retained": {view: [_as_dict(ref) for ref in refs] for view, refs in self.retained.items()},
        }
        return json.dumps(body, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, encoder: str, text: str | bytes) -> Manifest:
        """Reads back :meth:`to_json`.

        Raises:
            OnlineStoreError: ``text`` is not a manifest.
        """
        try:
            body = json.loads(text)
            fills = {view: _from_dict(ref) for view, ref in body["fills"].items()}
            retained = {view: tuple(_from_dict(ref) for ref in refs) for view, refs in body.get("retained", {}).items()}
            return cls(encoder, int(body["generation"]), fills, retained)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise OnlineStoreError(
                f"The manifest of encoder {encoder!r} in Redis is unreadable ({error!r}). "
                "Delete it and run `feast materialize` to write a new generation."
            ) from error


def _as_dict(ref: FillRef) -> dict[str, str]:
    return {"fill": ref.fill, "space": ref.space}


def _from_dict(body: Mapping[str, Any]) -> FillRef:
    return FillRef(fill=str(body["fill"]), space=str(body["space"]))


class ManifestCache:
    """The manifests of a project that this process has seen last. Threads may share it: a stale one costs a retry."""

    def __init__(self, project: str) -> None:
        self._project = project
        self._known: dict[str, tuple[bytes, Manifest]] = {}

    def get(self, encoder: str) -> Manifest | None:
        """The manifest as last seen."""
        known = self._known.get(encoder)
        return known[1] if known else None

    def learn(self, encoder: str, text: bytes | None) -> Manifest | None:
        """Takes in what Redis holds now.

        Raises:
            OnlineStoreError: ``text`` is not a manifest.
        """
        known = self._known.get(encoder)
        if text is None:
            self._known.pop(encoder, None)
            return None
        if known is None or known[0] != text:
            known = self._known[encoder] = (text, Manifest.from_json(encoder, text))
        return known[1]

    def delete(self, client: Any, encoder: str) -> None:
        """Removes an encoder's manifest from Redis, and forgets it."""
        client.delete(keys.manifest_key(self._project, encoder))
        self.learn(encoder, None)

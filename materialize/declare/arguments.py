"""The arguments of a declaration: what belongs together is said together. Their keywords stood one by one before."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, ParamSpec, TypeVar, cast

from feast import FeatureView

from feast_embeddings.materialize.declare.storage import STORAGES, Storage
from feast_embeddings.models.errors import DeclarationError
from feast_embeddings.transformations.views import EMBEDDING

P = ParamSpec("P")
T = TypeVar("T")
STATE: Final = "data/embeddings"


@dataclass(frozen=True)
class Inputs:
    """What an embedding view's vectors are made from.

    Attributes:
        behaviors: The view over the entity's raw behaviors (:func:`feast_embeddings.transformations.behaviors_view`).
        history: The view its ticks keep histories in (:func:`history_view`); one per embedding view.
    """

    behaviors: FeatureView
    history: FeatureView


@dataclass(frozen=True)
class EncoderRef:
    """Which encoder makes the vectors; views of one name share a space, and are cut over together.

    Attributes:
        name: Name of the encoder.
        dim: Dimensions of its vectors.
        artifact: Folder of its artifact, relative to the feature repo. Default ``data/encoders/<name>``.

    Raises:
        DeclarationError: ``dim`` is no dimension.
    """

    name: str
    dim: int
    artifact: str | None = None

    def __post_init__(self) -> None:
        if self.dim <= 0:
            raise DeclarationError(
                f"EncoderRef({self.name!r}, dim={self.dim}): that is no dimension: use the encoder's, such as 64."
            )

    @property
    def folder(self) -> str:
        """Where its artifact is, relative to the feature repo."""
        return self.artifact or f"data/encoders/{self.name}"


@dataclass(frozen=True)
class Serving:
    """How vectors are kept and served.

    Attributes:
        ttl: Age past which a vector is no longer served, online or offline. Default: forever.
        storage: ``float32``; or ``float16`` or ``int8`` (with one scale per vector), which take about a half and a
            quarter of the bytes in Redis. Vectors are rounded once, before they are staged and logged: online reads
            and historical retrieval return the same float32 numbers, and a later blend starts from them.
        feature: Name of the view's one feature. Vectors that are read together need names of their own, such as
            ``user_vector`` and ``item_vector``. It is a name alone: to change it touches nothing that is stored.
        state: Folder that holds the embedding log, relative to the feature repo.

    Raises:
        DeclarationError: ``storage`` is unknown, or ``feature`` is no name.
    """

    ttl: timedelta = timedelta(0)
    storage: Storage = "float32"
    feature: str = EMBEDDING
    state: str = STATE

    def __post_init__(self) -> None:
        if self.storage not in STORAGES:
            raise DeclarationError(
                f"Serving(storage={self.storage!r}) is unknown: use one of {', '.join(map(repr, STORAGES))}."
            )
        if not self.feature.isidentifier() or "__" in self.feature:
            raise DeclarationError(
                f"Serving(feature={self.feature!r}) is no name for a feature: write one like 'user_vector', of "
                "letters, digits and single underscores."
            )


_FORMER: Final[dict[str, tuple[Callable[..., Any], dict[str, str]]]] = {
    "inputs": (Inputs, {"behaviors": "behaviors", "history": "history"}),
    "encoder": (EncoderRef, {"encoder": "name", "dim": "dim", "artifact": "artifact"}),
    "serve": (Serving, {"ttl": "ttl", "storage": "storage", "feature": "feature", "state": "state"}),
}
"""Parameter → its part, and the part's field for each keyword of earlier builds."""


def former_keywords(declare: Callable[P, T]) -> Callable[P, T]:
    """Let a declaration be written with the keywords of earlier builds until version 0.2, with a warning."""

    @functools.wraps(declare)
    def declared(*args: P.args, **given: P.kwargs) -> T:
        _group(declare.__name__, cast(dict[str, Any], given))
        return declare(*args, **given)

    return declared


def _group(declaration: str, given: dict[str, Any]) -> None:
    """Put former keywords into their parts; raises DeclarationError where a part is given too."""
    written = []
    for parameter, (part, fields) in _FORMER.items():
        former = [key for key in fields if key in given and (key != parameter or isinstance(given[key], str))]
        if not former:
            continue
        values = {fields[key]: given.pop(key) for key in former}
        if parameter in given:
            raise DeclarationError(
                f"{declaration}({', '.join(former)}) says what {parameter}={part.__name__}(…) says: write it there."
            )
        given[parameter] = part(**values)
        written.append(f"{parameter}={part.__name__}({', '.join(f'{key}={_shown(values[key])}' for key in values)})")
    if written:
        message = f"{declaration}: write {', '.join(written)}; its keywords one by one end with version 0.2."
        warnings.warn(message, DeprecationWarning, stacklevel=3)


def _shown(value: object) -> str:
    return value.name if isinstance(value, FeatureView) else repr(value)

"""The session embedding: an on-demand view that encodes a stored history together with a request's own behaviors.

Feast rebuilds the transformation of an on-demand view from its source text, without any of its module's globals. So
the text holds the whole declaration, as JSON, and calls :func:`session_vectors`. It imports that from the face of the
package, because the text stays in registries: a module may move. Which encoder answers is known only to whoever
serves: see :func:`serve_sessions_with`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import FunctionType
from typing import Any, Final, cast

import numpy as np
from feast import FeatureView, Field, OnDemandFeatureView, RequestSource
from feast.transformation.udf_rehydrate import rehydrate_udf_from_source
from feast.types import Array, Float32, Float64, Int64, String

from feast_embeddings.models.errors import DeclarationError, OnlineStoreError
from feast_embeddings.models.types import Float32s
from feast_embeddings.transformations.behaviors import BehaviorContract, CleaningRules
from feast_embeddings.transformations.views import tags
from feast_embeddings.transformations.views.behaviors import ID_TYPES, contract_of, rules_of

SESSION_VALUES: Final = "session_values"
SESSION_INPUTS: Final = ("session_items", "session_types", "session_times", SESSION_VALUES)
"""Request data of a session: items, names of behavior types, times in microseconds UTC, and values where declared."""

Columns = Mapping[str, Sequence[Any]]
"""A request's rows by column: stored histories, the request's own behaviors, join keys."""

_SOURCE: Final = """\
def session_embedding(inputs):
    from feast_embeddings.transformations import session_vectors
    from feast_embeddings.transformations.views.session import session_vectors

    return session_vectors(inputs, {spec!r})
"""


_PLAIN: Final = ("view", "embedding", "encoder", "dim", "space", "with_values", "exact")


@dataclass(frozen=True, slots=True)
class SessionSpec:
    """What a session view declares.

    Attributes:
        view: Its name, which is also its feature's.
        embedding: Name of the embedding view in whose fill's space it answers.
        encoder: Name of that view's encoder.
        dim: Dimensions of the vectors.
        space: The space it is pinned to; None: the live one.
        with_values: Whether a request gives values.
        exact: Whether a vector is bit for bit what a tick would store.
        contract: What the behaviors mean.
        rules: Which behaviors do not count.
    """

    view: str
    embedding: str
    encoder: str
    dim: int
    space: str | None
    with_values: bool
    exact: bool
    contract: BehaviorContract
    rules: CleaningRules

    def to_json(self) -> str:
        """As it stands in the transformation's source text."""
        plain = {name: getattr(self, name) for name in _PLAIN}
        return json.dumps(plain | {"contract": self.contract.to_json(), "rules": self.rules.to_json()}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> SessionSpec:
        """The inverse of :meth:`to_json`."""
        fields = json.loads(text)
        contract = BehaviorContract.from_json(fields.pop("contract"))
        return cls(contract=contract, rules=CleaningRules.from_json(fields.pop("rules")), **fields)


SessionServer = Callable[[SessionSpec, Columns], Sequence[Float32s | None]]
"""Encodes the rows of one request; None for a row without any behavior."""
_server: SessionServer | None = None


def session_embedding_view(
    name: str,
    *,
    history: FeatureView,
    behaviors: FeatureView,
    embedding: FeatureView,
    space: str | None = None,
    with_values: bool = False,
    exact: bool = False,
) -> OnDemandFeatureView:
    """Declare the vector of a stored history and a request's own behaviors, in the space that ``embedding`` serves.

    Its one feature, ``<name>``, is float32 [dim]: what the encoder makes of the last behaviors of both together, in
    the generation of whatever else the same answer holds. It is not blended with what was stored. A request gives
    lists ``session_items``, ``session_types`` (names) and ``session_times`` (microseconds since the epoch, UTC), one
    list per entity, which may be empty or null; ``session_values`` too, if declared.

    Args:
        name: Name of the view and of its feature.
        history: The history view of ``embedding``.
        behaviors: The view over the raw behaviors, whose contract and rules hold for the request's behaviors too.
        embedding: The embedding view whose encoder and generation answer.
        space: Pin it to one served space; default: the live one.
        with_values: Whether a request gives ``session_values``: for encoders that look at values.
        exact: Whether a vector is to be bit for bit what a tick of the same behaviors would store, for several times
            the time; else it agrees within the tolerance of the encoder's numeric paths.

    Raises:
        DeclarationError: The three views do not belong together.
    """
    contract = contract_of(behaviors)
    _check(name, history, behaviors, embedding)
    spec = SessionSpec(
        view=name,
        embedding=embedding.name,
        encoder=embedding.tags[tags.ENCODER],
        dim=int(embedding.tags[tags.DIM]),
        space=space,
        with_values=with_values,
        exact=exact,
        contract=contract,
        rules=rules_of(behaviors),
    )
    kinds = (Array(ID_TYPES[contract.item_dtype]), Array(String), Array(Int64), Array(Float64))
    given = SESSION_INPUTS if with_values else SESSION_INPUTS[:3]
    inputs = [Field(name=field, dtype=dtype) for field, dtype in zip(given, kinds, strict=False)]
    source = _SOURCE.format(spec=spec.to_json())
    return OnDemandFeatureView(
        name=name,
        schema=[Field(name=name, dtype=Array(Float32))],
        sources=[history, RequestSource(name=f"{name}_request", schema=inputs)],
        mode="python",
        udf=cast(FunctionType, rehydrate_udf_from_source(source, preferred_name="session_embedding")),
        udf_string=source,
        tags={tags.KIND: tags.SESSION_KIND, tags.SESSION: spec.to_json()},
    )


def session_spec_of(view: OnDemandFeatureView) -> SessionSpec | None:
    """What a session view declares; None for any other on-demand view."""
    return _spec(view.tags[tags.SESSION]) if (view.tags or {}).get(tags.KIND) == tags.SESSION_KIND else None


def serve_sessions_with(server: SessionServer) -> None:
    """Name who encodes the sessions of this process; the online store does so when it is imported."""
    global _server  # noqa: PLW0603 - Feast calls the transformation without any context
    _server = server


def session_vectors(inputs: Columns, spec_json: str) -> dict[str, list[Float32s | None]]:
    """The transformation of a session view; Feast calls it with the rows of one request.

    Raises:
        OnlineStoreError: Nobody serves sessions here, or there is no online answer that it could belong to.
    """
    spec = _spec(spec_json)
    full_name = f"{spec.view}__{spec.view}"  # Feast asks for this one where full_feature_names is set
    if spec.contract.join_key not in inputs:
        # `feast apply` tries the transformation on sample data of the declared columns alone.
        sample: list[Float32s | None] = [np.zeros(spec.dim, np.float32)]
        return {spec.view: sample, full_name: sample}
    if _server is None:
        raise OnlineStoreError(
            f"On-demand view {spec.view!r} needs online_store.type "
            "feast_embeddings.materialize.online_store.EmbeddingOnlineStore in feature_store.yaml."
        )
    vectors = list(_server(spec, inputs))
    return {spec.view: vectors, full_name: vectors}


@lru_cache(maxsize=64)
def _spec(text: str) -> SessionSpec:
    return SessionSpec.from_json(text)


def _check(name: str, history: FeatureView, behaviors: FeatureView, embedding: FeatureView) -> None:
    found = embedding.tags.get(f"{tags.PREFIX}history")
    if tags.kind_of(embedding) != tags.EMBEDDING_KIND or not found:
        raise DeclarationError(
            f"Session view {name!r}: embedding={embedding.name!r} embeds no histories: pass what embedding_view() made."
        )
    if tags.kind_of(history) != tags.HISTORY_KIND or history.name != found:
        raise DeclarationError(
            f"Session view {name!r}: history={history.name!r} is not the history view of {embedding.name!r}: "
            f"pass {found!r}."
        )
    if embedding.tags.get(tags.BEHAVIORS) != behaviors.name:
        raise DeclarationError(
            f"Session view {name!r}: behaviors={behaviors.name!r} is not what {embedding.name!r} embeds: "
            f"pass {embedding.tags.get(tags.BEHAVIORS)!r}."
        )

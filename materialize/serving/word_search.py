"""Items by words: a query's text becomes a vector of the space that is served, and its nearest items answer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from feast import FeatureStore

from feast_embeddings.materialize.declare import spec_of
from feast_embeddings.materialize.files import Workspace
from feast_embeddings.materialize.serving.neighbors import Metric, Neighbors, nearest
from feast_embeddings.materialize.serving.vectors import find, read_vectors
from feast_embeddings.models import TextEncoder
from feast_embeddings.models.errors import DeclarationError
from feast_embeddings.models.types import Ids

_workspaces: dict[tuple[str, str], Workspace] = {}  # an encoder with its text model is loaded once in a process


def search(
    store: FeatureStore,
    feature: str,
    texts: Sequence[str],
    k: int,
    metric: Metric = "cosine",
    *,
    model: str | None = None,
) -> Neighbors:
    """The k items nearest to each of n texts, in the space that is live.

    Args:
        store: The feature store.
        feature: ``<view>:<feature>`` of the items of a `TextEncoder`.
        texts: Queries.
        k: Items per query.
        metric: As for :func:`nearest`; ``cosine``, for a text's vector has no length that would mean anything.
        model: Where the text model is, if not where the artifact says.

    Raises:
        DeclarationError: The view's encoder knows no texts, or the text model is not there.
        ArtifactError: The text model is another one than the encoder was made with.
        SpaceError: The space changed while it was asked; ask again.
        OnlineStoreError: Redis cannot be reached.
    """
    view = find(store, feature)
    anyone: Ids = np.array([""], object) if spec_of(view).string_ids else np.zeros(1, np.int64)
    space = read_vectors(store, feature, anyone).space
    key = (str(store.config.repo_path), store.project)
    workspace = _workspaces.setdefault(key, Workspace.of(store.config))
    encoder = workspace.encoder(space) if space else None
    if not isinstance(encoder, TextEncoder):
        raise DeclarationError(
            f"{feature!r} is served in space {space or 'none'!r}, whose encoder knows no texts: make a TextEncoder "
            "from it (TextEncoder.fit), put its artifact where the view declares it, and run `feast materialize`."
        )
    if model is not None:
        encoder.text_model(model)
    return nearest(store, feature, encoder.encode_texts(texts), k, metric, space=space)

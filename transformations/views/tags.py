"""Every tag this package writes on a view, and the names of the features it fixes. One place for both."""

from __future__ import annotations

from feast import FeatureView

from feast_embeddings.models.errors import DeclarationError

PREFIX = "feast_embeddings."

KIND = f"{PREFIX}kind"
"""What a view is to this package: one of the kinds below; ordinary views have no such tag."""
BEHAVIORS_KIND = "behaviors"
ACTIVITY_KIND = "activity"
HISTORY_KIND = "history"
EMBEDDING_KIND = "embedding"
SESSION_KIND = "session"

CONTRACT = f"{PREFIX}contract"
"""On a behaviors view: its contract, JSON."""
CLEANING = f"{PREFIX}cleaning"
"""On a behaviors view: its cleaning rules, JSON."""
BEHAVIORS = f"{PREFIX}behaviors"
"""On an activity, history or embedding view: the name of its behaviors view."""
PUSHED = f"{PREFIX}pushed"
"""On a behaviors view: the name of its push source; what is pushed there is appended to the view's stream."""
ACTIVITY = f"{PREFIX}activity"
"""On an activity view: its spec, JSON."""
ENCODER = f"{PREFIX}encoder"
"""On an embedding view: the name of its encoder."""
DIM = f"{PREFIX}dim"
"""On an embedding view: the dimensions of its vectors."""
SESSION = f"{PREFIX}session"
"""On a session view: its declaration, JSON."""
SPACE = f"{PREFIX}space"
"""On the feature of an embedding view: the space of its declared encoder."""

EMBEDDING = "embedding"
"""The feature of an embedding view that names none; and what vectors are called wherever they are stored."""
HISTORY_FEATURES = ("history_items", "history_types", "history_times", "history_values")
"""Features of a history view: items (int64 or string), types (int32), times (int64 µs), values (float32)."""

_BUILDERS = {"behaviors": "behaviors_view", "activity": "activity_view"}


def kind_of(view: FeatureView) -> str | None:
    """What kind of view this package declared it as; None for a view that it did not declare."""
    return view.tags.get(KIND)


def tag_of(view: FeatureView, kind: str, key: str) -> str:
    """A tag of a view of a kind.

    Raises:
        DeclarationError: The view is of another kind, or has no such tag.
    """
    if view.tags.get(KIND) != kind or key not in view.tags:
        raise DeclarationError(
            f"Feature view {view.name!r} is not one of {kind} (tag {KIND} is {view.tags.get(KIND)!r}"
            f"{'' if key in view.tags else f', tag {key} is missing'}). Declare it with {_BUILDERS[kind]}(…)."
        )
    return str(view.tags[key])

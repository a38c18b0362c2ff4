"""Reading a behavior table, whole or in parts."""

from feast_embeddings.transformations.sources.messages import read_messages
from feast_embeddings.transformations.sources.reading import (
    Files,
    listed_again,
    read_behaviors,
    scan_behaviors,
    scan_entities,
)

__all__ = ["Files", "listed_again", "read_behaviors", "read_messages", "scan_behaviors", "scan_entities"]

"""Reading a behavior table, whole or in parts."""

from feast_embeddings.transformations.sources.reading import read_behaviors, scan_behaviors, scan_entities

__all__ = ["read_behaviors", "scan_behaviors", "scan_entities"]

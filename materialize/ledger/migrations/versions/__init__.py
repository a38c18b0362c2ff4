"""Revisions, each named by the schema version that it leads to."""

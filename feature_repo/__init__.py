"""The declared feature repo, also the template of ``feast-embeddings init``."""

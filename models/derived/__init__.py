"""Encoders made from another one: aligned, compressed, exported; and vectors of items it never saw."""

from feast_embeddings.models.derived.alignment import AlignedEncoder, Alignment, align
from feast_embeddings.models.derived.compression import CompressedEncoder, PrefixEncoder, compressed
from feast_embeddings.models.derived.onnx import OnnxEncoder
from feast_embeddings.models.derived.unseen import UnseenItems, trained_length

__all__ = [
    "AlignedEncoder",
    "Alignment",
    "CompressedEncoder",
    "OnnxEncoder",
    "PrefixEncoder",
    "UnseenItems",
    "align",
    "compressed",
    "trained_length",
]

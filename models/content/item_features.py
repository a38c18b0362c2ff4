"""What is known of items beside who behaved on them: vectors, labels and numbers, any of which may be missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from typing import Any, Literal

import numpy as np
import torch

from feast_embeddings.models.encoder import ValueNormalizer
from feast_embeddings.models.errors import DeclarationError
from feast_embeddings.models.types import Float32s, Ids, Int64s

Labels = Sequence[str | Sequence[str] | None]
"""Of each item: one label, several, or None."""


@dataclass(frozen=True)
class ItemFeatures:
    """Modalities of n items, by name; what is missing of an item is simply not used.

    Attributes:
        items: Distinct raw ids [n].
        vectors: Precomputed vectors float32 [n, size]: of text, images, sound, another encoder's items. A row that
            is all zero or holds a NaN is missing.
        labels: Categories, tags, genres: one or several labels, or None.
        numbers: Prices, ages, durations, float32 [n]; NaN is missing.

    Raises:
        DeclarationError: A modality has another length than ``items``, or two have one name.
    """

    items: Ids
    vectors: Mapping[str, Float32s] = field(default_factory=dict)
    labels: Mapping[str, Labels] = field(default_factory=dict)
    numbers: Mapping[str, Float32s] = field(default_factory=dict)

    def __post_init__(self) -> None:
        named: list[tuple[str, Sequence[Any] | Float32s]] = []
        for part in self._parts():
            named += part.items()
        if len({name for name, _ in named}) < len(named):
            raise DeclarationError(f"Item features {[name for name, _ in named]} share a name: rename one.")
        for name, column in named:
            if len(column) != len(self.items) or "." in name:
                raise DeclarationError(
                    f"Item feature {name!r} has {len(column)} rows for {len(self.items)} items: give one row per item, "
                    "and names without a dot."
                )

    def without(self, *names: str) -> ItemFeatures:
        """The same, some modalities left out."""
        parts = [{k: v for k, v in part.items() if k not in names} for part in self._parts()]
        return ItemFeatures(self.items, *parts)

    def take(self, rows: Int64s) -> ItemFeatures:
        """The same of the items at ``rows``."""
        return ItemFeatures(
            self.items[rows],
            {name: matrix[rows] for name, matrix in self.vectors.items()},
            {name: [column[row] for row in rows.tolist()] for name, column in self.labels.items()},
            {name: column[rows] for name, column in self.numbers.items()},
        )

    def _parts(self) -> tuple[Mapping[str, Any], ...]:
        return self.vectors, self.labels, self.numbers


@dataclass(frozen=True, slots=True)
class Modality:
    """One modality as an encoder was fitted to it.

    Attributes:
        name: Of the modality.
        kind: What it is made of.
        size: Length of its vectors; of labels how many there are; 2 for a number.
        labels: Known labels, in the order of their codes.
        normalizer: Of numbers.
    """

    name: str
    kind: Literal["vector", "labels", "number"]
    size: int
    labels: tuple[str, ...] = ()
    normalizer: ValueNormalizer | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {**asdict(self), "labels": list(self.labels)}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Modality:
        """What ``to_json`` gave."""
        normalizer = ValueNormalizer(**fields["normalizer"]) if fields["normalizer"] else None
        return cls(**{**fields, "labels": tuple(fields["labels"]), "normalizer": normalizer})

    def tensors(self, features: ItemFeatures) -> dict[str, torch.Tensor]:
        """The modality of n items as tensors.

        ``present`` bool [n], and either ``values`` float32 [n, size], or ``codes`` int64 [c] with their ``owners``
        int64 [c]; a label that the encoder was not fitted to counts as missing.

        Raises:
            DeclarationError: Vectors of another length.
        """
        n = len(features.items)
        if self.kind == "labels":
            return self._label_tensors(features.labels.get(self.name) or [None] * n)
        if self.kind == "vector":
            values = np.asarray(features.vectors.get(self.name, np.zeros((n, self.size))), np.float32)
            if values.shape != (n, self.size):
                raise DeclarationError(
                    f"Item vectors {self.name!r} have the shape {values.shape}, fitted were {self.size} dimensions: "
                    "give vectors of the model that the encoder was trained with."
                )
            values = _unit(values)
            present = values.any(axis=1)
        else:
            numbers = np.asarray(features.numbers.get(self.name, np.full(n, np.nan)), np.float32)
            normalized = self.normalizer.transform(numbers) if self.normalizer else numbers
            present = np.isfinite(normalized)
            values = np.stack([np.where(present, normalized, 0), present], axis=1).astype(np.float32)
        return {"present": torch.from_numpy(present), "values": torch.from_numpy(values)}

    def _label_tensors(self, column: Labels) -> dict[str, torch.Tensor]:
        code_of = {label: code for code, label in enumerate(self.labels)}
        found = [sorted({code_of[label] for label in _several(each) if label in code_of}) for each in column]
        counts = np.array([len(codes) for codes in found], np.int64)
        codes = np.fromiter(chain.from_iterable(found), np.int64, int(counts.sum()))
        return {
            "present": torch.from_numpy(counts > 0),
            "codes": torch.from_numpy(codes),
            "owners": torch.from_numpy(np.repeat(np.arange(len(column)), counts)),
        }


def fit_modalities(features: ItemFeatures) -> tuple[Modality, ...]:
    """The modalities of ``features``, with the labels and the spread of numbers found there."""
    found = [Modality(name, "vector", matrix.shape[1]) for name, matrix in features.vectors.items()]
    for name, column in features.labels.items():
        labels = tuple(sorted({label for each in column for label in _several(each)}))
        found.append(Modality(name, "labels", len(labels), labels))
    for name, numbers in features.numbers.items():
        normalizer = ValueNormalizer.fit("log1p-zscore", np.asarray(numbers, np.float32))
        found.append(Modality(name, "number", 2, normalizer=normalizer))
    return tuple(found)


def _several(labels: str | Sequence[str] | None) -> Sequence[str]:
    if labels is None:
        return ()
    return (labels,) if isinstance(labels, str) else labels


def _unit(vectors: Float32s) -> Float32s:
    """Rows of length 1, as small as trained item vectors are at first; a row with a NaN becomes zero: missing."""
    clean = np.where(np.isfinite(vectors).all(axis=1, keepdims=True), vectors, 0)
    lengths = np.linalg.norm(clean, axis=1, keepdims=True)
    return (clean / np.where(lengths > 0, lengths, 1)).astype(np.float32)

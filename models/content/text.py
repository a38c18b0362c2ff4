"""Items by their text: a learned map from a pretrained sentence encoder's vectors into an encoder's space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch

from feast_embeddings.models.content.text_model import TextModel
from feast_embeddings.models.encoder import (
    Device,
    EncoderState,
    ItemIndex,
    StorableEncoder,
    WrappingEncoder,
    inner_of,
    register_encoder,
)
from feast_embeddings.models.errors import ArtifactError, BehaviorSourceError
from feast_embeddings.models.types import Bools, Float32s, Float64s, Ids, Int64s

_PENALTIES: Final = tuple(10.0**power for power in np.arange(-4, 2.5, 0.5))
_LEAST_ITEMS: Final = 2


@dataclass(frozen=True, slots=True)
class TextMap:
    """An affine map from text vectors to item vectors.

    Attributes:
        weights: float32 [text dim, dim].
        bias: float32 [dim].
        penalty: Of the ridge regression that made it, chosen by leaving one item out.
        explained: Share of the variance of item vectors that it explains on items left out; 0: no better than
            the mean item.
    """

    weights: Float32s
    bias: Float32s
    penalty: float
    explained: float

    @classmethod
    def fit(cls, texts: Float32s, vectors: Float32s, weights: Float64s | None = None) -> TextMap:
        """Ridge regression of item vectors [n, dim] on text vectors [n, text dim].

        The penalty is the one with the least squared error on items left out, in closed form (Allen's PRESS,
        https://doi.org/10.1080/00401706.1974.10489157). ``weights`` [n] say how much each item counts.
        """
        share = np.ones(len(texts)) if weights is None else weights
        share = (share / share.sum())[:, None]
        x, y = texts.astype(np.float64), vectors.astype(np.float64)
        mean_x, mean_y = (share * x).sum(axis=0), (share * y).sum(axis=0)
        x, y = (x - mean_x) * share**0.5, (y - mean_y) * share**0.5
        spectrum, basis = np.linalg.eigh(x.T @ x)
        turned, target = x @ basis, basis.T @ (x.T @ y)
        errors = [_left_out_error(turned, target, y, np.maximum(spectrum, 0) + each) for each in _scaled(spectrum)]
        best = int(np.argmin(errors))
        penalty = _scaled(spectrum)[best]
        solved = basis @ (target / (np.maximum(spectrum, 0) + penalty)[:, None])
        explained = 1 - errors[best] / max(float((y**2).sum()), 1e-30)
        return cls(solved.astype(np.float32), (mean_y - mean_x @ solved).astype(np.float32), penalty, explained)

    def __call__(self, texts: Float32s) -> Float32s:
        """Item vectors float32 [n, dim] of text vectors; a zero row, a missing text, stays zero.

        Summed in float64, one dimension of the text after the other: a row's bits depend on that row alone.
        """
        out = np.zeros((len(texts), len(self.bias)))
        for column in range(texts.shape[1]):
            out += texts[:, column, None].astype(np.float64) * self.weights[column]
        out += self.bias
        out[~texts.any(axis=1)] = 0
        return out.astype(np.float32)


def _scaled(spectrum: Float64s) -> list[float]:
    return [float(each * max(spectrum.mean(), 1e-12)) for each in _PENALTIES]


def _left_out_error(turned: Float64s, target: Float64s, y: Float64s, divisor: Float64s) -> float:
    """Squared error of each item's prediction by all others, summed."""
    leverage = np.einsum("ij,ij->i", turned / divisor, turned)
    residual = (y - turned @ (target / divisor[:, None])) / np.maximum(1 - leverage, 1e-9)[:, None]
    return float((residual**2).sum())


@register_encoder("text")
class TextEncoder(WrappingEncoder):
    """An `Encoder` that also knows items by their text: those its inner encoder never saw, and any text at all.

    Histories are encoded by the inner encoder. With counts, an item seen n times has the vector
    (n · trained + prior · text) / (n + prior), so that the trained vector of a rare item, which is mostly noise, gives
    way to its text. The artifact names the text model by place and digest; only `encode_texts` loads it.

    Args:
        inner: The encoder of behaviors.
        text_map: From text vectors into its space.
        items: All known items, those of the inner encoder first.
        table: Their vectors, float32 [n, dim].
        location: Where the text model is, see `TextModel`.
        digest: Of the text model.
    """

    table: torch.Tensor

    def __init__(
        self, inner: StorableEncoder, text_map: TextMap, items: Ids, table: Float32s, location: str, digest: str
    ) -> None:
        super().__init__(inner)
        self.text_map, self.items = text_map, ItemIndex(items)
        self.location, self.digest = location, digest
        self._model: TextModel | None = None
        self.register_buffer("table", torch.from_numpy(table))
        self.register_buffer("text_weights", torch.from_numpy(text_map.weights))
        self.register_buffer("text_bias", torch.from_numpy(text_map.bias))

    @classmethod
    def fit(
        cls,
        inner: StorableEncoder,
        model: TextModel,
        items: Ids,
        texts: Sequence[str | None],
        *,
        counts: Int64s | None = None,
        prior: float = 5.0,
    ) -> TextEncoder:
        """Learns the map on the items that the inner encoder knows, and gives every item with a text a vector.

        Args:
            inner: A trained encoder.
            model: Of the texts.
            items: Distinct raw ids [n].
            texts: Their texts; None or empty where there is none.
            counts: How often each was seen in training, int64 [n]; without, trained items keep their vectors.
            prior: Times that an item's text counts as seen, beside ``counts``.

        Raises:
            BehaviorSourceError: Fewer than two known items have a text.
        """
        read = model.encode(texts)
        trained, known = inner.encode_items(items)
        readable = read.any(axis=1)
        usable = known & readable
        if usable.sum() < _LEAST_ITEMS:
            raise BehaviorSourceError(
                f"{int(usable.sum())} items that encoder {inner.space} knows have a text, and the map from texts to "
                f"items needs {_LEAST_ITEMS}: give the texts of trained items too."
            )
        seen = np.where(known, 1.0, 0.0) if counts is None else np.where(known, counts, 0).astype(np.float64)
        weight = seen / (seen + prior)
        text_map = TextMap.fit(read[usable], trained[usable], weight[usable] if weight[usable].any() else None)
        share = np.where(known, 1.0, 0.0) if counts is None else weight
        share = np.where(readable, share, 1.0)[:, None]
        mixed = (share * trained + (1 - share) * text_map(read)).astype(np.float32)
        own, given = inner.item_ids(), known | readable
        rows = ItemIndex(own).rows(items)
        added, at = given & (rows == 0), given & (rows > 0)
        table = np.concatenate([inner.encode_items(own)[0], mixed[added]])
        table[rows[at] - 1] = mixed[at]
        ids: Any = np.concatenate([own, items[added]])
        encoder = cls(inner, text_map, ids, table, model.location, model.digest)
        encoder._model = model
        return encoder.eval()

    def encode_items(self, items: Ids) -> tuple[Float32s, Bools]:
        """Vectors of items, float32 [n, dim], and which ids are known, trained or by their text, bool [n]."""
        return self.items.vectors(items, self.table.cpu().numpy())

    def item_ids(self) -> Ids:
        """Raw ids of the known items, those of the inner encoder first."""
        return self.items.ids

    def encode_texts(self, texts: Sequence[str | None]) -> Float32s:
        """Vectors float32 [n, dim] of any texts, in the space of users and items; zeros where a text is empty.

        Raises:
            DeclarationError: The text model is not where the artifact says.
            ArtifactError: The model there is another one.
        """
        return self.text_map(self.text_model().encode(texts))

    def text_model(self, location: str | None = None) -> TextModel:
        """The text model, from ``location`` where it was moved to; loaded once.

        Raises:
            DeclarationError: There is no model.
            ArtifactError: The model there is another one.
        """
        if self._model is None or location is not None:
            model = TextModel(location or self.location)
            if model.digest != self.digest:
                raise ArtifactError(
                    f"The text model at {model.location!r} has the digest {model.digest}, encoder {self.space} was "
                    f"made with {self.digest}: call text_model(location=…) with the folder of that one, or fit again."
                )
            self._model = model
        return self._model

    def state(self) -> EncoderState:
        """What an artifact stores: all of the inner encoder, the map, the items' vectors, the text model's name."""
        text = {"location": self.location, "digest": self.digest}
        fitted = {"penalty": self.text_map.penalty, "explained": self.text_map.explained}
        return self.state_as("text", {"text_model": text, "text_map": fitted}, item_ids=self.items.ids)

    @classmethod
    def from_state(cls, state: EncoderState, device: Device = None, precision: str | None = None) -> TextEncoder:
        """The encoder of a stored state, in evaluation mode; the text model is not touched."""
        weights, bias, table = (state.tensors[name].cpu().numpy() for name in ("text_weights", "text_bias", "table"))
        text_map = TextMap(weights, bias, **state.config["text_map"])
        text = state.config["text_model"]
        inner = inner_of(state, device, precision)
        return cls(inner, text_map, state.item_ids, table, text["location"], text["digest"]).eval()

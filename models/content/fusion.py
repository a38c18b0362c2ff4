"""Items as a gated mixture of what is known of them: behaviors, text, attributes, images; any of it may be missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, cast

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from feast_embeddings.models.content.item_features import ItemFeatures, Modality, fit_modalities
from feast_embeddings.models.encoder import EncoderState, ItemIndex, Precision, ValueNormalizer, register_encoder
from feast_embeddings.models.sequence import Builder, SequenceConfig, SequenceEncoder
from feast_embeddings.models.types import Bools, Float32s, Ids

Tensors = Mapping[str, torch.Tensor]

_LEAST_ROWS: Final = 64  # see attention.py: smaller products are shared among threads in another way


@dataclass(frozen=True)
class Fusion:
    """What items are mixed from.

    Attributes:
        trained: Items with behaviors: rows 1 … trained have a row of their own, later ones only their modalities.
        modalities: Beside the behaviors.
        features: Their tensors over all items (`Modality.tensors`), by ``name/part``, row 0 not among them.
        dropout: Share of modalities left out in training.
    """

    trained: int
    modalities: Sequence[Modality]
    features: Tensors
    dropout: float


class FusedItems(nn.Module):
    """An item table whose rows are mixed from modalities, used like an ``nn.Embedding`` of V + 1 rows.

    Each modality m of an item is projected to p_m (D,); a gate g_m = w_m · LayerNorm(p_m) + b_m weighs it, and the
    item is Σ softmax(g)_m p_m over the modalities that are there (gated multimodal units,
    https://arxiv.org/abs/1702.01992, with a softmax so that the weights of any subset sum to 1). In training each
    modality of each item is left out with probability ``dropout``, so that any subset makes a vector.

    Args:
        dim: D.
        fusion: What they are mixed from.
    """

    def __init__(self, dim: int, fusion: Fusion) -> None:
        super().__init__()
        self.trained, self.modalities, self.dropout = fusion.trained, tuple(fusion.modalities), fusion.dropout
        self.rows = nn.Embedding(fusion.trained + 1, dim)  # row 0 is the unknown item
        self.projections = nn.ModuleDict({each.name: _projection(each, dim) for each in self.modalities})
        self.gates = nn.Parameter(torch.zeros(len(self.modalities) + 1, dim))  # (M, D); the first is of the behaviors
        self.gate_biases = nn.Parameter(torch.zeros(len(self.modalities) + 1))
        for name, tensor in fusion.features.items():
            self.register_buffer(_buffer(name), tensor)
        self._kept: tuple[object, torch.Tensor] | None = None
        for tensor in (self.rows.weight, *self.projections.parameters()):
            nn.init.normal_(tensor, std=0.02)  # as every table of a SequenceEncoder

    @property
    def size(self) -> int:
        """Rows of the table, V + 1."""
        presents = [len(self._part(each, "present")) + 1 for each in self.modalities]
        return max([len(self.rows.weight), *presents])

    @property
    def weight(self) -> torch.Tensor:
        """The whole table (V + 1, D); kept between calls that ask for no gradient."""
        if self.training or torch.is_grad_enabled():
            return self._whole()
        version = tuple((tensor.data_ptr(), tensor._version) for tensor in self.parameters())
        if self._kept is None or self._kept[0] != version:
            self._kept = (version, self._whole())
        return self._kept[1]

    def forward(self, items: torch.Tensor) -> torch.Tensor:
        """Rows (…, D) of items int64 (…)."""
        return F.embedding(items, self.weight)

    def _whole(self) -> torch.Tensor:
        size, own = self.size, self.rows.weight
        behaviors = F.pad(own, (0, 0, 0, size - len(own)))
        present = torch.arange(size, device=own.device) < len(own)
        parts, there = [behaviors], [present]
        for each in self.modalities:
            projected, known = self.project(each, {part: self._part(each, part) for part in _parts(each)})
            parts.append(F.pad(projected, (0, 0, 1, 0)))  # row 0 has no modality
            there.append(F.pad(known, (1, 0)))
        return self.mix(torch.stack(parts, dim=1), torch.stack(there, dim=1))

    def project(self, modality: Modality, tensors: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
        """A modality of n items in the space of items (n, D), and where there is one, bool (n,)."""
        layer, present = self.projections[modality.name], tensors["present"]
        with torch.autocast(present.device.type, enabled=False):  # one table for every precision of encode
            if modality.kind == "labels":
                return _mean_of_labels(layer, tensors, len(present)), present
            rows = torch.arange(max(len(present), _LEAST_ROWS), device=present.device) % max(len(present), 1)
            out: torch.Tensor = layer(tensors["values"][rows])[: len(present)]
        return out, present

    def mix(self, parts: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """Vectors (n, D) of parts (n, M, D), of which only those ``present`` (n, M) count; zeros where none is."""
        gates = (F.layer_norm(parts, parts.shape[-1:]) * self.gates).sum(-1) + self.gate_biases  # (n, M)
        shares = _masked_softmax(gates, self._dropped(present) if self.training else present)
        return (shares[..., None] * parts).sum(dim=1)

    def _dropped(self, present: torch.Tensor) -> torch.Tensor:
        kept = present & (torch.rand(present.shape, device=present.device) >= self.dropout)
        return torch.where(kept.any(dim=1, keepdim=True), kept, present)

    def _part(self, modality: Modality, part: str) -> torch.Tensor:
        return cast(torch.Tensor, getattr(self, _buffer(f"{modality.name}/{part}")))


@register_encoder("fusion")
class FusionEncoder(SequenceEncoder):
    """A `SequenceEncoder` whose item table is mixed from behaviors and modalities; histories read those too.

    So an item nobody bought has a vector, in histories as in rankings, and one that lacks a modality, or all but one,
    has one as well. Trained by `training.train` with ``build=fusing(features)``. Another encoder's item vectors can
    be a modality like any other.

    Args:
        config: Architecture.
        behavior_types: Names behind the behavior-type codes.
        items: The known items: those with behaviors first.
        normalizer: Of behaviors' values, where the config asks for one.
        precision: Of ``encode``.
        fusion: What the items are mixed from.
    """

    def __init__(
        self,
        config: SequenceConfig,
        behavior_types: tuple[str, ...],
        items: ItemIndex,
        normalizer: ValueNormalizer | None = None,
        precision: Precision = "float32",
        *,
        fusion: Fusion,
    ) -> None:
        super().__init__(config, behavior_types, items, normalizer, precision)
        self.item_table = cast(nn.Embedding, FusedItems(config.dim, fusion))  # what the base class asks of it, it has

    @property
    def fused(self) -> FusedItems:
        """The item table as what it is."""
        return cast(FusedItems, self.item_table)

    def encode_features(self, features: ItemFeatures) -> tuple[Float32s, Bools]:
        """Vectors of items by their modalities alone, float32 [n, dim], and which have any, bool [n].

        For items that came after the training; the others are zero. Equal to the table's rows of items without
        behaviors up to rounding.
        """
        fused, parts, there = self.fused, [], []
        with self.evaluating():
            for modality in fused.modalities:
                tensors = {k: v.to(self.device) for k, v in modality.tensors(features).items()}
                projected, present = fused.project(modality, tensors)
                parts.append(projected)
                there.append(present)
            behaviors = torch.zeros(len(features.items), self.dim, device=self.device)
            missing = torch.zeros(len(features.items), dtype=torch.bool, device=self.device)
            present = torch.stack([missing, *there], dim=1)
            vectors = fused.mix(torch.stack([behaviors, *parts], dim=1), present)
        return vectors.cpu().numpy(), present.any(dim=1).cpu().numpy()

    def state(self) -> EncoderState:
        """What an artifact stores: weights, and the modalities of the known items."""
        state = super().state()
        fusion = {
            "trained": self.fused.trained,
            "modality_dropout": self.fused.dropout,
            "modalities": [each.to_json() for each in self.fused.modalities],
        }
        return replace(state, kind="fusion", config={**state.config, "fusion": fusion})

    @classmethod
    def options_of(cls, state: EncoderState) -> dict[str, Any]:
        """What the items are mixed from, as it was stored."""
        stored = state.config["fusion"]
        modalities = [Modality.from_json(each) for each in stored["modalities"]]
        names = [f"{each.name}/{part}" for each in modalities for part in _parts(each)]
        features = {name: state.tensors[f"item_table.{_buffer(name)}"] for name in names}
        return {"fusion": Fusion(stored["trained"], modalities, features, stored["modality_dropout"])}


def fusing(features: ItemFeatures, modality_dropout: float = 0.2, *, behaviors: bool = True) -> Builder:
    """What makes `training.train` train a `FusionEncoder`: ``train(config, histories, …, build=fusing(features))``.

    Items of ``features`` without behaviors are known too; those with behaviors and without a row in ``features``
    have none of its modalities. Without ``behaviors`` no item has a row of its own: items are what their modalities
    say, and nothing else tells them apart.
    """
    return partial(_build, features, modality_dropout, behaviors)


def _build(
    features: ItemFeatures,
    modality_dropout: float,
    behaviors: bool,
    config: SequenceConfig,
    behavior_types: tuple[str, ...],
    items: ItemIndex,
    normalizer: ValueNormalizer | None,
) -> FusionEncoder:
    modalities = fit_modalities(features)
    added = np.flatnonzero(items.rows(features.items) == 0)
    ids: Any = np.concatenate([items.ids, features.items[added]])
    tensors: dict[str, torch.Tensor] = {}
    for modality in modalities:
        found = modality.tensors(features)
        tensors |= {f"{modality.name}/{k}": v for k, v in _at(found, features.items, ids).items()}
    return FusionEncoder(
        config,
        behavior_types,
        ItemIndex(ids),
        normalizer,
        fusion=Fusion(len(items) if behaviors else 0, modalities, tensors, modality_dropout),
    )


def _at(found: Tensors, given: Ids, ids: Ids) -> dict[str, torch.Tensor]:
    """Tensors of the items ``given``, put into the rows of ``ids``."""
    at = torch.from_numpy(ItemIndex(ids).rows(given) - 1)
    present = torch.zeros(len(ids), dtype=torch.bool)
    present[at] = found["present"]
    if "codes" in found:
        return {"present": present, "codes": found["codes"], "owners": at[found["owners"]]}
    values = torch.zeros(len(ids), found["values"].shape[1])
    values[at] = found["values"]
    return {"present": present, "values": values}


def _projection(modality: Modality, dim: int) -> nn.Module:
    if modality.kind == "labels":
        return nn.Embedding(max(modality.size, 1), dim)
    return nn.Linear(modality.size, dim, bias=False)


def _mean_of_labels(table: nn.Module, tensors: Tensors, n: int) -> torch.Tensor:
    owners = tensors["owners"]
    rows = cast(nn.Embedding, table)(tensors["codes"])  # (c, D)
    total = torch.zeros(n, rows.shape[1], device=rows.device, dtype=rows.dtype).index_add(0, owners, rows)
    return total / torch.bincount(owners, minlength=n).clamp(min=1)[:, None]


def _masked_softmax(gates: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """Shares (n, M) over the modalities that are there; zeros, never NaN, where none is."""
    gates = gates.masked_fill(~present, -torch.inf)
    weights = torch.exp(gates - gates.detach().amax(dim=1, keepdim=True).clamp(min=-1e30))
    return weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-30)


def _parts(modality: Modality) -> tuple[str, ...]:
    return ("present", "codes", "owners") if modality.kind == "labels" else ("present", "values")


def _buffer(name: str) -> str:
    return "feature_" + name.replace("/", "_at_")

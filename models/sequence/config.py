"""How a `SequenceEncoder` is built and trained."""

from __future__ import annotations

from dataclasses import dataclass, field
from os import PathLike

from feast_embeddings.models.encoder import ValueKind
from feast_embeddings.models.errors import DeclarationError


@dataclass(frozen=True, slots=True)
class SequenceConfig:
    """Architecture of a `SequenceEncoder`."""

    dim: int = 64  # the usual size of a served embedding; its bytes in Redis double with it
    context: int = 100  # behaviors looked at; cost grows with it, and few users have more that matter
    blocks: int = 2  # more gain little on histories of this length
    heads: int = 2  # 32 dimensions per head
    hidden: int = 128  # of the gated layer: with its three matrices, the parameters of a plain layer of 192
    dropout: float = 0.1  # on embeddings and on the two branches of each block
    item_dropout: float = 0.01  # share of inputs replaced by the unknown item, which is how its row is trained
    value_normalizer: ValueKind | None = None  # None: values are not looked at

    def __post_init__(self) -> None:
        """Refuses sizes that cannot be built."""
        if min(self.dim, self.context, self.blocks, self.heads, self.hidden) < 1 or self.dim % self.heads:
            raise DeclarationError(f"{self} cannot be built: sizes must be positive, and dim a multiple of heads.")

    @property
    def span(self) -> int:
        """Behaviors that one block attends to: as many as make all blocks together look at ``context`` at most."""
        return (self.context - 1) // self.blocks + 1


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """How a `SequenceEncoder` is trained."""

    encoder: SequenceConfig = field(default_factory=SequenceConfig)
    seed: int = 0  # of weights, windows, batches, dropout and validation users
    batch_tokens: int = 4096  # padded inputs per step: many small steps learn faster than few large ones
    learning_rate: float = 1e-3  # Adam's usual; with decay_epochs, four times as much learns faster
    warmup_steps: int = 100  # Adam's variances are noise at first
    decay_epochs: int | None = None  # over which the rate falls to 0, and training ends; None: the average has to do
    average_decay: float = 0.999  # the kept weights are a running average over about 1,000 steps
    max_epochs: int = 200  # early stopping comes first
    max_minutes: float | None = None  # of wall time in one call; the best weights so far are kept
    patience: int = 10  # validations without a better NDCG@10 before training stops
    validation_users: int = 2000  # whose last behavior is held out; 0: none, every epoch counts as better
    filter_seen: bool = False  # in validation, whether items of the history are taken out: right where nobody repeats
    window_overlap: int = 0  # inputs a window repeats from the one before; costs as many tokens again
    min_item_count: int = 1  # rarer items are the unknown item
    full_softmax_items: int = 30_000  # up to here the loss sees the whole catalogue, beyond it a sample
    negatives: int = 2048  # size of that sample, shared by a batch
    matryoshka: tuple[int, ...] = ()  # prefixes of a vector trained to rank by themselves; each costs a loss more
    checkpoint_dir: str | PathLike[str] | None = None  # where whole epochs are kept, to go on from the last one
    resume: bool = True  # False: start over, whatever is kept there

"""How an `AutoEncoder` is built and trained: its objectives, and the variants that have names."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from feast_embeddings.models.errors import DeclarationError

Activation = Literal["linear", "relu", "softsign"]


@dataclass(frozen=True, slots=True)
class AutoEncoderConfig:
    """Architecture of an `AutoEncoder`."""

    dim: int = 64  # of a served vector; its last component carries the items' biases, the rest is the code
    context: int = 1000  # behaviors looked at; the bag forgets their order, so many are cheap
    hidden: tuple[int, ...] = ()  # widths between bag and code; none: the code is linear in the bag, and hard to beat
    activation: Activation = "linear"  # after each layer, the code's too; these three round alike in vector and scalar
    stacked: bool = False  # columns of its own for each behavior type, or one per item with the types weighted
    half_life_days: float | None = None  # of a behavior's weight; None: age does not matter
    normalize: bool = False  # bags brought to length 1, as the likelihood variants want them
    logits: bool = False  # what the decoder tells: a bag, or the logits of a multinomial over its items

    def __post_init__(self) -> None:
        """Refuses sizes that cannot be built."""
        object.__setattr__(self, "hidden", tuple(self.hidden))
        if (
            self.dim < 2
            or min(self.context, *self.hidden, 1) < 1
            or self.activation not in ("linear", "relu", "softsign")
        ):
            raise DeclarationError(
                f"{self} cannot be built: dim is 2 or more, the other sizes are positive, "
                "and the activation is linear, relu or softsign."
            )


@dataclass(frozen=True, slots=True)
class AutoEncoderTraining:
    """How an `AutoEncoder` is trained.

    With x a bag, z its code and x̂ the reconstruction, the loss of a bag is Σ (x − x̂)² + penalty · ‖z‖², or, where
    the encoder's decoder tells logits, −Σ x · log softmax(x̂) + penalty · ‖z‖². With ``variational``, z is drawn from a
    normal around the code, and kl · KL(q ‖ N(0, 1)) stands in place of the penalty (Mult-DAE and Mult-VAE,
    https://arxiv.org/abs/1802.05814).
    """

    encoder: AutoEncoderConfig = field(default_factory=AutoEncoderConfig)
    penalty: float = 1e-3  # λ, of the squared length of codes
    corruption: float = 0.0  # share of a bag's entries hidden from the encoder, which must tell them nonetheless
    variational: bool = False
    kl: float = 0.2  # weight of the divergence from the prior, reached after kl_steps; more than this costs ranking
    kl_steps: int = 1000
    seed: int = 0
    batch_entities: int = 256  # dense rows per step; memory is this times the catalogue
    learning_rate: float = 1e-3
    weight_decay: float = 0.0  # AdamW's, of all weights; 3 to 6, at a rate of 3e-3, did best on MovieLens-1M
    average_decay: float = 0.99  # the kept weights are a running average over about 100 steps
    max_epochs: int = 200
    max_minutes: float | None = None  # of wall time; the best weights so far are kept
    patience: int = 10  # validations without a better NDCG@10 before training stops
    validate_every: int = 1  # epochs
    validation_entities: int = 1000  # ranked in validation; 0: none, every epoch counts as better
    validation_share: float = 0.1  # of their behaviors held out, where no held-out histories are given
    filter_seen: bool = True  # in validation, whether items of the history are taken out
    min_item_count: int = 1  # rarer items stay unknown

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        if not 0 <= self.corruption < 1 or not 0 < self.validation_share < 1:
            raise DeclarationError(
                f"corruption is {self.corruption} and validation_share {self.validation_share}: "
                "the first is 0 or more, the second above 0, both below 1."
            )
        if min(self.batch_entities, self.max_epochs, self.validate_every, self.patience) < 1:
            raise DeclarationError("batch_entities, max_epochs, validate_every and patience are 1 or more: raise them.")

    @classmethod
    def of(cls, variant: str, **changes: Any) -> AutoEncoderTraining:
        """A named variant, with fields changed.

        ``article``: squared error and λ‖z‖², the default. ``denoising``: the same from bags of which half is hidden.
        ``likelihood`` and ``variational``: Mult-DAE and Mult-VAE, from normalized bags, one hidden layer.

        Raises:
            DeclarationError: No such variant.
        """
        if variant not in VARIANTS:
            raise DeclarationError(f"Autoencoder variant {variant!r} is unknown: choose one of {', '.join(VARIANTS)}.")
        return replace(VARIANTS[variant], **changes)


_DEEP = AutoEncoderConfig(hidden=(600,), activation="softsign", normalize=True, logits=True)
VARIANTS: dict[str, AutoEncoderTraining] = {
    "article": AutoEncoderTraining(),
    "denoising": AutoEncoderTraining(corruption=0.5),
    "likelihood": AutoEncoderTraining(encoder=_DEEP, corruption=0.5),
    "variational": AutoEncoderTraining(encoder=_DEEP, variational=True, corruption=0.5),
}

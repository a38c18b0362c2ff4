"""Adversarial training: codes come to look like the prior, nothing diverges, and nothing is NaN on empty rows."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from feast_embeddings.models import AdversarialTraining, AutoEncoderConfig, HistoryBatch, load_encoder, save_encoder
from feast_embeddings.models.autoencoder.adversarial import AdversarialAutoEncoder, train_adversarial
from feast_embeddings.models.autoencoder.critic import Critic, critic_loss, gradient_penalty

CONFIG = AdversarialTraining(
    encoder=AutoEncoderConfig(dim=5, context=20),
    batch_entities=32,
    learning_rate=3e-3,
    max_epochs=40,
    average_decay=0.9,
    validation_entities=0,
    critic_hidden=32,
)


def world(users: int = 256, seed: int = 0) -> HistoryBatch:
    """Two tastes of twelve items, six of which each user bought."""
    rng = np.random.default_rng(seed)
    items = rng.integers(0, 2, users)[:, None] * 12 + np.argsort(rng.random((users, 12)), axis=1)[:, :6]
    return HistoryBatch(
        offsets=np.arange(0, users * 6 + 1, 6),
        items=items.reshape(-1).astype(np.int64),
        behavior_types=np.zeros(users * 6, np.int32),
        times=np.tile(np.arange(6), users),
        values=np.full(users * 6, np.nan, np.float32),
        as_of=np.full(users, 10),
    )


def distance_from_normal(codes: np.ndarray) -> float:
    """How far means are from 0 and variances from 1, in all."""
    return float(np.abs(codes.mean(axis=0)).mean() + np.abs(codes.var(axis=0) - 1).mean())


def test_codes_come_to_look_like_the_prior_and_still_tell_tastes(tmp_path):
    adversarial, plain = (
        train_adversarial(replace(CONFIG, prior_weight=weight), world(), behavior_types=["buy"])
        for weight in (2.0, 0.0)
    )
    codes, others = (result.encoder.encode(world())[:, :-1] for result in (adversarial, plain))
    assert distance_from_normal(codes) < 0.6 * distance_from_normal(others)
    assert isinstance(adversarial.encoder, AdversarialAutoEncoder)
    scores = adversarial.encoder.encode(world()) @ adversarial.encoder.encode_items(np.arange(24))[0].T
    taste = world().items.reshape(-1, 6)[:, 0] // 12
    assert ((scores[:, 12:].sum(axis=1) > scores[:, :12].sum(axis=1)) == (taste == 1)).mean() > 0.95
    assert all(np.isfinite(report.loss) for report in adversarial.epochs)
    save_encoder(adversarial.encoder, tmp_path)
    assert type(load_encoder(tmp_path, device="cpu")) is AdversarialAutoEncoder


def test_the_same_seed_gives_the_same_weights():
    short = replace(CONFIG, max_epochs=2)
    one, two = (train_adversarial(short, world(), behavior_types=["buy"]).encoder.space for _ in range(2))
    assert one == two != train_adversarial(replace(short, seed=1), world(), behavior_types=["buy"]).encoder.space


@given(rows=st.integers(0, 5), width=st.integers(1, 6), seed=st.integers(0, 99), scale=st.sampled_from([0.0, 1.0, 1e4]))
@settings(max_examples=40, deadline=None)
def test_the_penalty_and_its_slope_are_finite(rows, width, seed, scale):
    """Given empty, equal or enormous rows, or none, when the critic learns, then nothing is NaN."""
    torch.manual_seed(seed)
    critic = Critic(width, 8)
    real = torch.randn(rows, width) * scale
    for fake in (real.clone(), torch.zeros_like(real), torch.randn_like(real)):
        loss = critic_loss(critic, real, fake, 10.0)
        assert torch.isfinite(loss)
        if rows:
            gradients = torch.autograd.grad(loss, list(critic.parameters()), allow_unused=True)
            assert all(gradient is None or torch.isfinite(gradient).all() for gradient in gradients)


def test_a_critic_of_slope_one_pays_nothing():
    critic = Critic(2, 4)
    with torch.no_grad():
        for layer in (critic.first, critic.second, critic.last):
            layer.weight.zero_()
            layer.bias.zero_()
            layer.weight[0, 0] = 1.0
            layer.bias[0] = 10.0  # keeps the rectifiers open
    rows = torch.rand(16, 2)
    assert gradient_penalty(critic, rows, -rows).item() == pytest.approx(0.0, abs=1e-6)

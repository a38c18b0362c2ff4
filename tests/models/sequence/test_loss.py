"""The losses against their plain definitions."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from feast_embeddings.models.sequence import loss as losses
from feast_embeddings.models.sequence.loss import NegativeSampler, full_softmax_loss, sampled_softmax_loss


@pytest.fixture
def problem():
    torch.manual_seed(0)
    states = torch.randn(50, 8, requires_grad=True)
    table = torch.randn(30, 8, requires_grad=True)
    return states, table, torch.randint(0, 30, (50,)), torch.rand(50)


def plain_loss(states, table, targets, weights):
    return (F.cross_entropy(states @ table.T, targets, reduction="none") * weights).sum() / weights.sum()


@pytest.mark.parametrize("chunk_scores", [30 * 16, 30 * 17, 1 << 20])
def test_chunks_do_not_change_loss_or_gradients(problem, chunk_scores, monkeypatch):
    states, table, targets, weights = problem
    monkeypatch.setattr(losses, "_CHUNK_SCORES", chunk_scores)
    chunked = full_softmax_loss(states, table, targets, weights, torch.float32)
    plain = plain_loss(states, table, targets, weights)
    assert torch.allclose(chunked, plain, rtol=1e-5)
    for got, expected in zip(
        torch.autograd.grad(3 * chunked, (states, table)), torch.autograd.grad(3 * plain, (states, table)), strict=True
    ):
        assert torch.allclose(got, expected, atol=1e-6)


def test_bf16_is_near(problem):
    states, table, targets, weights = problem
    near = full_softmax_loss(states, table, targets, weights, torch.bfloat16)
    exact = plain_loss(states, table, targets, weights)
    assert abs(near.item() - exact.item()) < 0.05
    (got,), (expected,) = torch.autograd.grad(near, states), torch.autograd.grad(exact, states)
    assert (got - expected).abs().max() < 0.02 * expected.abs().max()


def test_a_certain_miss_stays_finite():
    states, table = torch.full((1, 2), 100.0), torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    loss = full_softmax_loss(states, table, torch.tensor([1]), torch.ones(1), torch.float32)
    assert torch.isfinite(loss)


def test_the_sampled_sum_is_an_unbiased_estimate(problem):
    """Given many samples, when each estimates the softmax's sum, then their mean is the sum over the catalogue."""
    states, table, _, _ = (part.detach() for part in problem)
    state, target = states[:1] / 2, torch.tensor([3])
    sampler = NegativeSampler.of(torch.arange(1, 31), size=40)
    estimates = torch.stack(
        [sampled_softmax_loss(state, table, target, torch.ones(1), sampler).exp() for _ in range(3000)]
    )
    exact = plain_loss(state, table, target, torch.ones(1)).exp()
    assert abs(estimates.mean() / exact - 1) < 0.03


def test_popular_items_are_drawn_more_often_and_all_are_drawn():
    torch.manual_seed(0)
    sampler = NegativeSampler.of(torch.tensor([0, 0, 98, 2]), size=4000)
    counts = torch.bincount(sampler.draw(), minlength=4)
    assert torch.allclose(counts.float(), sampler.log_expected.exp(), rtol=0.15)
    assert counts[2] > 4 * counts[0] > 0

"""A KL in the reward pulls a policy to its start with the gradient of that KL, over every conversation there is."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from align import losses
from align.advantages import cost_advantages, gae

V, T = 3, 3


@pytest.fixture(scope="module")
def chances() -> tuple[Tensor, Tensor]:
    """Logits of a policy and of its start, each (V + 1, V): a word depends on the one before, V at the beginning."""
    g = torch.Generator().manual_seed(0)
    logits, start = (torch.randn(V + 1, V, generator=g, dtype=torch.float64) for _ in range(2))
    return logits.requires_grad_(), start


def conversations(logits: Tensor, start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities (n, T) of all n conversations under the policy and its start, and the words before each."""
    words = torch.tensor(list(itertools.product(range(V), repeat=T)))  # (n, T)
    before = torch.cat([torch.full_like(words[:, :1], V), words[:, :-1]], 1)
    return (*(x.log_softmax(-1)[before, words] for x in (logits, start)), before)


def descent(logits: Tensor, logp: Tensor, advantages: Tensor, chance: Tensor) -> Tensor:
    """Expected gradient of the loss over conversations (n, T) that come with the chances (n,)."""
    mask = torch.ones_like(logp, dtype=torch.bool)
    loss = losses.policy_loss(logp, logp.detach(), advantages, mask, losses.Clip()).sum(-1)
    return torch.autograd.grad((chance * loss).sum(), logits, retain_graph=True)[0]


def true_gradient(logits: Tensor, logp: Tensor, ref: Tensor) -> Tensor:
    kl = (logp.sum(-1).exp() * (logp - ref).sum(-1)).sum()
    return torch.autograd.grad(kl, logits, retain_graph=True)[0]


def test_with_ppos_advantages_whatever_the_value_function_says(chances: tuple[Tensor, Tensor]) -> None:
    logp, ref, before = conversations(*chances)
    mask = torch.ones_like(logp, dtype=torch.bool)
    cost = losses.sampled_kl(logp.detach(), ref, mask, "k1")
    values = torch.randn(V + 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)[before]  # (n, T)
    advantages, _ = gae(-cost, values, mask, gamma=1.0, lam=1.0)
    found = descent(chances[0], logp, advantages, logp.detach().sum(-1).exp())
    assert torch.allclose(found, true_gradient(chances[0], logp, ref), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("baseline", "share"), [("none", 1.0), ("leave_one_out", 1.0), ("mean", 0.5)])
def test_with_the_comparison_of_a_group(chances: tuple[Tensor, Tensor], baseline: str, share: float) -> None:
    """Of two: a conversation is half of its own mean, so that with it half of the gradient is left."""
    logp, ref, _ = conversations(*chances)
    pairs = torch.cartesian_prod(torch.arange(len(logp)), torch.arange(len(logp))).flatten()  # every group of two
    logp, ref = logp[pairs], ref[pairs]
    cost = losses.sampled_kl(logp.detach(), ref, torch.ones_like(logp, dtype=torch.bool), "k1")
    advantages = cost_advantages(cost, 2, baseline=baseline)
    chance = logp.detach().sum(-1).exp().unflatten(0, (-1, 2)).prod(-1).repeat_interleave(2) / 2
    found = descent(chances[0], logp, advantages, chance)
    once = conversations(*chances)
    assert torch.allclose(found, share * true_gradient(chances[0], *once[:2]), rtol=0, atol=1e-12)


def test_an_exact_one_is_refused_because_it_is_the_same_whatever_was_said(chances: tuple[Tensor, Tensor]) -> None:
    """Where no word changes what comes after it, nothing is left of its gradient."""
    logits, start = chances[0].detach()[:1].expand(V + 1, V).clone().requires_grad_(), chances[1][:1].expand(V + 1, V)
    logp, ref, before = conversations(logits, start)
    mask = torch.ones_like(logp, dtype=torch.bool)
    cost = losses.exact_kl(logits.detach().log_softmax(-1)[before], start.log_softmax(-1)[before], mask)
    advantages, _ = gae(-cost, torch.zeros_like(cost), mask, gamma=1.0, lam=1.0)
    assert descent(logits, logp, advantages, logp.detach().sum(-1).exp()).sum(0).abs().max() < 1e-12
    assert true_gradient(logits, logp, ref).sum(0).abs().max() > 0.1

"""Rewards in time and generalised advantages: the definition, holes, and whose reward is whose."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from align.advantages import Credit, frame_rewards, gae

B, T = 5, 40


def batch(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Rewards, values and a mask with holes, an early end, and one conversation without any frame of its own."""
    g = torch.Generator().manual_seed(seed)
    rewards, values = (torch.randn(B, T, generator=g, dtype=torch.float64) for _ in range(2))
    mask = torch.rand(B, T, generator=g) < 0.8
    mask[1, T // 2 :] = False
    mask[2] = False
    return rewards, values, mask


def by_definition(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> Tensor:
    """A_t = sum over l of (gamma lam)^l delta_(t + l), over the frames inside the mask and in O(T^2)."""
    out = torch.zeros_like(values)
    for row in range(len(mask)):
        steps = mask[row].nonzero().flatten().tolist()
        ahead = [*(float(values[row, t]) for t in steps[1:]), 0.0][: len(steps)]
        deltas = [float(rewards[row, t] - values[row, t]) + gamma * v for t, v in zip(steps, ahead, strict=True)]
        for place, t in enumerate(steps):
            out[row, t] = sum((gamma * lam) ** k * delta for k, delta in enumerate(deltas[place:]))
    return out


@pytest.mark.parametrize("gamma, lam", [(1.0, 0.95), (0.99, 0.95), (0.9, 1.0), (1.0, 1.0), (0.97, 0.0), (0.0, 0.5)])
@pytest.mark.parametrize("seed", range(3))
def test_gae_is_its_definition(gamma: float, lam: float, seed: int) -> None:
    rewards, values, mask = batch(seed)
    advantages, returns = gae(rewards, values, mask, gamma=gamma, lam=lam)
    assert (advantages - by_definition(rewards, values, mask, gamma, lam)).abs().max() < 1e-12
    assert torch.allclose(returns, (advantages + values).masked_fill(~mask, 0.0), atol=0)


@pytest.mark.parametrize("garbage", [1e9, math.nan, math.inf, -math.inf])
def test_garbage_outside_the_mask_changes_nothing(garbage: float) -> None:
    rewards, values, mask = batch()
    clean = gae(rewards, values, mask, gamma=0.99, lam=0.95)
    dirty = gae(rewards.masked_fill(~mask, garbage), values.masked_fill(~mask, garbage), mask, gamma=0.99, lam=0.95)
    for ours, theirs in zip(clean, dirty, strict=True):
        assert torch.equal(ours, theirs)
        assert not ours[~mask].any()


def test_with_lambda_one_an_advantage_is_what_was_earned_minus_what_was_expected() -> None:
    rewards, values, mask = batch()
    advantages, _ = gae(rewards, values, mask, gamma=1.0, lam=1.0)
    kept = rewards.masked_fill(~mask, 0.0)
    earned = kept.flip(-1).cumsum(-1).flip(-1)
    assert torch.allclose(advantages, (earned - values).masked_fill(~mask, 0.0), atol=1e-12)


def test_a_value_function_that_is_right_leaves_no_advantage() -> None:
    rewards, _, mask = batch()
    values = rewards.masked_fill(~mask, 0.0).flip(-1).cumsum(-1).flip(-1)
    assert gae(rewards, values, mask, gamma=1.0, lam=0.95)[0].abs().max() < 1e-12


@settings(deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=12), st.integers(0, 2**31))
def test_holes_are_no_steps(chosen: list[bool], seed: int) -> None:
    """Leaving the masked frames out altogether gives the same advantages."""
    g = torch.Generator().manual_seed(seed)
    rewards, values = (torch.randn(1, len(chosen), generator=g, dtype=torch.float64) for _ in range(2))
    mask = torch.tensor([chosen])
    if not any(chosen):
        assert not gae(rewards, values, mask, gamma=0.9, lam=0.9)[0].any()
        return
    short = mask[:, chosen]
    whole, _ = gae(rewards, values, mask, gamma=0.9, lam=0.9)
    part, _ = gae(rewards[:, chosen], values[:, chosen], short, gamma=0.9, lam=0.9)
    assert torch.equal(whole[:, chosen], part)


def judgement(value: float | None, final: int, *, row: int = 0, weight: float = 1.0) -> Credit:
    return Credit(row, 0, "t", "e", value, weight, 0, 2, final)


def test_a_judgement_is_one_reward_in_the_frame_in_which_it_became_final() -> None:
    mask = torch.ones(2, 6, dtype=torch.bool)
    rewards = frame_rewards([judgement(0.5, 3, weight=2.0), judgement(-1.0, 3), judgement(1.0, 5, row=1)], mask)
    expected = torch.zeros(2, 6, dtype=torch.float64)
    expected[0, 3], expected[1, 5] = 0.0, 1.0
    assert torch.equal(rewards, expected)
    assert frame_rewards([judgement(0.5, 3, weight=2.0)], mask)[0].tolist() == [0, 0, 0, 1.0, 0, 0]


def test_a_reward_moves_back_to_the_last_frame_that_the_policy_chose_and_never_forward() -> None:
    mask = torch.tensor([[False, True, True, False, False, False]])
    assert frame_rewards([judgement(1.0, 4)], mask)[0].tolist() == [0, 0, 1, 0, 0, 0]
    assert frame_rewards([judgement(1.0, 99)], mask)[0].tolist() == [0, 0, 1, 0, 0, 0]
    assert not frame_rewards([judgement(1.0, 0), judgement(1.0, -1), judgement(None, 2)], mask).any()


def test_no_action_after_a_judgement_is_credited_with_it() -> None:
    """With values of zero, the frames after the reward have no advantage, and those before share it by distance."""
    mask = torch.ones(1, 6, dtype=torch.bool)
    rewards = frame_rewards([judgement(1.0, 3)], mask)
    advantages, _ = gae(rewards, torch.zeros_like(rewards), mask, gamma=1.0, lam=0.5)
    assert advantages[0].tolist() == [0.125, 0.25, 0.5, 1.0, 0.0, 0.0]

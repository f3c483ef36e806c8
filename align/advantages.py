"""Advantages of rewarded conversations, against a group or a value function. Pure functions; imports torch only.

A **group** is G conversations that start from the same state. A **credit** is one judgement of one of them: which
term, about which event, how good, and which frames earned it. Two decisions are made here and nowhere else:

* *against what*: `group_advantages` compares values inside a group (GRPO mean and deviation, Dr. GRPO without the
  deviation, RLOO with the others' mean, REINFORCE++ with nothing);
* *which frames*: `frame_advantages` spreads them, over the frames that earned a judgement (`event`) or evenly over
  the conversation (`uniform`, as published).

Every term is normalised on its own before terms are added (GDPO, arXiv 2601.05242, as arXiv 2606.11167 uses it), so
that a term in seconds does not drown one in {0, 1}. A value of None does not apply: it is in no mean and earns
nothing. A comparison without variance gives exactly zero. The deviation is unbiased and EPS is added to it (TRL's
convention; verl adds 1e-6).

Without groups (PPO), `frame_rewards` puts each judgement on the clock and `gae` compares what came with what a value
function expected.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

EPS = 1e-4
SAME = 64
"""Units in the last place, of the largest value or of 1, by which values differ that are the same but for rounding."""
BASELINES = ("mean", "leave_one_out", "none")
SCALES = ("group", "none")
CREDITS = ("event", "uniform")
AGGREGATIONS = ("normalize_then_sum", "sum_then_normalize")


@dataclass(frozen=True)
class Credit:
    """One judgement of one conversation."""

    row: int
    """Which conversation, in [0, B)."""
    group: int
    """Which group the conversation belongs to."""
    term: str
    event: str
    """The event judged; the same id means the same event in every conversation of the group."""
    value: float | None
    """How good, larger is better; None where the term does not apply."""
    weight: float
    """The term's weight."""
    start: int
    stop: int
    """Frames [start, stop) whose actions earned the judgement."""
    final: int = -1
    """Frame of the last action that the judgement could still depend on; -1 if it depends on none."""


@dataclass(frozen=True)
class Advantages:
    """Per-frame advantages and how many comparisons said nothing."""

    values: Tensor
    """(B, T) float32."""
    comparisons: int
    """Comparisons made: one per group and term, and per event with `event` credit."""
    zero_variance: int
    """Comparisons in which all values were the same (`SAME`), or only one applied: they teach nothing."""


def group_advantages(
    values: Tensor, valid: Tensor, *, baseline: str = "mean", scale: str = "group", eps: float = EPS
) -> Tensor:
    """Compare the values of each group with each other.

    Args:
        values: (..., G); whatever stands where `valid` is False is ignored, NaN included.
        valid: (..., G) bool.
        baseline: `mean` of the group, `leave_one_out`: the mean of the others (RLOO), or `none`: the values themselves.
        scale: `group` divides by the unbiased standard deviation plus `eps`; `none` does not (Dr. GRPO).

    Returns:
        (..., G); zero where `valid` is False, and, with a baseline, for a group in which fewer than two values apply.

    Raises:
        ValueError: unknown `baseline` or `scale`.
    """
    if baseline not in BASELINES:
        raise ValueError(f"baseline '{baseline}' is unknown; use one of {', '.join(BASELINES)}")
    if scale not in SCALES:
        raise ValueError(f"scale_rewards '{scale}' is unknown; use one of {', '.join(SCALES)}")
    count = valid.sum(-1, keepdim=True)  # (..., 1)
    kept = torch.where(valid, values, 0.0)
    if baseline == "none":
        if scale != "none":
            raise ValueError("baseline 'none' needs scale_rewards 'none': a deviation is one from a mean")
        return kept
    mean = kept.sum(-1, keepdim=True) / count.clamp(min=1)
    centred = torch.where(valid, kept - mean, 0.0)
    centred = centred.masked_fill(_same(values, valid), 0.0)
    deviation = (centred.square().sum(-1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    if baseline == "leave_one_out":  # r - mean of the others = (r - mean) n / (n - 1)
        centred = centred * count / (count - 1).clamp(min=1)
    return centred / (deviation + eps) if scale == "group" else centred


def frame_advantages(
    credits: Sequence[Credit],
    rows: int,
    frames: int,
    *,
    credit: str = "event",
    aggregation: str = "normalize_then_sum",
    baseline: str = "mean",
    scale: str = "group",
    eps: float = EPS,
) -> Advantages:
    """Advantage of every frame of every conversation.

    Args:
        credits: all judgements of all groups, in any order.
        rows, frames: B and T.
        credit: `event` compares the judgements of one event over the group and gives each to its own frames, summed
            where windows overlap. `uniform` takes a term's mean over the events of a conversation, compares it over
            the group and gives it to all T frames.
        aggregation: `normalize_then_sum` (GDPO), or `sum_then_normalize`: the weighted terms are summed first and the
            sum is compared (`uniform` only; a sum over terms has no event). There a term that does not apply to a
            conversation counts as its mean over those of the group to which it does, so that it is neither an
            advantage nor a loss to be out of a term's reach.

    Raises:
        ValueError: an unknown choice, or `event` with `sum_then_normalize`.
    """
    if credit not in CREDITS:
        raise ValueError(f"credit '{credit}' is unknown; use one of {', '.join(CREDITS)}")
    if aggregation not in AGGREGATIONS:
        raise ValueError(f"aggregation '{aggregation}' is unknown; use one of {', '.join(AGGREGATIONS)}")
    if credit == "event" and aggregation != "normalize_then_sum":
        raise ValueError("credit 'event' needs aggregation 'normalize_then_sum'; or use credit 'uniform'")
    if credit == "uniform":
        credits = _per_term(credits, frames)
        if aggregation == "sum_then_normalize":
            credits = _summed(credits, frames, filled=baseline != "none")

    comparisons: dict[tuple[int, str, str], list[Credit]] = {}
    for item in credits:
        if item.value is not None:
            comparisons.setdefault((item.group, item.term, item.event), []).append(item)
    out = torch.zeros(rows, frames, dtype=torch.float64)
    zero_variance = 0
    for items in comparisons.values():
        values = torch.tensor([item.value for item in items], dtype=torch.float64)  # (g,), g <= G
        valid = torch.ones_like(values, dtype=torch.bool)
        advantages = group_advantages(values, valid, baseline=baseline, scale=scale, eps=eps)
        zero_variance += bool(_same(values, valid))
        for item, advantage in zip(items, advantages, strict=True):
            out[item.row, item.start : item.stop] += item.weight * advantage
    return Advantages(out.float(), len(comparisons), zero_variance)


def cost_advantages(costs: Tensor, rows_per_group: int, *, baseline: str) -> Tensor:
    """Advantages of costs that fall frame by frame: what is still to come, compared over the group at the same frame.

    With a KL as the cost this is the KL in the reward: of RLOO (arXiv 2402.14740), whose comparison of whole
    conversations it is in the first frame, and of REINFORCE++ (arXiv 2501.03262), which compares with nothing. A frame
    is not charged for what was before it: no action can change its past.

    Args:
        costs: (B, T), zero where the policy did not choose; group g is the rows from g * rows_per_group.
        baseline: as `group_advantages`.

    Returns:
        (B, T), never scaled: they are in the costs' unit.
    """
    ahead = -costs.flip(-1).cumsum(-1).flip(-1)  # (B, T)
    groups = ahead.unflatten(0, (-1, rows_per_group)).transpose(1, 2)  # (groups, T, G)
    compared = group_advantages(groups, torch.ones_like(groups, dtype=torch.bool), baseline=baseline, scale="none")
    return compared.transpose(1, 2).flatten(0, 1)


def whitened(advantages: Tensor, mask: Tensor, mean: float, variance: float) -> Tensor:
    """Advantages (B, T) with the given mean off and variance one; zero outside the mask."""
    return ((advantages - mean) / math.sqrt(variance + 1e-8)).masked_fill(~mask, 0.0)


def frame_rewards(credits: Sequence[Credit], mask: Tensor) -> Tensor:
    """Rewards in time: each judgement, times its weight, in the one frame in which it became final.

    That is the frame of the last action that the judge could hear (`Credit.final`), or the last one before it that the
    policy chose itself. In an earlier frame (the event, the start of the credit window) the reward would stand before
    actions that can still change it, and no estimator credits an action for a reward of its past; spread over the
    window, it would say who earned it, which is what the value function is there to learn.

    Args:
        credits: judgements; those that do not apply, or that no own action precedes, reward nothing.
        mask: (B, T) bool, the frames in which the policy chose.

    Returns:
        (B, T) float64 on the CPU.
    """
    frames = mask.shape[1]
    index = torch.where(mask.cpu(), torch.arange(frames), -1)
    latest = index.cummax(-1).values.tolist()  # (B, T): the last chosen frame up to here, -1 if there was none
    rewards = torch.zeros(mask.shape, dtype=torch.float64)
    for item in credits:
        if item.value is None or item.final < 0:
            continue
        at = latest[item.row][min(item.final, frames - 1)]
        if at >= 0:
            rewards[item.row, at] += item.weight * item.value
    return rewards


def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates (arXiv 1506.02438) of conversations of one length with holes in them.

    Only frames inside the mask are steps: delta_t = r_t + gamma V_t' - V_t and A_t = delta_t + gamma lam A_t', with t'
    the next frame inside the mask, and V = A = 0 after the last one: a conversation that is over earns nothing more.

    Args:
        rewards, values: (B, T); whatever stands outside the mask is ignored, NaN included.
        mask: (B, T) bool.
        gamma, lam: discount, and how far to trust rewards over values, both in [0, 1].

    Returns:
        advantages and returns (advantage + value), (B, T) each in the dtype of `values`; zero outside the mask.
    """
    advantages = torch.zeros_like(values)
    ahead_value, ahead_advantage = torch.zeros_like(values[:, 0]), torch.zeros_like(values[:, 0])  # (B,)
    for t in reversed(range(values.shape[1])):
        here = mask[:, t]
        advantage = rewards[:, t] + gamma * ahead_value - values[:, t] + gamma * lam * ahead_advantage
        advantages[:, t] = torch.where(here, advantage, 0.0)
        ahead_value = torch.where(here, values[:, t], ahead_value)
        ahead_advantage = torch.where(here, advantage, ahead_advantage)
    return advantages, torch.where(mask, advantages + values, 0.0)


def _per_term(credits: Sequence[Credit], frames: int) -> list[Credit]:
    """One credit per conversation and term: the mean over its events, over all frames."""
    found: dict[tuple[int, str], list[Credit]] = {}
    for item in credits:
        if item.value is not None:
            found.setdefault((item.row, item.term), []).append(item)
    return [
        Credit(row, items[0].group, term, "", _mean([i.value for i in items]), items[0].weight, 0, frames)
        for (row, term), items in found.items()
    ]


def _summed(credits: Sequence[Credit], frames: int, *, filled: bool) -> list[Credit]:
    """One credit per conversation: the weighted sum of its terms; `filled` with the group's mean where one is missing.

    `credits` is what `_per_term` gives: at most one a conversation and term, and none without a value.
    """
    found: dict[int, list[Credit]] = {}
    terms: dict[int, dict[str, list[Credit]]] = {}
    for item in credits:
        found.setdefault(item.row, []).append(item)
        terms.setdefault(item.group, {}).setdefault(item.term, []).append(item)
    sums = []
    for row, items in found.items():
        group, has = items[0].group, {item.term for item in items}
        missing = [others for term, others in terms[group].items() if filled and term not in has]
        total = sum(i.weight * (i.value or 0.0) for i in items)
        total += sum(others[0].weight * _mean([i.value for i in others]) for others in missing)
        sums.append(Credit(row, group, "sum", "", total, 1.0, 0, frames))
    return sums


def _same(values: Tensor, valid: Tensor) -> Tensor:
    """Whether the values (..., G) of each group are one, as far as rounding lets it be told; (..., 1) bool.

    What was summed in another order differs in the last digits, which the deviation would blow up to an advantage.
    """
    most = torch.where(valid, values, -torch.inf).amax(-1, keepdim=True)
    least = torch.where(valid, values, torch.inf).amin(-1, keepdim=True)
    size = torch.where(valid, values, 0.0).abs().amax(-1, keepdim=True).clamp(min=1.0)
    return (most - least <= SAME * torch.finfo(values.dtype).eps * size) | (valid.sum(-1, keepdim=True) < 2)


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known)

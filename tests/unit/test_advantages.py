"""Advantages: the formulas, who is compared with whom, and which frames get the credit."""

from __future__ import annotations

import math
import random

import pytest
import torch

from align.advantages import EPS, Credit, cost_advantages, frame_advantages, group_advantages, whitened
from align.kl_control import adapted


def full(values: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(values, dtype=torch.bool)


def credits(
    values: list[float | None], *, term: str = "t", event: str = "e", weight: float = 1.0, window=(0, 4), group=0
):
    return [Credit(row, group, term, event, v, weight, *window) for row, v in enumerate(values)]


def test_grpo_is_the_distance_to_the_mean_in_unbiased_deviations():
    x = torch.randn(3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + EPS)
    assert torch.allclose(group_advantages(x, full(x)), expected, atol=1e-14)


def test_dr_grpo_does_not_divide():
    x = torch.tensor([[1.0, 2.0, 6.0]], dtype=torch.float64)
    assert torch.allclose(group_advantages(x, full(x), scale="none"), x - 3.0)


def test_rloo_compares_with_the_mean_of_the_others():
    x = torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64)
    expected = torch.tensor([1 - 4.0, 2 - 3.5, 6 - 1.5], dtype=torch.float64)
    assert torch.allclose(group_advantages(x, full(x), baseline="leave_one_out", scale="none"), expected)


@pytest.mark.parametrize("value", [0.1, -1.0, 1 / 3])
def test_a_group_without_variance_gets_exactly_zero(value):
    x = torch.full((7,), value, dtype=torch.float64)
    for scale in ("group", "none"):
        assert torch.equal(group_advantages(x, full(x), scale=scale), torch.zeros(7, dtype=torch.float64))


def test_a_singleton_gets_zero():
    x = torch.tensor([0.4, math.nan, math.nan])
    valid = torch.tensor([True, False, False])
    assert torch.equal(group_advantages(x, valid), torch.zeros(3))
    assert torch.equal(group_advantages(x, valid, baseline="leave_one_out", scale="none"), torch.zeros(3))


@pytest.mark.parametrize("garbage", [1e9, math.nan, math.inf, -math.inf])
def test_garbage_where_a_value_does_not_apply_changes_nothing(garbage):
    x = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    valid = torch.rand(4, 6, generator=torch.Generator().manual_seed(2)) < 0.7
    clean = group_advantages(x, valid)
    assert torch.equal(clean, group_advantages(x.masked_fill(~valid, garbage), valid))
    assert torch.equal(clean[~valid], torch.zeros(int((~valid).sum()), dtype=torch.float64))


def test_advantages_of_a_group_do_not_depend_on_shift_and_scale_of_the_reward():
    x = torch.randn(8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    assert torch.allclose(group_advantages(x, full(x), eps=0), group_advantages(5 * x - 3, full(x), eps=0), atol=1e-12)


def test_event_credit_goes_to_the_frames_of_the_window_and_nowhere_else():
    out = frame_advantages(credits([1.0, 0.0], window=(3, 5)), rows=2, frames=8).values
    assert torch.equal(out[:, :3], torch.zeros(2, 3))
    assert torch.equal(out[:, 5:], torch.zeros(2, 3))
    d = 0.5 / (math.sqrt(0.5) + EPS)
    assert torch.allclose(out[:, 3:5], torch.tensor([[d, d], [-d, -d]]))


def test_every_conversation_is_credited_in_its_own_window():
    items = [Credit(0, 0, "t", "e", 1.0, 1.0, 0, 2), Credit(1, 0, "t", "e", -1.0, 1.0, 4, 6)]
    out = frame_advantages(items, 2, 6, scale="none").values
    assert out[0].tolist() == [1, 1, 0, 0, 0, 0]
    assert out[1].tolist() == [0, 0, 0, 0, -1, -1]


def test_overlapping_windows_add_up_with_their_weights():
    items = credits([1.0, -1.0], term="a", window=(0, 3)) + credits([-1.0, 1.0], term="b", weight=0.5, window=(2, 4))
    out = frame_advantages(items, 2, 4, scale="none").values
    assert out[0].tolist() == [1.0, 1.0, 0.5, -0.5]
    assert torch.equal(out[1], -out[0])


def test_events_and_groups_are_compared_only_with_themselves():
    easy = credits([0.9, 1.0], event="easy", window=(0, 1))
    hard = credits([-1.0, -0.9], event="hard", window=(1, 2))
    out = frame_advantages(easy + hard, 2, 2).values
    assert torch.allclose(out[0], out[0, :1].expand(2))  # as far below its own mean in both
    other = [Credit(row + 2, 1, "t", "easy", value, 1.0, 0, 1) for row, value in enumerate([5.0, 7.0])]
    assert torch.equal(out, frame_advantages(easy + hard + other, 4, 2).values[:2])


def test_uniform_credit_is_gdpo_of_the_means_over_events_spread_over_all_frames():
    first = credits([1.0, 0.0, -1.0], term="a", event="1") + credits([0.0, 0.5, None], term="a", event="2")
    second = credits([None, 0.25, 0.75], term="b", weight=2.0)
    out = frame_advantages(first + second, 3, 5, credit="uniform").values
    a = torch.tensor([0.5, 0.25, -1.0], dtype=torch.float64)
    b = torch.tensor([0.25, 0.75], dtype=torch.float64)
    expected = (a - a.mean()) / (a.std() + EPS)
    expected[1:] += 2.0 * (b - b.mean()) / (b.std() + EPS)
    assert torch.allclose(out, expected.float()[:, None].expand(3, 5))


def test_sum_then_normalize_compares_the_weighted_sum():
    items = credits([1.0, 0.0, 0.5], term="a") + credits([0.1, 0.2, 0.6], term="b", weight=3.0)
    out = frame_advantages(items, 3, 2, credit="uniform", aggregation="sum_then_normalize").values
    total = torch.tensor([1.3, 0.6, 2.3], dtype=torch.float64)
    expected = (total - total.mean()) / (total.std() + EPS)
    assert torch.allclose(out[:, 0], expected.float())


@pytest.mark.parametrize("aggregation", ["normalize_then_sum", "sum_then_normalize"])
@pytest.mark.parametrize("shift", [-0.9, 0.0, 0.9])
def test_to_be_out_of_reach_of_a_term_is_neither_better_nor_worse_than_its_mean(aggregation, shift):
    items = credits([-0.2 + shift, None, -0.6 + shift], term="a") + credits([0.1, 0.1, 0.1], term="b")
    out = frame_advantages(items, 3, 2, credit="uniform", aggregation=aggregation).values[:, 0]
    assert out[0] > 0.5 and out[2] < -0.5
    assert out[1] == pytest.approx(0.0, abs=1e-6)


def test_without_a_baseline_a_sum_earns_nothing_by_a_term_that_does_not_apply():
    items = credits([0.5, None], term="a") + credits([0.25, 0.25], term="b")
    choice = {"credit": "uniform", "aggregation": "sum_then_normalize", "baseline": "none", "scale": "none"}
    assert frame_advantages(items, 2, 1, **choice).values[:, 0].tolist() == [0.75, 0.25]


def test_a_small_term_is_not_drowned_by_a_large_one():
    """The point of normalising each term alone: milliseconds and {0, 1} pull equally hard."""
    items = credits([1.0, 0.0], term="small") + credits([0.0, 1000.0], term="large")
    assert torch.allclose(frame_advantages(items, 2, 4, credit="uniform").values, torch.zeros(2, 4), atol=1e-3)


def test_comparisons_that_teach_nothing_are_counted():
    items = credits([1.0, 1.0], term="same") + credits([None, 0.3], term="alone") + credits([0.0, 1.0], term="useful")
    items += credits([None, None], term="never")
    result = frame_advantages(items, 2, 4)
    assert (result.comparisons, result.zero_variance) == (3, 2)


@pytest.mark.parametrize("choice", [{}, {"aggregation": "sum_then_normalize"}], ids=str)
def test_values_that_differ_by_the_order_of_a_sum_only_are_the_same(choice):
    found = [[0.1, 0.2, 0.3], [0.3, 0.2, 0.1], [0.2, 0.3, 0.1]]
    items = [Credit(row, 0, "t", f"e{n}", found[row][n], 1.0, 0, 3) for row in range(3) for n in range(3)]
    items += [Credit(row, 0, "other", "e", -0.2, 1.0, 0, 3) for row in range(3)]
    assert sum(found[0]) != sum(found[1])
    result = frame_advantages(items, 3, 4, credit="uniform", **choice)
    assert result.zero_variance == result.comparisons
    assert not result.values.any()


def test_the_order_of_judgements_does_not_matter():
    rng = random.Random(0)
    items = [
        Credit(row, row // 4, term, event, rng.choice([None, rng.random()]), 1.0, 0, 3)
        for row in range(8)
        for term in "ab"
        for event in "xyz"
    ]
    before = frame_advantages(items, 8, 6).values
    rng.shuffle(items)
    assert torch.allclose(before, frame_advantages(items, 8, 6).values, atol=1e-6)


def test_advantages_of_one_comparison_sum_to_zero():
    rng = random.Random(1)
    items = [Credit(row, 0, "t", "e", rng.random(), 1.0, 2, 3) for row in range(9)]
    assert abs(float(frame_advantages(items, 9, 5).values.sum())) < 1e-5


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"credit": "frame"}, "credit 'frame' is unknown"),
        ({"aggregation": "mean"}, "aggregation 'mean' is unknown"),
        ({"aggregation": "sum_then_normalize"}, "needs aggregation 'normalize_then_sum'"),
        ({"baseline": "median"}, "baseline 'median' is unknown"),
        ({"scale": "batch"}, "scale_rewards 'batch' is unknown"),
    ],
)
def test_an_unknown_choice_is_named(choice, message):
    with pytest.raises(ValueError, match=message):
        frame_advantages(credits([0.0, 1.0]), 2, 4, **choice)


def test_without_a_baseline_a_value_is_its_own_advantage_and_equal_ones_still_teach():
    result = frame_advantages(credits([1.0, 1.0]), 2, 4, baseline="none", scale="none")
    assert torch.equal(result.values, torch.ones(2, 4))
    assert result.zero_variance == 1
    with pytest.raises(ValueError, match="baseline 'none' needs scale_rewards 'none'"):
        frame_advantages(credits([1.0, 0.0]), 2, 4, baseline="none")


def test_a_cost_is_charged_to_the_frames_before_it_and_compared_at_the_same_frame():
    costs = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 6.0], [5.0, 0.0, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
    alone = cost_advantages(costs, 2, baseline="none")
    assert alone.tolist() == [[-6, -5, -3], [-6, -6, -6], [-5, 0, 0], [-1, 0, 0]]
    # RLOO: minus the total KL, against the others' in the group, as TRL's RLOOTrainer takes it off the reward.
    rloo = cost_advantages(costs, 2, baseline="leave_one_out")
    assert rloo[:, 0].tolist() == [0, 0, -4, 4]
    assert rloo[0].tolist() == [0, 1, 3]


def test_whitened_advantages_have_no_mean_and_unit_variance_inside_the_mask_and_are_zero_outside():
    x = torch.randn(4, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(5)) * 3 + 1
    mask = torch.rand(4, 9, generator=torch.Generator().manual_seed(6)) < 0.5
    kept = x[mask]
    out = whitened(x.masked_fill(~mask, math.nan), mask, float(kept.mean()), float(kept.var(unbiased=False)))
    assert abs(float(out[mask].mean())) < 1e-12
    assert float(out[mask].var(unbiased=False)) == pytest.approx(1.0, abs=1e-6)
    assert torch.equal(out[~mask], torch.zeros(int((~mask).sum()), dtype=torch.float64))


def test_the_kl_coefficient_is_steered_towards_its_target_by_at_most_a_fifth_a_horizon():
    assert adapted(0.1, kl=0.2, target=0.2, conversations=80, horizon=80) == 0.1
    assert adapted(0.1, kl=9.0, target=0.2, conversations=80, horizon=80) == pytest.approx(0.12)
    assert adapted(0.1, kl=0.0, target=0.2, conversations=40, horizon=80) == pytest.approx(0.09)
    assert adapted(0.1, kl=math.nan, target=0.2, conversations=80, horizon=80) == 0.1
    assert adapted(0.1, kl=0.21, target=0.2, conversations=80, horizon=80) == pytest.approx(0.105)

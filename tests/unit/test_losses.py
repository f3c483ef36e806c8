"""Losses: agreement with TRL, invariances, and the definitions."""

from __future__ import annotations

import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from align import losses, ratios
from align.losses import Clip

B, T, V = 6, 11, 7


def batch(seed: int = 0, spread: float = 0.5) -> dict[str, Tensor]:
    """Random (B, T) double tensors whose ratios lie on both sides of the clip; every row has an active frame."""
    g = torch.Generator().manual_seed(seed)
    logp = -torch.rand(B, T, generator=g, dtype=torch.float64) * 3
    mask = torch.rand(B, T, generator=g) < 0.6
    mask[:, 0] = True
    return {
        "logp": logp,
        "old_logp": logp + spread * torch.randn(B, T, generator=g, dtype=torch.float64),
        "ref_logp": logp + spread * torch.randn(B, T, generator=g, dtype=torch.float64),
        "advantages": torch.randn(B, T, generator=g, dtype=torch.float64),
        "sampler_logp": logp + spread * torch.randn(B, T, generator=g, dtype=torch.float64),
        "mask": mask,
    }


def ours(
    x: dict[str, Tensor], loss_type: str, clip: Clip, beta: float, accumulation: int, level="token", corrected=False,
    sampler=None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Loss and gradient of one micro-batch of `accumulation` equal ones, as the optimiser sees it."""
    logp = x["logp"].clone().requires_grad_()
    if loss_type == "cispo":
        ceiling = Clip(math.inf, clip.high - 2)  # TRL's epsilon_high is then the ceiling itself
        per_frame = losses.cispo_loss(logp, x["old_logp"], x["advantages"], x["mask"], ceiling, level)
    else:
        per_frame = losses.policy_loss(logp, x["old_logp"], x["advantages"], x["mask"], clip, level)
    if sampler:
        per_frame = per_frame * ratios.sampler_weights(x["old_logp"], x["sampler_logp"], x["mask"], *sampler)
    if beta:
        kl = losses.sampled_kl(logp, x["ref_logp"], x["mask"])
        if corrected:
            kl = kl * ratios.ratio(logp, x["old_logp"], x["mask"], level)
        per_frame = per_frame + beta * kl
    loss = losses.reduce_loss(
        per_frame,
        x["mask"],
        loss_type=loss_type,
        total_frames=float(x["mask"].sum()) * accumulation,
        total_rows=B * accumulation,
    )
    loss.backward()
    assert logp.grad is not None
    return loss.detach(), logp.grad


def trl(
    x: dict[str, Tensor], loss_type: str, clip: Clip, beta: float, accumulation: int, level="token", corrected=False,
    sampler=None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The same by TRL's `GRPOTrainer._compute_loss`, called on a stub: no model, no trainer."""
    from collections import defaultdict

    from trl import GRPOTrainer

    logp = x["logp"].clone().requires_grad_()
    stub = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *a, **k: (logp, torch.zeros(B, T, dtype=torch.float64), None),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level=level,
        beta=beta,
        loss_type=loss_type,
        epsilon_low=clip.epsilon,
        epsilon_high=clip.high - 1,
        use_vllm=sampler is not None,
        vllm_importance_sampling_correction=True,
        _entropy_bonus_enabled=False,
        max_completion_length=T,
        current_gradient_accumulation_steps=accumulation,
        model=SimpleNamespace(training=True),
        args=SimpleNamespace(delta=None, use_bias_correction_kl=corrected, steps_per_generation=accumulation),
        accelerator=SimpleNamespace(num_processes=1, reduce=lambda t, reduction: t, gather=lambda t: t),
        _metrics=defaultdict(lambda: defaultdict(list)),
    )
    inputs = {
        "prompt_ids": torch.zeros(B, 1, dtype=torch.long),
        "prompt_mask": torch.ones(B, 1, dtype=torch.long),
        "completion_ids": torch.zeros(B, T, dtype=torch.long),
        "completion_mask": x["mask"].double(),
        "advantages": x["advantages"],
        "old_per_token_logps": x["old_logp"],
        "ref_per_token_logps": x["ref_logp"],
        "num_items_in_batch": x["mask"].sum() * accumulation,
    }
    if sampler:
        inputs["importance_sampling_ratio"] = trl_sampler_ratio(x, *sampler)
    loss = GRPOTrainer._compute_loss(stub, None, inputs)
    loss.backward()
    assert logp.grad is not None
    return loss.detach(), logp.grad


def trl_sampler_ratio(x: dict[str, Tensor], mode: str, high: float | None, low: float | None) -> Tensor:
    """`GRPOTrainer._generate_and_score_completions` makes it inline (1.16, lines 2662 to 2704); here by definition."""
    gap = (x["old_logp"] - x["sampler_logp"]) * x["mask"]
    weight = (gap.sum(-1, keepdim=True) if mode.startswith("sequence") else gap).exp()
    if mode.endswith("truncate"):
        return weight.clamp(min=low, max=high)
    out = (weight < (-math.inf if low is None else low)) | (weight > (math.inf if high is None else high))
    return weight.masked_fill(out, 0.0)


SAMPLERS = [
    None,
    ("token_truncate", 1.2, None),
    ("token_mask", 1.5, 0.7),
    ("sequence_truncate", 1.2, 0.5),
    ("sequence_mask", 3.0, None),
]


@pytest.mark.parametrize("loss_type", losses.LOSS_TYPES)
@pytest.mark.parametrize("clip", [Clip(0.2, 1.3), Clip(0.2, 0.28)])
@pytest.mark.parametrize(("beta", "corrected"), [(0.0, False), (0.04, False), (0.04, True)])
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_loss_and_gradient_are_those_of_trl(loss_type, clip, beta, corrected, accumulation, level, sampler):
    pytest.importorskip("trl", minversion="1.16")
    x = batch(accumulation)
    loss, gradient = ours(x, loss_type, clip, beta, accumulation, level, corrected, sampler)
    loss_trl, gradient_trl = trl(x, loss_type, clip, beta, accumulation, level, corrected, sampler)
    assert abs(loss - loss_trl) < 1e-12
    assert (gradient - gradient_trl).abs().max() < 1e-12
    assert gradient.abs().max() > 1e-4  # otherwise the comparison says nothing


def several(seed: int = 0, streams: int = 3, frames: int = T) -> dict[str, Tensor]:
    """(B, S, T) actions of several streams, with (B, T) credit of frames."""
    g = torch.Generator().manual_seed(seed)
    logp = -torch.rand(B, streams, frames, generator=g, dtype=torch.float64) * 3
    return {
        "logp": logp,
        "old_logp": logp + 0.3 * torch.randn(logp.shape, generator=g, dtype=torch.float64),
        "mask": torch.rand(logp.shape, generator=g) < 0.7,
        "advantages": torch.randn(B, frames, generator=g, dtype=torch.float64),
    }


BY_FRAME = partial(losses.policy_loss, by_frame=True)


def joined(x: dict[str, Tensor], level: str) -> Tensor:
    logp, mask = ratios.actions(x["logp"], x["mask"], level)
    return losses.policy_loss(
        logp, ratios.actions(x["old_logp"], x["mask"], level)[0], x["advantages"], mask, Clip(), level
    )


def test_with_one_stream_a_frame_is_a_token_and_a_stream_is_a_sequence():
    x = several(streams=1)
    assert torch.equal(joined(x, "frame"), joined(x, "token"))
    assert torch.equal(joined(x, "stream"), joined(x, "sequence"))
    assert not torch.equal(joined(x, "token"), joined(x, "sequence"))


def test_in_a_conversation_of_one_frame_a_frame_is_a_sequence_and_a_token_is_a_stream():
    x = several(frames=1)
    assert torch.allclose(joined(x, "frame"), joined(x, "sequence"), atol=1e-15)
    assert torch.allclose(joined(x, "token"), joined(x, "stream"), atol=1e-15)
    assert joined(x, "frame").shape == (B, 1)
    assert joined(x, "token").shape == (B, 3, 1)


def test_the_ratio_of_a_frame_is_the_product_of_its_tokens_and_of_a_sequence_the_geometric_mean_of_its_frames():
    x = several()
    gap = ((x["logp"] - x["old_logp"]) * x["mask"]).sum(1)  # (B, T)
    mask = x["mask"].any(1)
    logp, old = (ratios.actions(x[name], x["mask"], "frame")[0] for name in ("logp", "old_logp"))
    assert torch.allclose(ratios.ratio(logp, old, mask, "frame"), torch.where(mask, gap.exp(), 1.0))
    whole = (gap.sum(-1) / mask.sum(-1)).exp()[:, None].expand(B, T)
    assert torch.allclose(ratios.ratio(logp, old, mask, "sequence"), torch.where(mask, whole, 1.0))


@pytest.mark.parametrize("garbage", [1e6, math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("level", ratios.LEVELS)
@pytest.mark.parametrize("kind", [losses.policy_loss, BY_FRAME, losses.cispo_loss])
def test_garbage_in_masked_tokens_changes_neither_loss_nor_gradient_at_any_level(garbage, level, kind):
    x, results = several(4), []
    for fill in (0.0, garbage):
        logp, old = (x[name].masked_fill(~x["mask"], fill) for name in ("logp", "old_logp"))
        logp.requires_grad_()
        credit = x["advantages"].masked_fill(~x["mask"].any(1), fill)
        new, mask = ratios.actions(logp, x["mask"], level)
        loss = kind(new, ratios.actions(old, x["mask"], level)[0], credit, mask, Clip(), level)
        weights = ratios.sampler_weights(ratios.actions(old, x["mask"], level)[0], new, mask, "sequence_truncate", 2.0)
        (loss * weights).sum().backward()
        results.append((loss.detach(), logp.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("level", ratios.LEVELS)
@pytest.mark.parametrize("loss_type", losses.LOSS_TYPES)
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_the_gradient_is_that_of_finite_differences_at_every_level(level, loss_type, estimator):
    x = several(6)
    old = x["logp"] + 0.01

    def loss(logp: Tensor) -> Tensor:
        new, mask = ratios.actions(logp, x["mask"], level)
        per_action = losses.policy_loss(
            new, ratios.actions(old, x["mask"], level)[0], x["advantages"], mask, Clip(0.9), level
        )
        kl = ratios.actions(losses.sampled_kl(logp, x["old_logp"], x["mask"], estimator), x["mask"], level)[0]
        per_action = per_action + 0.1 * kl * ratios.ratio(new, ratios.actions(old, x["mask"], level)[0], mask, level)
        return losses.reduce_loss(
            per_action, mask, loss_type=loss_type, total_frames=float(mask.sum()), total_rows=B, length=T + 3
        )

    assert torch.autograd.gradcheck(loss, (x["logp"].clone().requires_grad_(),))


def reduced(x: dict[str, Tensor], kind, loss_type: str, level: str, clip: Clip) -> tuple[Tensor, Tensor]:
    """Loss and gradient of the tokens of `several`."""
    logp = x["logp"].clone().requires_grad_()
    new, mask = ratios.actions(logp, x["mask"], level)
    per_action = kind(new, ratios.actions(x["old_logp"], x["mask"], level)[0], x["advantages"], mask, clip, level)
    loss = losses.reduce_loss(
        per_action, mask, loss_type=loss_type, total_frames=float(mask.sum()), total_rows=B, length=T + 3
    )
    loss.backward()
    return loss.detach(), logp.grad


@pytest.mark.parametrize("kind", [BY_FRAME, losses.cispo_loss])
@pytest.mark.parametrize("level", ratios.LEVELS)
@pytest.mark.parametrize("loss_type", losses.LOSS_TYPES)
def test_credit_of_a_frame_moves_its_own_tokens_and_no_other_at_every_level(kind, level, loss_type):
    x = several(2)
    x["mask"][:, :, [2, 7]] = True
    x["advantages"] = torch.zeros(B, T, dtype=torch.float64)
    x["advantages"][:, 2], x["advantages"][:, 7] = 1.0, -1.0
    x["old_logp"] = x["logp"]  # the first update of an iteration
    gradient = reduced(x, kind, loss_type, level, Clip(math.inf, 4) if kind is losses.cispo_loss else Clip(3e-4, 4e-4))[
        1
    ]
    assert (gradient[:, :, 2] < -1e-4).all()  # the loss falls as they become likelier
    assert torch.allclose(gradient[:, :, 7], -gradient[:, :, 2], atol=1e-15)
    others = [t for t in range(T) if t not in (2, 7)]
    assert torch.equal(gradient[:, :, others], torch.zeros(B, 3, T - 2, dtype=torch.float64))


def test_a_shared_ratio_that_shares_its_gradient_has_none_where_frames_earned_opposites():
    """Why `by_frame` is there."""
    x = several(2, streams=1)
    x["mask"][:], x["old_logp"] = True, x["logp"]
    x["advantages"] = torch.zeros(B, T, dtype=torch.float64)
    x["advantages"][:, 2], x["advantages"][:, 7] = 1.0, -1.0
    assert reduced(x, losses.policy_loss, "grpo", "sequence", Clip())[1].abs().max() < 1e-15


@pytest.mark.parametrize("level", ratios.LEVELS)
@pytest.mark.parametrize("loss_type", losses.LOSS_TYPES)
@pytest.mark.parametrize("clip", [Clip(0.2), Clip(0.02, 0.05)])
def test_with_equal_advantages_in_a_conversation_it_is_the_plain_sequence_ratio(loss_type, level, clip):
    x = several(5)
    same = x | {"advantages": x["advantages"][:, :1].expand(B, T)}
    plain, by_frame = (reduced(same, kind, loss_type, level, clip) for kind in (losses.policy_loss, BY_FRAME))
    assert abs(plain[0] - by_frame[0]) < 1e-12
    assert (plain[1] - by_frame[1]).abs().max() < 1e-12
    assert plain[1].abs().max() > 1e-4
    # Where they differ the value is still that of the shared ratio, to the bit, and the gradient is another one.
    plain, by_frame = (reduced(x, kind, loss_type, level, clip) for kind in (losses.policy_loss, BY_FRAME))
    assert torch.equal(plain[0], by_frame[0])
    assert torch.equal(plain[1], by_frame[1]) == (level in ("token", "frame"))


@pytest.mark.parametrize("loss_type", [name for name in losses.LOSS_TYPES if name != "cispo"])
@pytest.mark.parametrize("clip", [Clip(0.2, 0.28), Clip(0.02, 0.05)])
def test_gspo_token_is_trl_at_the_sequence_level_where_a_conversation_has_one_advantage(loss_type, clip):
    pytest.importorskip("trl", minversion="1.16")
    x = batch(2)
    x["advantages"] = x["advantages"][:, :1].expand(B, T)
    loss_trl, gradient_trl = trl(x, loss_type, clip, 0.04, 1, "sequence")
    logp = x["logp"].clone().requires_grad_()
    per_frame = BY_FRAME(logp, x["old_logp"], x["advantages"], x["mask"], clip, "sequence")
    per_frame = per_frame + 0.04 * losses.sampled_kl(logp, x["ref_logp"], x["mask"])
    frames = float(x["mask"].sum())
    loss = losses.reduce_loss(per_frame, x["mask"], loss_type=loss_type, total_frames=frames, total_rows=B)
    loss.backward()
    assert abs(loss.detach() - loss_trl) < 1e-12
    assert (logp.grad - gradient_trl).abs().max() < 1e-12
    assert gradient_trl.abs().max() > 1e-4


@pytest.mark.parametrize("level", ["stream", "sequence"])
def test_the_clip_is_told_by_the_shared_ratio_and_the_sign_of_the_frame_s_own_advantage(level):
    x = several(3)
    old, mask = ratios.actions(x["old_logp"], x["mask"], level)
    logp = ratios.actions(x["logp"], x["mask"], level)[0].requires_grad_()
    clip = Clip(0.05)
    BY_FRAME(logp, old, x["advantages"], mask, clip, level).sum().backward()
    shared = ratios.ratio(logp.detach(), old, mask, level)
    credit = (x["advantages"] if mask.dim() == 2 else x["advantages"].unsqueeze(1)).expand_as(mask)
    held = ((shared > clip.high) & (credit > 0)) | ((shared < clip.low) & (credit < 0))
    assert 0 < held[mask].sum() < mask.sum()
    assert torch.allclose(logp.grad, -(shared * credit).masked_fill(held | ~mask, 0.0), atol=1e-15)


@pytest.mark.parametrize("level", ["stream", "sequence"])
def test_the_gradient_of_a_frame_is_that_of_finite_differences_with_the_shared_ratio_held(level):
    x = several(7)
    old, mask = ratios.actions(x["logp"] + 0.01, x["mask"], level)
    start = ratios.actions(x["logp"], x["mask"], level)[0]
    held = ratios.ratio(start, old, mask, level)
    credit = x["advantages"] if mask.dim() == 2 else x["advantages"].unsqueeze(1)

    def surrogate(logp: Tensor) -> Tensor:
        own = (ratios.actions(logp, x["mask"], level)[0] - start).exp()
        return -(held * own * credit).masked_fill(~mask, 0.0).sum()

    logp = x["logp"].clone().requires_grad_()
    new = ratios.actions(logp, x["mask"], level)[0]
    BY_FRAME(new, old, x["advantages"], mask, Clip(0.9), level).sum().backward()
    assert torch.autograd.gradcheck(surrogate, (x["logp"].clone().requires_grad_(),))
    (expected,) = torch.autograd.grad(surrogate(probe := x["logp"].clone().requires_grad_()), probe)
    assert torch.allclose(logp.grad, expected, atol=1e-14)


def test_cispo_has_the_gradient_of_reinforce_weighed_by_the_clipped_ratio():
    x = batch(3)
    logp = x["logp"].clone().requires_grad_()
    losses.cispo_loss(logp, x["old_logp"], x["advantages"], x["mask"], Clip(math.inf, 0.1)).sum().backward()
    weight = (x["logp"] - x["old_logp"]).exp().clamp(max=1.1)
    assert torch.allclose(logp.grad, -(weight * x["advantages"] * x["mask"]), atol=1e-15)


@pytest.mark.parametrize("level", ratios.LEVELS)
def test_the_gradient_of_cispo_is_that_of_finite_differences_with_the_weight_held(level):
    x, clip, step = several(7), Clip(math.inf, 0.1), 1e-6
    old, mask = ratios.actions(x["old_logp"], x["mask"], level)
    held = ratios.ratio(ratios.actions(x["logp"], x["mask"], level)[0], old, mask, level).clamp(clip.low, clip.high)
    credit = x["advantages"] if mask.dim() == 2 else x["advantages"].unsqueeze(1)

    def reinforce(logp: Tensor) -> Tensor:
        return -(held * credit * ratios.actions(logp, x["mask"], level)[0]).masked_fill(~mask, 0.0).sum()

    logp = x["logp"].clone().requires_grad_()
    new = ratios.actions(logp, x["mask"], level)[0]
    losses.cispo_loss(new, old, x["advantages"], mask, clip, level).sum().backward()
    assert held.max() == clip.high  # some of it is clipped, and has its gradient all the same
    for place in [(0, 0, 0), (1, 2, 3), (4, 1, T - 1), (5, 0, 6)]:
        change = torch.zeros_like(x["logp"])
        change[place] = step
        difference = (reinforce(x["logp"] + change) - reinforce(x["logp"] - change)) / (2 * step)
        assert abs(logp.grad[place] - difference) < 1e-8


def test_the_gradient_of_the_speak_objective_is_that_of_finite_differences():
    """The ratio of speaking or not and the exact KL, as functions of the logits; inside the clip."""
    g = torch.Generator().manual_seed(12)
    logits, start = (torch.randn(2, 3, V, generator=g, dtype=torch.float64) for _ in range(2))
    tokens, mask = torch.tensor([[0, 3, 5], [2, 0, -1]]), torch.tensor([[True, True, False], [True, True, True]])
    advantages = torch.randn(2, 3, generator=g, dtype=torch.float64)
    old = losses.speak_logp(logits.log_softmax(-1), tokens, {0, 2}) + 0.01

    def loss(logits: Tensor) -> Tensor:
        log_probs = logits.log_softmax(-1)
        per_frame = losses.policy_loss(
            losses.speak_logp(log_probs, tokens, {0, 2}), old, advantages, mask, Clip(0.5)
        ) + 0.2 * losses.exact_kl(log_probs, start.log_softmax(-1), mask)
        return losses.reduce_loss(per_frame, mask, loss_type="dapo", total_frames=5, total_rows=2)

    assert torch.autograd.gradcheck(loss, (logits.requires_grad_(),))


def test_on_policy_k2_has_the_gradient_of_the_kl_k1_none_and_k3_only_with_the_ratio():
    g = torch.Generator().manual_seed(11)
    start = torch.randn(V, generator=g, dtype=torch.float64).log_softmax(-1)
    logits = torch.randn(V, generator=g, dtype=torch.float64).requires_grad_()
    old = logits.detach().log_softmax(-1)
    one = torch.ones(1, 1, dtype=torch.bool)

    def gradient(estimator: str, corrected: bool = False) -> Tensor:
        logp = logits.log_softmax(-1)
        if estimator == "exact":
            value = losses.exact_kl(logp[None, None], start[None, None], one).sum()
        else:
            per_token = losses.sampled_kl(logp, start, torch.ones(V, dtype=torch.bool), estimator)
            value = (old.exp() * per_token * ((logp - old).exp() if corrected else 1.0)).sum()
        return torch.autograd.grad(value, logits)[0]

    exact = gradient("exact")
    assert exact.abs().max() > 1e-2
    assert torch.allclose(gradient("k2"), exact, atol=1e-12)
    assert torch.allclose(gradient("k1"), torch.zeros(V, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(gradient("k1", True), exact, atol=1e-12)
    assert torch.allclose(gradient("k3", True), exact, atol=1e-12)
    assert not torch.allclose(gradient("k3"), exact, atol=1e-3)


@pytest.mark.parametrize("garbage", [1e6, math.inf, -math.inf, math.nan])
def test_garbage_in_masked_frames_changes_neither_loss_nor_gradient(garbage):
    x = batch()
    loss, gradient = ours(x, "dapo", Clip(), 0.1, 1)
    for name in ("logp", "old_logp", "ref_logp", "advantages"):
        x[name] = x[name].masked_fill(~x["mask"], garbage)
    loss_garbage, gradient_garbage = ours(x, "dapo", Clip(), 0.1, 1)
    assert torch.equal(loss, loss_garbage)
    assert torch.equal(gradient, gradient_garbage)


@pytest.mark.parametrize("level", ratios.LEVELS)
@pytest.mark.parametrize("loss_type", losses.LOSS_TYPES)
@pytest.mark.parametrize("clipped", [losses.policy_loss, BY_FRAME])
def test_micro_batches_and_ranks_of_uneven_masks_add_up_to_the_loss_and_gradient_of_the_global_batch(
    loss_type, level, clipped
):
    x = several(1)
    objective = losses.cispo_loss if loss_type == "cispo" else clipped
    tokens = ratios.actions(x["logp"], x["mask"], level)[1]
    totals = {"total_frames": float(tokens.sum()), "total_rows": float(B), "loss_type": loss_type}

    def part(rows: list[int], world: int = 1) -> tuple[Tensor, Tensor]:
        logp = x["logp"].clone().requires_grad_()
        new, mask = ratios.actions(logp[rows], x["mask"][rows], level)
        old = ratios.actions(x["old_logp"][rows], x["mask"][rows], level)[0]
        per_action = objective(new, old, x["advantages"][rows], mask, Clip(), level)
        per_action = per_action + 0.1 * ratios.actions(
            losses.sampled_kl(logp[rows], x["old_logp"][rows], x["mask"][rows]), x["mask"][rows], level
        )[0]  # fmt: skip
        loss = losses.reduce_loss(per_action, mask, world=world, **totals)
        loss.backward()
        return loss.detach(), logp.grad

    whole, gradient = part(list(range(B)))
    parts = [[0], [1, 2], [3, 4, 5]]  # with one, two and three conversations
    assert gradient.abs().max() > 1e-3
    for world in (1, 3):  # micro-batches are summed, ranks are averaged
        found = [part(rows, world) for rows in parts]
        assert abs(sum(loss for loss, _ in found) / world - whole) < 1e-14
        assert (sum(grad for _, grad in found) / world - gradient).abs().max() < 1e-14


def test_the_mean_of_local_means_is_another_loss_when_masks_are_uneven():
    x = batch(1)
    per_frame = losses.policy_loss(x["logp"], x["old_logp"], x["advantages"], x["mask"], Clip())
    local = torch.stack([per_frame[i].sum() / x["mask"][i].sum() for i in range(B)]).mean()
    whole = losses.reduce_loss(
        per_frame, x["mask"], loss_type="dapo", total_frames=float(x["mask"].sum()), total_rows=B
    )
    assert abs(local - whole) > 0.01 * abs(whole)


def test_on_the_first_update_the_gradient_is_the_plain_policy_gradient():
    x = batch()
    logp = x["logp"].clone().requires_grad_()
    losses.policy_loss(logp, x["logp"], x["advantages"], x["mask"], Clip()).sum().backward()
    assert torch.allclose(logp.grad, -(x["advantages"] * x["mask"]), atol=1e-15)


def test_the_gradient_stops_where_the_ratio_left_the_clip_in_the_rewarded_direction():
    old = torch.zeros(1, 4, dtype=torch.float64)
    logp = torch.tensor([[0.5, -0.5, 0.5, -0.5]], dtype=torch.float64).requires_grad_()
    credit = torch.tensor([[1.0, 1.0, -1.0, -1.0]], dtype=torch.float64)
    losses.policy_loss(logp, old, credit, torch.ones(1, 4, dtype=torch.bool), Clip(0.2)).sum().backward()
    assert logp.grad[0, 0] == 0
    assert logp.grad[0, 3] == 0
    assert logp.grad[0, 1] < 0 < logp.grad[0, 2]


def test_a_hopeless_ratio_stays_finite():
    mask = torch.ones(1, 2, dtype=torch.bool)
    loss = losses.policy_loss(
        torch.tensor([[0.0, -900.0]]), torch.tensor([[-900.0, 0.0]]), -torch.ones(1, 2), mask, Clip()
    )
    assert torch.isfinite(loss).all()


def test_exact_kl_is_the_sum_over_the_vocabulary_and_zero_against_itself():
    g = torch.Generator().manual_seed(3)
    p = torch.randn(B, T, V, generator=g, dtype=torch.float64).log_softmax(-1)
    q = torch.randn(B, T, V, generator=g, dtype=torch.float64).log_softmax(-1)
    mask = torch.ones(B, T, dtype=torch.bool)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=p), torch.distributions.Categorical(logits=q)
    )
    assert torch.allclose(losses.exact_kl(p, q, mask), expected, atol=1e-14)
    assert torch.equal(losses.exact_kl(p, p, mask), torch.zeros(B, T, dtype=torch.float64))


def test_exact_kl_has_exactly_no_gradient_at_the_reference():
    logits = torch.randn(B, T, V, generator=torch.Generator().manual_seed(9)).requires_grad_()
    losses.exact_kl(
        logits.log_softmax(-1), logits.detach().log_softmax(-1), torch.ones(B, T, dtype=torch.bool)
    ).sum().backward()
    assert torch.equal(logits.grad, torch.zeros(B, T, V))


def test_exact_kl_ignores_tokens_without_mass_and_masked_frames():
    p = torch.tensor([[[0.5, 0.5, 0.0], [math.nan] * 3]], dtype=torch.float64).log().requires_grad_()
    q = torch.tensor([[[0.25, 0.75, 0.0], [0.2, 0.3, 0.5]]], dtype=torch.float64).log()
    kl = losses.exact_kl(p, q, torch.tensor([[True, False]]))
    kl.sum().backward()
    assert abs(kl[0, 0] - (0.5 * math.log(2) + 0.5 * math.log(2 / 3))) < 1e-15
    assert kl[0, 1] == 0
    assert torch.isfinite(p.grad).all()


def test_the_sampled_kl_is_unbiased_for_the_exact_one():
    g = torch.Generator().manual_seed(4)
    p = torch.randn(1, 1, V, generator=g, dtype=torch.float64).log_softmax(-1)
    q = (p + 0.3 * torch.randn(1, 1, V, generator=g, dtype=torch.float64)).log_softmax(-1)
    one = torch.ones(1, 1, dtype=torch.bool)
    estimates = torch.stack([losses.sampled_kl(p[..., v], q[..., v], one) for v in range(V)]).flatten()
    assert abs((p.exp().flatten() * estimates).sum() - losses.exact_kl(p, q, one).item()) < 1e-14


def test_speak_projection_sums_the_mass_of_the_kind_and_does_not_prefer_a_word():
    logits = torch.randn(2, 3, V, generator=torch.Generator().manual_seed(5), dtype=torch.float64, requires_grad=True)
    tokens = torch.tensor([[0, 3, 5], [2, 0, -1]])
    log_probs = logits.log_softmax(-1)
    logp = losses.speak_logp(log_probs, tokens, {0, 2})
    silent = log_probs.exp()[..., [0, 2]].sum(-1)
    is_silent = torch.tensor([[1, 0, 0], [1, 1, 1]]).bool()
    assert torch.allclose(logp.exp(), torch.where(is_silent, silent, 1 - silent), atol=1e-14)
    logp[0, 1].backward()  # a word was said: all words gain in proportion to the mass they have
    words = [1, 3, 4, 5, 6]
    gain = logits.grad[0, 1, words] / log_probs.exp()[0, 1, words]
    assert torch.allclose(gain, gain[0].expand(5), atol=1e-12)
    assert gain[0] > 0


def test_diagnostics_of_parts_add_up_and_count_clipped_frames():
    x = batch(2, spread=0.4)
    whole = losses.diagnostics(x["logp"], x["old_logp"], x["advantages"], x["mask"], Clip(0.1))
    halves = [
        losses.diagnostics(x["logp"][s], x["old_logp"][s], x["advantages"][s], x["mask"][s], Clip(0.1))
        for s in (slice(0, 2), slice(2, B))
    ]
    for name in ("frames", "ratio", "approx_kl", "clip_low", "clip_high"):
        assert whole[name] == pytest.approx(halves[0][name] + halves[1][name], abs=1e-12)
    assert whole["ratio_max"] == max(half["ratio_max"] for half in halves)
    assert whole["clip_low"] > 0
    assert whole["clip_high"] > 0


@pytest.mark.parametrize("loss_type", losses.LOSS_TYPES)
def test_the_gradient_is_that_of_finite_differences(loss_type):
    x = batch(6, spread=0.05)  # inside the clip, where the loss is smooth

    def loss(logp: Tensor) -> Tensor:
        per_frame = losses.policy_loss(logp, x["old_logp"], x["advantages"], x["mask"], Clip(0.9))
        per_frame = per_frame + 0.1 * losses.sampled_kl(logp, x["ref_logp"], x["mask"])
        return losses.reduce_loss(
            per_frame, x["mask"], loss_type=loss_type, total_frames=float(x["mask"].sum()), total_rows=B
        )

    assert torch.autograd.gradcheck(loss, (x["logp"].clone().requires_grad_(),))


def test_the_gradient_of_the_whole_ppo_loss_is_that_of_finite_differences():
    """Policy, value, entropy and exact KL together, as functions of logits and predictions; inside both clips."""
    g = torch.Generator().manual_seed(7)
    mask = torch.tensor([[True, True, False], [True, False, True]])
    tokens = torch.randint(0, 4, (2, 3), generator=g)
    logits, start = (torch.randn(2, 3, 4, generator=g, dtype=torch.float64) for _ in range(2))
    old = logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0] + 0.01
    values, returns, advantages = (torch.randn(2, 3, generator=g, dtype=torch.float64) for _ in range(3))

    def loss(logits: Tensor, predicted: Tensor) -> Tensor:
        log_probs = logits.log_softmax(-1)
        logp = log_probs.gather(-1, tokens[..., None])[..., 0]
        per_frame = losses.policy_loss(logp, old, advantages, mask, Clip(0.5))
        per_frame = per_frame + 0.3 * losses.value_loss(predicted, values, returns, mask, 0.5)
        per_frame = per_frame + 0.1 * (log_probs.exp() * log_probs).sum(-1).masked_fill(~mask, 0.0)
        per_frame = per_frame + 0.2 * losses.exact_kl(log_probs, start.log_softmax(-1), mask)
        return losses.reduce_loss(per_frame, mask, loss_type="dapo", total_frames=4, total_rows=2)

    assert torch.autograd.gradcheck(loss, (logits.requires_grad_(), (values + 0.02).requires_grad_()))


def test_a_value_that_moved_beyond_the_clip_has_no_gradient_towards_its_return_and_keeps_it_away_from_it():
    old = torch.zeros(1, 4, dtype=torch.float64)
    values = torch.tensor([[0.5, -0.5, 0.1, 0.5]], dtype=torch.float64, requires_grad=True)
    returns = torch.tensor([[2.0, 2.0, 2.0, math.nan]], dtype=torch.float64)
    mask = torch.tensor([[True, True, True, False]])
    loss = losses.value_loss(values, old, returns, mask, 0.2)
    loss.sum().backward()
    # Too far towards the return: the clipped error counts; away from it: the plain one; near the old value: both agree.
    assert torch.allclose(loss, torch.tensor([[0.5 * 1.8**2, 0.5 * 2.5**2, 0.5 * 1.9**2, 0.0]], dtype=torch.float64))
    assert torch.allclose(values.grad, torch.tensor([[0.0, -2.5, -1.9, 0.0]], dtype=torch.float64))


@pytest.mark.parametrize("garbage", [1e6, math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("clip", [None, 0.1])
def test_garbage_in_masked_frames_changes_neither_value_loss_nor_gradient(garbage, clip):
    x = batch(8)
    results = []
    for fill in (0.0, garbage):
        values, old, returns = (x[n].masked_fill(~x["mask"], fill) for n in ("logp", "old_logp", "advantages"))
        values.requires_grad_()
        loss = losses.value_loss(values, old, returns, x["mask"], clip)
        loss.sum().backward()
        results.append((loss.detach(), values.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_an_unknown_loss_type_is_named():
    with pytest.raises(ValueError, match=r"loss_type 'bnpo' is unknown.*dapo"):
        losses.reduce_loss(torch.zeros(1, 1), torch.ones(1, 1), loss_type="bnpo", total_frames=1, total_rows=1)

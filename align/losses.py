"""Loss functions of policy optimisation on the frame clock. Pure functions of tensors; imports torch only.

Shapes: `B` conversations, `T` frames, `V` text tokens. One action a frame, so a "token" of a text trainer is a frame
here; where several streams of a frame have a ratio each, tensors of actions are `(B, S, T)` instead of `(B, T)`
(`align.ratios`). `mask` is True on what the policy sampled itself; a value outside it, garbage and infinities included,
never changes a result or a gradient.

Sources: PPO's clipped objective (arXiv 1707.06347), GRPO (arXiv 2402.03300), DAPO's frame-level mean
(arXiv 2503.14476), Dr. GRPO (arXiv 2503.20783), CISPO (arXiv 2506.13585), exact KL and text-only ratio
(arXiv 2606.11167), the speak/silent projection after arXiv 2604.10065 with the consistent marginal instead of its sum
of raw logits.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from align.ratios import MAX_LOG_RATIO, ratio

LOSS_TYPES = ("dapo", "grpo", "dr_grpo", "cispo")
KL_ESTIMATORS = ("exact", "k1", "k2", "k3")


@dataclass(frozen=True)
class Clip:
    """The ratio pi / pi_old is clipped to [1 - epsilon, 1 + epsilon_high]."""

    epsilon: float = 0.2
    epsilon_high: float | None = None
    """None: the same as `epsilon`."""

    @property
    def low(self) -> float:
        """Smallest ratio that still has a gradient where the advantage is negative."""
        return 1 - self.epsilon

    @property
    def high(self) -> float:
        """Largest ratio that still has a gradient where the advantage is positive."""
        return 1 + (self.epsilon if self.epsilon_high is None else self.epsilon_high)


def policy_loss(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip: Clip,
    level: str = "token",
    by_frame: bool = False,
) -> Tensor:
    """Clipped surrogate of each action, to be minimised.

    Args:
        logp: (B, T) or (B, S, T) log-probability of the sampled action under the policy being trained.
        old_logp: the same under the policy at the start of the iteration; no gradient flows into it.
        advantages: (B, T) credit of each frame.
        mask: bool, the shape of `logp`.
        level: what a ratio is about (`align.ratios.LEVELS`).
        by_frame: where frames share a ratio, each keeps its gradient to itself, as credit that differs between frames
            needs (`align.ratios`). What the clip holds is told by the shared ratio and the frame's own advantage.

    Returns:
        The shape of `logp`; zero where masked.
    """
    r = ratio(logp, old_logp, mask, level, by_frame)
    advantages = _of_actions(advantages, mask)
    clipped = r.clamp(clip.low, clip.high)
    return -torch.minimum(r * advantages, clipped * advantages).masked_fill(~mask, 0.0)


def cispo_loss(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip: Clip,
    level: str = "token",
) -> Tensor:
    """REINFORCE with the clipped ratio as a weight without gradient (CISPO): no action ever loses its gradient.

    Arguments and result are those of `policy_loss`; a frame's gradient is its own at every level. Published without a
    lower clip: `Clip(math.inf, ceiling - 1)`.
    """
    weight = ratio(logp, old_logp, mask, level).clamp(clip.low, clip.high).detach()
    return -weight * _of_actions(advantages, mask) * logp.masked_fill(~mask, 0.0)


def _of_actions(advantages: Tensor, mask: Tensor) -> Tensor:
    """(B, T) credit of frames for each action of them; zero where masked."""
    shared = advantages.unsqueeze(1) if mask.dim() > advantages.dim() else advantages
    return shared.expand_as(mask).masked_fill(~mask, 0.0)


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip: float | None) -> Tensor:
    """Half the squared error of the value function per frame, clipped as in PPO's reference implementation.

    Args:
        values: (B, T) predictions being trained.
        old_values: (B, T) predictions at the start of the iteration; no gradient flows into them.
        returns: (B, T) what they should have been.
        mask: (B, T) bool.
        clip: a prediction is not rewarded for moving further than this from the old one; None: it is.

    Returns:
        (B, T), the larger of the plain and the clipped error; zero on masked frames. Source: the form of TRL and verl
        (openai/baselines `ppo2`).
    """
    values, returns = values.masked_fill(~mask, 0.0), returns.detach().masked_fill(~mask, 0.0)
    error = (values - returns).square()
    if clip is not None:
        old = old_values.detach().masked_fill(~mask, 0.0)
        near = old + (values - old).clamp(-clip, clip)
        error = torch.maximum(error, (near - returns).square())
    return 0.5 * error


def exact_kl(log_probs: Tensor, ref_log_probs: Tensor, mask: Tensor) -> Tensor:
    """KL(policy || reference) per frame, summed over the whole vocabulary: sum of p log(p / q) - p + q.

    The last two sum to zero, but with them every token's part is at least zero, and the gradient at p = q is exactly
    zero instead of rounding noise, which Adam would blow up to steps of full size.

    Args:
        log_probs: (B, T, V) normalised log-probabilities of the policy; -inf where it gives no mass.
        ref_log_probs: (B, T, V) of the frozen reference. It must be finite wherever the policy has mass: pass
            distributions before top-k.
        mask: (B, T) bool.

    Returns:
        (B, T) in nats; zero on masked frames.
    """
    # A token without mass contributes 0, not 0 * inf; `where` before the product keeps the gradient finite as well.
    mass = mask.unsqueeze(-1) & torch.isfinite(log_probs)  # (B, T, V)
    logp = torch.where(mass, log_probs, 0.0)
    gap = torch.where(mass, log_probs - ref_log_probs, 0.0)
    p, q = logp.exp(), ref_log_probs.exp()
    return torch.where(mass, p * gap - p + q, q.masked_fill(~mask.unsqueeze(-1), 0.0)).sum(-1)


def sampled_kl(logp: Tensor, ref_logp: Tensor, mask: Tensor, estimator: str = "k3") -> Tensor:
    """KL(policy || reference) estimated from the sampled action only, with d = logp - ref.

    `k1` is d: unbiased, and as a reward it has the KL's policy gradient, which an exact KL there has not (it is the
    same whatever was sampled); as a loss its gradient is zero on average.
    `k2` is d^2 / 2: biased as a value, but as a loss on the policy's own samples it has the KL's gradient.
    `k3` is exp(-d) - 1 + d: unbiased and never negative; as a loss it has the gradient of the *other* KL,
    KL(reference || policy), unless it is multiplied by the ratio (`use_bias_correction_kl`).

    Args:
        logp, ref_logp: log-probability of the sampled action under the policy and the reference, any shape.
        mask: bool, that shape.

    Returns:
        That shape; zero where masked. Source: http://joschu.net/blog/kl-approx.html, k3 as TRL.

    Raises:
        ValueError: unknown `estimator`.
    """
    gap = (ref_logp.masked_fill(~mask, 0.0) - logp.masked_fill(~mask, 0.0)).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    if estimator == "k1":
        return -gap
    if estimator == "k2":
        return 0.5 * gap.square()
    if estimator == "k3":
        return gap.exp() - gap - 1
    raise ValueError(f"kl_estimator '{estimator}' samples nothing; use one of k1, k2, k3")


def speak_logp(log_probs: Tensor, tokens: Tensor, silent_ids: Collection[int]) -> Tensor:
    """Log-probability of the kind of action, speak or silent, that each sampled token belongs to.

    Its gradient moves the mass between the two kinds and leaves the choice among words as it is (to first order in
    the logits).

    Args:
        log_probs: (B, T, V) normalised log-probabilities of the text stream.
        tokens: (B, T) sampled tokens; -1, where there is none, counts as silence.
        silent_ids: tokens that say nothing (padding).

    Returns:
        (B, T).
    """
    silent = torch.zeros(log_probs.shape[-1], dtype=torch.bool, device=log_probs.device)  # (V,)
    silent[list(silent_ids)] = True
    chosen = (silent[tokens] | (tokens < 0)).unsqueeze(
        -1
    ) == silent  # (B, T, V): tokens of the same kind as the sampled one
    return torch.logsumexp(log_probs.masked_fill(~chosen, -torch.inf), dim=-1)


def reduce_loss(
    per_frame: Tensor,
    mask: Tensor,
    *,
    loss_type: str,
    total_frames: float,
    total_rows: float,
    world: int = 1,
    length: int | None = None,
) -> Tensor:
    """Sum a micro-batch so that all micro-batches of all ranks add up to the loss of the global batch.

    The optimiser averages over ranks, so a plain local mean is wrong as soon as conversations differ in active frames.
    This returns `sum / N_global * world`, which that average turns into `sum / N_global` exactly. The micro-batches of
    a rank are summed (`Engine.backward`); an optimiser that averages them needs their number as one more factor.

    Args:
        per_frame: (B, T) or (B, S, T) loss of each action, zero where masked.
        mask: bool, that shape.
        loss_type: what N counts. `dapo`, `cispo`: active actions. `grpo`: conversations, each averaged over its own
            active actions first. `dr_grpo`: conversations times `length`, whatever is active.
        total_frames, total_rows: active actions and conversations of the whole optimiser step, over all ranks.
        world: ranks that the optimiser averages over.
        length: frames of a whole conversation, the same on all ranks; None: T.

    Raises:
        ValueError: unknown `loss_type`.
    """
    if loss_type in ("dapo", "cispo"):
        total = per_frame.sum() / max(total_frames, 1.0)
    elif loss_type == "grpo":
        total = (per_frame.flatten(1).sum(-1) / mask.flatten(1).sum(-1).clamp(min=1)).sum() / max(total_rows, 1.0)
    elif loss_type == "dr_grpo":
        streams = math.prod(per_frame.shape[1:-1])
        total = per_frame.sum() / max(total_rows * streams * (length or per_frame.shape[-1]), 1.0)
    else:
        raise ValueError(f"loss_type '{loss_type}' is unknown; use one of {', '.join(LOSS_TYPES)}")
    return total * world


@torch.no_grad()
def diagnostics(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip: Clip,
    level: str = "token",
) -> dict[str, float]:
    """What an update looked like, as sums over active actions (divide by `frames`), so that ranks can be added up.

    Args: as `policy_loss`.

    Returns:
        `frames`; sums `ratio`, `approx_kl` (k3 of the step, old against new), `clip_low` and `clip_high` (actions
        that the clip holds: their gradient, or under CISPO their weight); and the largest single `ratio_max`.
    """
    r = ratio(logp, old_logp, mask, level)[mask]
    credit = _of_actions(advantages, mask)[mask]
    return {
        "frames": float(r.numel()),
        "ratio": float(r.sum()),
        "approx_kl": float((r - 1 - r.log()).sum()),
        "clip_low": float(((r < clip.low) & (credit < 0)).sum()),
        "clip_high": float(((r > clip.high) & (credit > 0)).sum()),
        "ratio_max": float(r.max()) if r.numel() else 1.0,
    }

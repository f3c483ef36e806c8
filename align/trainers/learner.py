"""A policy under the engine, next to what it was at the start: everything that a trainer asks of weights.

A trainer scores conversations with it, under the policy as it is and under the frozen start, and steps its engine.
With `values` a value head sits on the policy's hidden state. The head belongs to the learner, not to the policy: it is
trained, saved and resumed with the rest, and what the policy exports does not hold it.
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from align import losses
from align.engine import Engine, EngineConfig, adapters_off, add_lora, merge_lora
from align.policies.sampling import truncated_log_probs
from align.tally import Tally
from align.trainers.run_config import RunConfig
from align.value_head import ValueHead
from envs.errors import UptakeError

if TYPE_CHECKING:
    from align.policies.base import DuplexPolicy, Trajectory


@dataclass(frozen=True)
class Scored:
    """Teacher-forced scores of B conversations."""

    logp: Tensor
    """(B, T) of the text token."""
    entropy: Tensor
    """(B, T) nats of the text distribution."""
    values: Tensor | None
    """(B, T) float32: the value head's prediction before each frame's action; None without a head."""
    log_probs: Tensor | None
    """(B, T, V) of the whole text distribution, where it was asked for."""


@dataclass(frozen=True)
class Old:
    """An iteration's conversations under the policy that played them, recomputed by the forward that is trained."""

    trajectory: Trajectory
    logp: Tensor
    """(B, T) of what the objective calls the action."""
    values: Tensor | None
    """(B, T) float32; None without a value head."""
    mask: Tensor
    """(B, T) bool: frames that are learned from."""


def choose_trained(model: nn.Module, config: RunConfig) -> None:
    """Freeze a model, or give it adapters, as the run will."""
    if config.use_peft:
        add_lora(model, config.lora_target_modules, config.lora_r, config.lora_alpha)
    else:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not name.startswith(tuple(config.frozen)))


class Learner:
    """The policy that is trained, its engine, and its frozen start."""

    def __init__(
        self, policy: DuplexPolicy, config: RunConfig, *, values: bool = False, value_learning_rate: float | None = None
    ) -> None:
        """Freeze what stays, add what is new, keep the start, and hand the rest to DeepSpeed.

        Raises:
            UptakeError: nothing is left to train, or a value head is wanted on a policy without a hidden state.
        """
        self.policy, self.config = policy, config
        choose_trained(policy.model, config)
        keep = config.kl_weight and not config.use_peft
        frozen_copy = copy.deepcopy(policy.model).requires_grad_(False) if keep else None
        if values and not policy.spec.hidden:
            raise UptakeError(
                f"{config.section}: this policy shows no hidden state (spec.hidden is 0) for a value head; train it "
                "with grpo, which needs none"
            )
        head = ValueHead(policy.spec.hidden) if values else None
        self.engine = Engine(
            _Scorer(policy, head),
            EngineConfig(
                zero_stage=config.zero_stage,
                bf16=config.bf16,
                max_grad_norm=config.max_grad_norm,
                learning_rate=config.learning_rate,
                adam_beta1=config.adam_beta1,
                adam_beta2=config.adam_beta2,
                weight_decay=config.weight_decay,
                rate_factors={}
                if value_learning_rate is None
                else {"value_head.": value_learning_rate / config.learning_rate},
            ),
        )
        self._start: nn.Module | None = None
        if frozen_copy is not None:
            start = copy.copy(policy)  # shares the codec and the tokenizer; scoring keeps no state
            start.model = frozen_copy.to(self.engine.device, torch.bfloat16 if config.bf16 else None)
            self._start = _Scorer(start)

    # Scores ---------------------------------------------------------------------------------------------------------

    def score(self, trajectory: Trajectory, full: bool) -> Scored:
        """Under the policy as it is, with gradient unless the caller turned it off."""
        return _scored(self.engine(trajectory, full))

    @torch.no_grad()
    def score_start(self, trajectory: Trajectory, full: bool) -> Scored:
        """Under the policy that training started from."""
        if self._start is not None:
            return _scored(self._start(trajectory, full))
        with adapters_off(self.policy.model):
            return _scored(self.engine(trajectory, full))

    def action_logp(self, trajectory: Trajectory, scored: Scored) -> Tensor:
        """(B, T) log-probability of what the objective calls the action."""
        if self.config.streams == "text":
            return scored.logp
        assert scored.log_probs is not None
        silent = next(stream.silent_ids for stream in self.policy.spec.streams if stream.name == "text")
        return losses.speak_logp(scored.log_probs, trajectory.codes[:, 0], silent)

    def kl(self, trajectory: Trajectory, scored: Scored, mask: Tensor) -> Tensor:
        """(B, T) KL to the start, differentiable; `kl_estimator` says how."""
        exact = self.config.kl_estimator == "exact"
        start = self.score_start(trajectory, exact)
        if not exact:
            return losses.sampled_kl(scored.logp, start.logp, mask)
        assert scored.log_probs is not None and start.log_probs is not None
        return losses.exact_kl(scored.log_probs, start.log_probs, mask)

    @torch.no_grad()
    def kl_rewards(self, trajectory: Trajectory, mask: Tensor) -> Tensor:
        """(B, T) KL to the start as a cost of each frame.

        With `kl_estimator: sampled` it is the plain log-ratio of the sampled token (k1), not k3: as a reward only k1
        has the expectation, and the policy gradient, of the KL.
        """
        exact = self.config.kl_estimator == "exact"
        parts = []
        for at in range(0, mask.shape[0], self.config.per_device_train_batch_size):
            rows = slice(at, at + self.config.per_device_train_batch_size)
            part = trajectory.rows(rows)
            scored = self.score(part, exact)
            if exact:
                parts.append(self.kl(part, scored, mask[rows]))
            else:
                gap = scored.logp - self.score_start(part, False).logp
                parts.append(gap.clamp(-losses.MAX_LOG_RATIO, losses.MAX_LOG_RATIO).masked_fill(~mask[rows], 0.0))
        return torch.cat(parts)

    def recompute(self, trajectory: Trajectory, iteration: int, tally: Tally, *, full: bool) -> Old:
        """Score a rollout by the training forward, log the distance to what the sampler said, stop if it is too large.

        With the same `full` as the updates, the ratio of the first update is exactly 1 under top-k as well.

        Raises:
            UptakeError: the sampler and the training forward compute different policies.
        """
        config = self.config
        rows, size = trajectory.valid.shape[0], config.per_device_train_batch_size
        text, action, values = [], [], []
        with torch.no_grad():
            for at in range(0, rows, size):
                part = trajectory.rows(slice(at, at + size))
                scored = self.score(part, full)
                text.append(scored.logp)
                action.append(self.action_logp(part, scored))
                if scored.values is not None:
                    values.append(scored.values)
                tally.add("entropy", float(scored.entropy[part.valid].sum()), float(part.valid.sum()))
        logp = torch.cat(text)  # (B, T)
        # A token that a rounding put outside the top-k has no ratio.
        mask = trajectory.valid & ~torch.isneginf(logp) & ~torch.isneginf(trajectory.sampler_logp)
        gap = (logp - trajectory.sampler_logp)[mask].abs()
        total, count, lost = self.engine.total([float(gap.sum()), gap.numel(), float((trajectory.valid & ~mask).sum())])
        mean = total / max(count, 1.0)
        tally.add("sampling/sampling_logp_difference/mean", float(gap.sum()), gap.numel())
        tally.largest("sampling/sampling_logp_difference/max", float(gap.max()) if gap.numel() else 0.0)
        tally.add("sampling/outside_support", lost / max(count + lost, 1.0))
        if not mean <= config.max_sampling_logp_difference:  # a NaN stops the run as well
            raise UptakeError(
                f"iteration {iteration}: the training forward differs from the sampler by {mean:.3g} nats a frame, "
                f"more than {config.section}.max_sampling_logp_difference = {config.max_sampling_logp_difference}; the "
                "policy's `score` does not compute what its `step` sampled from"
            )
        return Old(trajectory, torch.cat(action), torch.cat(values) if values else None, mask)

    # Weights --------------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Leave the policy with whole, merged weights on every rank, for use without the other ranks."""
        self.engine.release()
        if self.config.use_peft:
            merge_lora(self.policy.model)


def tally_ratio(
    tally: Tally, logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor, clip: losses.Clip
) -> None:
    """Log what one micro-batch's ratios looked like; arguments as `losses.policy_loss`."""
    seen = losses.diagnostics(logp.detach(), old_logp, advantages, mask, clip)
    for name, key in _DIAGNOSTICS.items():
        tally.add(name, seen[key], seen["frames"])
    tally.largest("ratio/max", seen["ratio_max"])


_DIAGNOSTICS = {
    "ratio/mean": "ratio",
    "approx_kl": "approx_kl",
    "clip_ratio/low_mean": "clip_low",
    "clip_ratio/high_mean": "clip_high",
}


def _scored(tensors: dict[str, Tensor]) -> Scored:
    return Scored(tensors["logp"], tensors["entropy"], tensors.get("values"), tensors.get("log_probs"))


class _Scorer(nn.Module):
    """The policy's teacher-forced scoring, and the value head, as one module, so that DeepSpeed's hooks see them."""

    def __init__(self, policy: DuplexPolicy, value_head: ValueHead | None = None) -> None:
        super().__init__()
        self.model = policy.model
        self.value_head = value_head
        self._policy = [policy]  # in a list: a policy that is a module itself would be registered twice

    def forward(self, trajectory: Trajectory, full: bool) -> dict[str, Tensor]:
        if not full:
            scores = self._policy[0].score(trajectory)
            out = {"logp": scores.logp, "entropy": scores.entropy}
        else:
            # An exact KL needs the whole vocabulary: outside the top-k of one policy the other may have mass. The
            # action keeps the probability under which it was sampled.
            scores = self._policy[0].score(dataclasses.replace(trajectory, top_k=0), full=True)
            assert scores.log_probs is not None
            logp = scores.logp
            if trajectory.top_k:
                tokens = trajectory.codes[:, 0].clamp(min=0)  # (B, T)
                truncated = truncated_log_probs(scores.log_probs, 1.0, trajectory.top_k, keep=tokens)
                logp = truncated.gather(-1, tokens.unsqueeze(-1)).squeeze(-1).masked_fill(~trajectory.valid, 0.0)
            out = {"logp": logp, "entropy": scores.entropy, "log_probs": scores.log_probs}
        if self.value_head is not None:
            assert scores.hidden is not None
            out["values"] = self.value_head(scores.hidden)
        return out

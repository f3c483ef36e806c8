"""The choices of GRPO (`align.trainers.grpo`), with what arXiv 2606.11167 chose where it says so."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from align import advantages as adv
from align import losses
from envs.errors import UptakeError


@dataclass
class GrpoConfig:
    """Every choice of the algorithm. Names are those of TRL's `GRPOConfig` where it has the thing."""

    iterations: int = 20
    """Rollout-and-update rounds of the run."""
    frames: int = 150
    """Longest conversation, in frames of 80 ms; one ends earlier when its script is over."""
    num_groups: int = 5
    """Groups an iteration, over all ranks. Axes take turns, so a multiple of the number of axes balances each batch."""
    num_generations: int = 8
    """Conversations a group: same user, different sampling."""
    steps_per_generation: int = 2
    """Optimiser steps that one pass over the conversations is divided into; each takes some of every group."""
    num_iterations: int = 1
    """Passes over the conversations of an iteration."""
    per_device_train_batch_size: int = 8
    """Conversations a forward pass with gradient. Changes memory and speed, not the result."""

    learning_rate: float = 1e-5
    """Of AdamW. Published: 2e-7 for 7 billion parameters."""
    lr_scheduler_type: str = "constant"
    """constant, or cosine (to zero at the last step, as published)."""
    warmup_steps: int = 0
    """Optimiser steps over which the learning rate rises from zero."""
    adam_beta1: float = 0.9
    """Published: 0.9."""
    adam_beta2: float = 0.95
    """Published: 0.95."""
    weight_decay: float = 0.0
    """Published: 0.1."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm. Published: 2."""

    loss_type: str = "dapo"
    """What the loss is a mean of. dapo: active frames of the global batch; grpo: conversations, each a mean over its
    own active frames; dr_grpo: conversations times their full length."""
    streams: str = "text"
    """What the ratio is about. text: the sampled text token, as published; speak: only whether it is silent or not."""
    epsilon: float = 0.2
    """The ratio is clipped below at 1 - epsilon. Published: 0.2."""
    epsilon_high: float | None = None
    """The ratio is clipped above at 1 + epsilon_high; null: epsilon."""
    beta: float = 0.01
    """Weight of the KL to the policy that training started from. Published: 0.01. 0 keeps no reference."""
    kl_estimator: str = "exact"
    """exact: over the whole text vocabulary, as published; sampled: from the sampled token (k3)."""

    multi_objective_aggregation: str = "normalize_then_sum"
    """normalize_then_sum: every term is compared on its own (GDPO, as published); sum_then_normalize."""
    scale_rewards: str = "group"
    """group: advantages are divided by the group's standard deviation; none: they are not (Dr. GRPO)."""
    baseline: str = "mean"
    """What a conversation is compared with: mean of its group, or leave_one_out, the mean of the others (RLOO)."""
    credit: str = "event"
    """event: a judgement goes to the frames that earned it; uniform: to the whole conversation, as published."""
    shuffle_rewards: bool = False
    """Control experiment: judgements are dealt out at random inside each group. Such a run must learn nothing."""

    max_sampling_logp_difference: float = 0.05
    """Mean distance in nats between the sampler's log-probabilities and the training forward's at which the run
    stops."""
    nan_budget: int = 3
    """Updates that may be skipped because of a loss that is not a number, before the run stops."""

    zero_stage: int = 0
    """DeepSpeed ZeRO: 0 nothing sharded, 1 optimiser state, 2 gradients as well, 3 weights as well."""
    bf16: bool = False
    """Weights and arithmetic in bfloat16 with fp32 master weights."""
    frozen: list[str] = field(default_factory=lambda: ["depformer", "linears"])
    """Parameters whose names start with one of these stay as they are; the text objective does not reach them."""
    use_peft: bool = False
    """Train LoRA adapters instead of the weights; the reference is then the model without them."""
    lora_r: int = 16
    """Rank of the adapters."""
    lora_alpha: int = 32
    """Their scale is lora_alpha / lora_r."""
    lora_target_modules: str = r"transformer\..*"
    """Regular expression for the full names of the linear layers that get an adapter."""

    save_steps: int = 5
    """Iterations between checkpoints; the last iteration always writes one."""
    save_total_limit: int = 2
    """Checkpoints that are kept."""

    def check(self, world: int = 1) -> None:
        """Raise UptakeError for a value or a combination that cannot be trained with."""
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise UptakeError(f"grpo.{name} = {getattr(self, name)!r}: must be one of {', '.join(map(str, known))}")
        for name, least in _LEAST.items():
            if not getattr(self, name) >= least:
                raise UptakeError(f"grpo.{name} = {getattr(self, name)!r}: must be at least {least}")
        if self.num_generations % self.steps_per_generation:
            raise UptakeError(
                f"grpo.steps_per_generation = {self.steps_per_generation} does not divide "
                f"grpo.num_generations = {self.num_generations}"
            )
        if self.num_groups % world:
            raise UptakeError(f"grpo.num_groups = {self.num_groups} cannot be split over {world} ranks; use a multiple")
        if self.bf16 and not self.zero_stage:
            raise UptakeError(
                "grpo.bf16 = true needs grpo.zero_stage = 1, 2 or 3: stage 0 keeps no fp32 master weights"
            )
        if self.credit == "event" and self.multi_objective_aggregation != "normalize_then_sum":
            raise UptakeError("grpo.multi_objective_aggregation = sum_then_normalize needs grpo.credit = uniform")

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the run."""
        return self.iterations * self.num_iterations * self.steps_per_generation

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of an optimiser step, counted from 0."""
        rate = self.learning_rate
        if step < self.warmup_steps:
            rate *= (step + 1) / (self.warmup_steps + 1)
        if self.lr_scheduler_type == "cosine":
            rate *= 0.5 * (1 + math.cos(math.pi * step / max(self.total_steps, 1)))
        return rate


_CHOICES: dict[str, Sequence[Any]] = {
    "lr_scheduler_type": ("constant", "cosine"),
    "loss_type": losses.LOSS_TYPES,
    "streams": ("text", "speak"),
    "kl_estimator": ("exact", "sampled"),
    "multi_objective_aggregation": adv.AGGREGATIONS,
    "scale_rewards": adv.SCALES,
    "baseline": adv.BASELINES,
    "credit": adv.CREDITS,
    "zero_stage": (0, 1, 2, 3),
}
_LEAST: dict[str, float] = {
    "iterations": 1, "frames": 1, "num_groups": 1, "num_generations": 2, "steps_per_generation": 1,
    "num_iterations": 1, "per_device_train_batch_size": 1, "learning_rate": 0, "warmup_steps": 0, "weight_decay": 0,
    "max_grad_norm": 0, "epsilon": 0, "beta": 0, "max_sampling_logp_difference": 0, "nan_budget": 0, "lora_r": 1,
    "save_steps": 1, "save_total_limit": 1,
}  # fmt: skip

"""The choices of GRPO (`align.trainers.grpo`), with what arXiv 2606.11167 chose where it says so."""

from __future__ import annotations

import math
from dataclasses import dataclass

from align import advantages as adv
from align import losses, ratios
from align.trainers.run_config import CHOICES, LEAST, RunConfig
from envs.errors import UptakeError


@dataclass
class GrpoConfig(RunConfig):
    """Every choice of the algorithm. Names are those of TRL's `GRPOConfig` where it has the thing."""

    section = "grpo"
    choices = CHOICES | {
        "streams": ("text", "speak", "semantic", "all"),
        "loss_type": losses.LOSS_TYPES,
        "importance_sampling_level": ratios.LEVELS,
        "sampler_importance_sampling_mode": ratios.CORRECTIONS,
        "multi_objective_aggregation": adv.AGGREGATIONS,
        "scale_rewards": adv.SCALES,
        "baseline": adv.BASELINES,
        "credit": adv.CREDITS,
    }
    least = LEAST | {
        "num_groups": 1, "num_generations": 2, "steps_per_generation": 1, "num_iterations": 1, "epsilon": 0,
        "epsilon_high": 0, "beta": 0, "target_kl": 1e-9, "kl_horizon": 1, "max_num_gen_batches": 1,
        "sampler_importance_sampling_clip_max": 0, "sampler_importance_sampling_clip_min": 0,
    }  # fmt: skip

    num_groups: int = 5
    """Groups an iteration, over all ranks. Axes take turns, so a multiple of the number of axes balances each batch."""
    num_generations: int = 8
    """Conversations a group: same user, different sampling."""
    steps_per_generation: int = 2
    """Optimiser steps that one pass over the conversations is divided into; each takes some of every group."""
    num_iterations: int = 1
    """Passes over the conversations of an iteration."""
    max_num_gen_batches: int = 1
    """Rounds of conversations that an iteration may play. After each, groups in which all judgements were alike are
    drawn anew from their axis (DAPO's dynamic sampling; the name is verl's). 1: they stay, and teach nothing."""

    streams: str = "text"
    """What of a frame the ratio is about. text: the sampled text token, as published; speak: only whether it is silent
    or not; semantic: the text token and the agent's first codebook; all: the text token and every codebook. The last
    two train the depth transformer only if `frozen` lets them."""
    importance_sampling_level: str = "token"
    """What has one ratio. token: each token of each frame; frame: all streams of a frame together; stream: each stream
    over the whole conversation; sequence: all streams over the whole conversation (GSPO). With streams: text, token and
    sequence are all there is. Where advantages differ between frames (credit: event, use_kl_in_reward) a frame's
    gradient stays its own (GSPO-token)."""

    loss_type: str = "dapo"
    """What the loss is a mean of. dapo: active frames of the global batch; grpo: conversations, each a mean over its
    own active frames; dr_grpo: conversations times `frames`. cispo: as dapo, of another loss: the clipped ratio weighs
    the log-probability and has no gradient itself."""
    epsilon: float = 0.2
    """The ratio is clipped below at 1 - epsilon. Published: 0.2. With cispo there is no lower clip."""
    epsilon_high: float | None = None
    """The ratio is clipped above at 1 + epsilon_high; null: epsilon. DAPO: 0.28. With cispo it must be given and is the
    largest ratio itself, as in TRL (ScaleRL: 5)."""
    beta: float = 0.01
    """Weight of the KL to the policy that training started from. Published: 0.01. 0 keeps no reference."""
    use_bias_correction_kl: bool = False
    """A sampled KL in the loss is multiplied by the ratio: k1 and k3 then have the gradient of the KL they estimate."""
    target_kl: float | None = None
    """KL a frame at which `beta`, from its value on, is steered (arXiv 1909.08593); null: it stays."""
    kl_horizon: int = 2000
    """Conversations over which a `beta` that is wrong throughout grows or shrinks by a fifth."""
    sampler_importance_sampling_mode: str = "none"
    """How updates are weighed by the training forward's probability over the sampler's, where another precision or
    program sampled: none, token_truncate, token_mask, sequence_truncate or sequence_mask (TRL's names, with vllm_ for
    sampler_). The distance must stay below `max_sampling_logp_difference` all the same."""
    sampler_importance_sampling_clip_max: float | None = 3.0
    """Largest such weight: larger ones become it (truncate) or 0 (mask); null: no bound."""
    sampler_importance_sampling_clip_min: float | None = None
    """Smallest such weight; null: no bound."""

    multi_objective_aggregation: str = "normalize_then_sum"
    """normalize_then_sum: every term is compared on its own (GDPO, as published); sum_then_normalize."""
    scale_rewards: str = "group"
    """group: advantages are divided by the group's standard deviation; none: they are not (Dr. GRPO)."""
    baseline: str = "mean"
    """What a conversation is compared with: mean of its group; leave_one_out, the mean of the others (RLOO); none:
    nothing (REINFORCE++)."""
    normalize_advantages: bool = False
    """Advantages are whitened over all frames of the batch, on all ranks (REINFORCE++)."""
    credit: str = "event"
    """event: a judgement goes to the frames that earned it; uniform: to the whole conversation, as published."""

    @property
    def updates(self) -> int:
        """Optimiser steps an iteration."""
        return self.num_iterations * self.steps_per_generation

    @property
    def conversations(self) -> int:
        """Conversations an iteration, over all ranks."""
        return self.num_groups * self.num_generations

    @property
    def passes(self) -> int:
        """`num_iterations`."""
        return self.num_iterations

    @property
    def kl_weight(self) -> float:
        """`beta`."""
        return self.beta

    @property
    def kl_corrected(self) -> bool:
        """`use_bias_correction_kl`."""
        return self.use_bias_correction_kl

    @property
    def by_frame(self) -> bool:
        """Whether the frames of a conversation have advantages of their own."""
        return self.credit == "event" or self.use_kl_in_reward

    @property
    def full_old(self) -> bool:
        """Whether old log-probabilities need the whole distribution: with that of the updates, rounding is the same."""
        return self.full and self.streams != "text"

    @property
    def clip(self) -> losses.Clip:
        """What bounds the ratio."""
        if self.loss_type == "cispo":
            assert self.epsilon_high is not None
            return losses.Clip(math.inf, self.epsilon_high - 1)
        return losses.Clip(self.epsilon, self.epsilon_high)

    def check(self, world: int = 1) -> None:
        """Raise UptakeError for a value or a combination that cannot be trained with on `world` ranks."""
        super().check(world)
        for wrong, message in self._mistakes(world):
            if wrong:
                raise UptakeError(message)

    def _mistakes(self, world: int) -> list[tuple[bool, str]]:
        """Combinations that contradict each other, or of which one half would do nothing, each with its message."""
        low, high = self.sampler_importance_sampling_clip_min, self.sampler_importance_sampling_clip_max
        corrected = self.sampler_importance_sampling_mode != "none"
        return [
            (
                self.num_generations % self.steps_per_generation != 0,
                f"grpo.steps_per_generation = {self.steps_per_generation} does not divide "
                f"grpo.num_generations = {self.num_generations}",
            ),
            (
                self.num_groups % world != 0,
                f"grpo.num_groups = {self.num_groups} cannot be split over {world} ranks; use a multiple",
            ),
            (
                self.credit == "event" and self.multi_objective_aggregation != "normalize_then_sum",
                "grpo.multi_objective_aggregation = sum_then_normalize needs grpo.credit = uniform",
            ),
            (
                self.baseline == "none" and self.scale_rewards != "none",
                "grpo.baseline = none needs grpo.scale_rewards = none: a deviation is one from a mean",
            ),
            (
                self.baseline == "none" and self.max_num_gen_batches > 1,
                "grpo.max_num_gen_batches replaces groups that a baseline makes zero; grpo.baseline = none has none",
            ),
            (
                self.normalize_advantages and self.credit == "event",
                "grpo.normalize_advantages needs grpo.credit = uniform: the mean that it takes off would credit frames "
                "that no judgement is about",
            ),
            (
                self.loss_type == "cispo" and (self.epsilon_high is None or self.epsilon_high < 1),
                f"grpo.epsilon_high = {self.epsilon_high}: with grpo.loss_type = cispo it is the largest ratio, 1 or "
                "more; ScaleRL has 5",
            ),
            (
                self.streams in ("text", "speak") and self.importance_sampling_level in ("frame", "stream"),
                f"grpo.importance_sampling_level = {self.importance_sampling_level} is "
                f"{'token' if self.importance_sampling_level == 'frame' else 'sequence'} with grpo.streams = "
                f"{self.streams}, which is one stream; say so",
            ),
            (
                self.use_bias_correction_kl and not (self.kl_in_loss and self.kl_estimator in ("k1", "k3")),
                "grpo.use_bias_correction_kl needs a KL in the loss with grpo.kl_estimator = k1 or k3; there is none",
            ),
            (
                self.use_bias_correction_kl and self.streams == "speak",
                "grpo.use_bias_correction_kl with grpo.streams = speak: the ratio is not about the token that the KL "
                "is of; use grpo.kl_estimator = exact",
            ),
            (
                self.target_kl is not None and not self.beta,
                f"grpo.target_kl = {self.target_kl} with grpo.beta = 0: there is nothing to steer; give it a start",
            ),
            (
                self.target_kl is not None and self.kl_horizon < self.num_groups * self.num_generations,
                f"grpo.kl_horizon = {self.kl_horizon} is less than the {self.num_groups * self.num_generations} "
                "conversations of one iteration",
            ),
            (
                corrected and self.streams == "speak",
                "grpo.sampler_importance_sampling_mode with grpo.streams = speak: the sampler tells the probability of "
                "its token, not of its kind; use streams: text",
            ),
            (
                corrected and low is None and high is None,
                "grpo.sampler_importance_sampling_mode needs sampler_importance_sampling_clip_max or _clip_min",
            ),
            (
                not corrected and low is not None,
                f"grpo.sampler_importance_sampling_clip_min = {low} with grpo.sampler_importance_sampling_mode = none: "
                "there is nothing to clip; give a mode such as token_mask",
            ),
            (
                low is not None and high is not None and low >= high,
                f"grpo.sampler_importance_sampling_clip_min = {low} must be below "
                f"sampler_importance_sampling_clip_max = {high}",
            ),
        ]

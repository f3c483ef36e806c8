"""The choices of GRPO (`align.trainers.grpo`), with what arXiv 2606.11167 chose where it says so."""

from __future__ import annotations

from dataclasses import dataclass

from align import advantages as adv
from align import losses
from align.trainers.run_config import CHOICES, LEAST, RunConfig
from envs.errors import UptakeError


@dataclass
class GrpoConfig(RunConfig):
    """Every choice of the algorithm. Names are those of TRL's `GRPOConfig` where it has the thing."""

    section = "grpo"
    choices = CHOICES | {
        "loss_type": losses.LOSS_TYPES,
        "multi_objective_aggregation": adv.AGGREGATIONS,
        "scale_rewards": adv.SCALES,
        "baseline": adv.BASELINES,
        "credit": adv.CREDITS,
    }
    least = LEAST | {
        "num_groups": 1, "num_generations": 2, "steps_per_generation": 1, "num_iterations": 1, "epsilon": 0, "beta": 0,
    }  # fmt: skip

    num_groups: int = 5
    """Groups an iteration, over all ranks. Axes take turns, so a multiple of the number of axes balances each batch."""
    num_generations: int = 8
    """Conversations a group: same user, different sampling."""
    steps_per_generation: int = 2
    """Optimiser steps that one pass over the conversations is divided into; each takes some of every group."""
    num_iterations: int = 1
    """Passes over the conversations of an iteration."""

    loss_type: str = "dapo"
    """What the loss is a mean of. dapo: active frames of the global batch; grpo: conversations, each a mean over its
    own active frames; dr_grpo: conversations times their full length."""
    epsilon: float = 0.2
    """The ratio is clipped below at 1 - epsilon. Published: 0.2."""
    epsilon_high: float | None = None
    """The ratio is clipped above at 1 + epsilon_high; null: epsilon."""
    beta: float = 0.01
    """Weight of the KL to the policy that training started from. Published: 0.01. 0 keeps no reference."""

    multi_objective_aggregation: str = "normalize_then_sum"
    """normalize_then_sum: every term is compared on its own (GDPO, as published); sum_then_normalize."""
    scale_rewards: str = "group"
    """group: advantages are divided by the group's standard deviation; none: they are not (Dr. GRPO)."""
    baseline: str = "mean"
    """What a conversation is compared with: mean of its group, or leave_one_out, the mean of the others (RLOO)."""
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

    def check(self, world: int = 1) -> None:
        """Raise UptakeError for a value or a combination that cannot be trained with on `world` ranks."""
        super().check(world)
        if self.num_generations % self.steps_per_generation:
            raise UptakeError(
                f"grpo.steps_per_generation = {self.steps_per_generation} does not divide "
                f"grpo.num_generations = {self.num_generations}"
            )
        if self.num_groups % world:
            raise UptakeError(f"grpo.num_groups = {self.num_groups} cannot be split over {world} ranks; use a multiple")
        if self.credit == "event" and self.multi_objective_aggregation != "normalize_then_sum":
            raise UptakeError("grpo.multi_objective_aggregation = sum_then_normalize needs grpo.credit = uniform")

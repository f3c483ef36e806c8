"""The choices of PPO (`align.trainers.ppo`)."""

from __future__ import annotations

from dataclasses import dataclass

from align.trainers.run_config import LEAST, RunConfig
from envs.errors import UptakeError


@dataclass
class PpoConfig(RunConfig):
    """Every choice of the algorithm. Names are those of TRL's `PPOConfig` (1.12, the last with PPO), then verl's."""

    section = "ppo"
    least = LEAST | {
        "train_batch_size": 1, "num_mini_batches": 1, "num_ppo_epochs": 1, "value_learning_rate": 0, "gamma": 0,
        "lam": 0, "cliprange": 0, "cliprange_value": 0, "vf_coef": 0, "entropy_coeff": 0, "kl_coef": 0,
    }  # fmt: skip

    train_batch_size: int = 40
    """Conversations an iteration, over all ranks, each with a user of its own. Axes take turns, so a multiple of the
    number of axes balances each batch."""
    num_mini_batches: int = 2
    """Optimiser steps that one pass over the conversations is divided into."""
    num_ppo_epochs: int = 2
    """Passes over the conversations of an iteration."""

    value_learning_rate: float | None = None
    """Of the value head, which starts from nothing; null: learning_rate. It follows the same schedule."""
    gamma: float = 1.0
    """Discount a frame. 1 weighs a judgement alike wherever in the conversation it falls."""
    lam: float = 0.95
    """How far the advantage of a frame trusts what was earned over what the value function expects: 1 / (1 - lam)
    frames. 0.95 is 1.6 s."""
    cliprange: float = 0.2
    """The ratio is clipped to 1 - cliprange and 1 + cliprange."""
    cliprange_value: float | None = 0.2
    """How far a prediction may move in an iteration, in units of reward; null: as far as it likes."""
    vf_coef: float = 0.1
    """Weight of the value loss. Its gradient reaches the policy's own layers as well."""
    entropy_coeff: float = 0.0
    """Weight of the text distribution's entropy, in favour of it."""
    kl_coef: float = 0.05
    """Weight of the KL to the policy that training started from. 0 keeps no reference."""

    @property
    def updates(self) -> int:
        """Optimiser steps an iteration."""
        return self.num_ppo_epochs * self.num_mini_batches

    @property
    def conversations(self) -> int:
        """`train_batch_size`."""
        return self.train_batch_size

    @property
    def passes(self) -> int:
        """`num_ppo_epochs`."""
        return self.num_ppo_epochs

    @property
    def kl_weight(self) -> float:
        """`kl_coef`."""
        return self.kl_coef

    def check(self, world: int = 1) -> None:
        """Raise UptakeError for a value or a combination that cannot be trained with on `world` ranks."""
        super().check(world)
        for name in ("gamma", "lam"):
            if not getattr(self, name) <= 1:
                raise UptakeError(f"ppo.{name} = {getattr(self, name)!r}: must be at most 1")
        for name in ("vf_coef", "value_learning_rate"):
            if getattr(self, name) == 0:
                raise UptakeError(
                    f"ppo.{name} = 0: the value function would stay at 0 and expect nothing; give it more, or train "
                    "with grpo, which needs none"
                )
        if self.train_batch_size % (self.num_mini_batches * world):
            raise UptakeError(
                f"ppo.train_batch_size = {self.train_batch_size} cannot be split into ppo.num_mini_batches = "
                f"{self.num_mini_batches} on {world} rank{'s' * (world > 1)}; use a multiple of "
                f"{self.num_mini_batches * world}"
            )
        if self.value_learning_rate is not None and not self.learning_rate:
            raise UptakeError(
                "ppo.learning_rate = 0 with a ppo.value_learning_rate: both follow one schedule; give a small "
                "learning_rate such as 1e-12"
            )

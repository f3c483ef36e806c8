"""What GRPO and PPO are configured with alike: length, optimiser, adapters, stream, limits, checkpoints."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from align import losses
from align.alarms import AlarmConfig
from envs.clock import CLOCK
from envs.errors import UptakeError

CHOICES: dict[str, Sequence[Any]] = {
    "lr_scheduler_type": ("constant", "cosine"),
    "streams": ("text", "speak"),
    "kl_estimator": losses.KL_ESTIMATORS,
    "zero_stage": (0, 1, 2, 3),
    "offload": ("none", "optimizer", "all"),
}
LEAST: dict[str, float] = {
    "max_context_s": 0, "context_probability": 0,
    "iterations": 1, "frames": 1, "per_device_train_batch_size": 1, "learning_rate": 0, "warmup_steps": 0,
    "adam_beta1": 0, "adam_beta2": 0, "weight_decay": 0, "max_grad_norm": 0, "max_sampling_logp_difference": 0,
    "nan_budget": 0, "lora_r": 1, "lora_alpha": 1, "save_steps": 1, "save_total_limit": 1, "collective_timeout": 1,
    "log_episodes_steps": 0,
}  # fmt: skip


def check_numbers(config: Any, least: Mapping[str, float]) -> None:
    """Raise UptakeError for a number below its least, one that is not finite, or a decay of AdamW's that is none.

    Args:
        config: a section with its name in `section`.
        least: field -> what it must be at least, for every number in it; null is left alone.
    """
    for name, lowest in least.items():
        value = getattr(config, name)
        if value is None:
            continue
        if not value >= lowest:
            problem = f"at least {lowest}"
        elif not math.isfinite(value):
            problem = "finite"
        elif name.startswith("adam_beta") and value >= 1:
            problem = "below 1"
        else:
            continue
        raise UptakeError(f"{config.section}.{name} = {value!r}: must be {problem}")


@dataclass
class RunConfig(ABC):
    """The choices that are no algorithm's own. `GrpoConfig` and `PpoConfig` add theirs."""

    section = ""
    """What a configuration file calls the section; messages begin with it."""
    choices = CHOICES
    """Field -> what it may be."""
    least = LEAST
    """Number -> what it must be at least; null is left alone."""
    importance_sampling_level = "token"
    """What a ratio is about (`align.ratios`); a field where an algorithm has the choice."""

    iterations: int = 20
    """Rollout-and-update rounds of the run."""
    frames: int = 150
    """Longest conversation, in frames of 80 ms; one ends earlier when its script is over."""
    max_context_s: float = 0.0
    """Longest recorded stretch, in seconds, that conversations begin in the middle of (`align.context`); reached in the
    last iteration. Published: 30. 0: every conversation begins at its beginning."""
    context_probability: float = 0.5
    """Share of the groups that begin with one. Published: 0.5."""
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
    """Gradients are clipped to this norm; 0: they are not. Published: 2."""

    streams: str = "text"
    """What the ratio is about. text: the sampled text token, as published; speak: only whether it is silent or not."""
    kl_estimator: str = "exact"
    """In the loss exact, over the whole vocabulary, as published, or from the sampled token only k2 or k3; in the
    reward k1 (`align.losses.sampled_kl` says why)."""
    use_kl_in_reward: bool = False
    """true: each frame's KL is taken off its reward, so that the advantage of an action counts the drift that it leads
    to, and kl_estimator must be k1; false: it is a term of the loss, frame by frame."""
    shuffle_rewards: bool = False
    """Control experiment: judgements are dealt out at random. Such a run must learn nothing."""

    max_sampling_logp_difference: float = 0.05
    """Mean distance in nats between the sampler's log-probabilities and the training forward's at which the run
    stops."""
    nan_budget: int = 3
    """Updates that may be skipped because of a loss that is not a number, before the run stops."""

    zero_stage: int = 0
    """DeepSpeed ZeRO: 0 nothing sharded, 1 optimiser state, 2 gradients as well, 3 weights as well."""
    bf16: bool = False
    """Weights and arithmetic in bfloat16 with fp32 master weights."""
    offload: str = "none"
    """What waits in the CPU's memory while a GPU does not need it. none; optimizer: the optimiser's state and the fp32
    master weights (zero_stage 1 to 3); all: the weights as well (zero_stage 3)."""
    gradient_checkpointing: bool = False
    """Compute the activations of each layer of the temporal transformer again in the backward pass instead of keeping
    them: less memory, about a third more time, the same numbers."""
    collective_timeout: float = 1800.0
    """Seconds that a rank waits for the others; then the run ends with a line that names the one that is missing. Must
    be longer than the ranks' rollouts differ, a slow judge included."""
    frozen: list[str] = field(default_factory=lambda: ["depformer", "linears", "talker"])
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

    log_episodes_steps: int = 10
    """Iterations between those of which a conversation is kept: in `episodes/training/`, and as audio and timeline in
    wandb and TensorBoard. 0: none."""
    tensorboard: bool = False
    """Write metrics for TensorBoard as well, into `tensorboard/` of the run folder; needs `pip install
    uptake[tensorboard]`."""
    alarms: AlarmConfig = field(default_factory=AlarmConfig)
    """Signs that the reward is earned by a trick."""

    @property
    @abstractmethod
    def updates(self) -> int:
        """Optimiser steps an iteration."""

    @property
    @abstractmethod
    def conversations(self) -> int:
        """Conversations an iteration, over all ranks."""

    @property
    def context_frames(self) -> int:
        """Frames of the longest recorded stretch that a conversation begins in the middle of."""
        return CLOCK.frames_covering(CLOCK.nearest_sample(self.max_context_s))

    @property
    @abstractmethod
    def passes(self) -> int:
        """How often an iteration's updates go over its conversations."""

    @property
    @abstractmethod
    def kl_weight(self) -> float:
        """Weight of the KL to the policy that training started from; 0 keeps no reference."""

    @property
    def kl_corrected(self) -> bool:
        """Whether a sampled KL in the loss is multiplied by the ratio."""
        return False

    @property
    def kl_in_loss(self) -> bool:
        """Whether that KL is a term of the loss, and not of the reward."""
        return self.kl_weight > 0 and not self.use_kl_in_reward

    @property
    def full(self) -> bool:
        """Whether updates need the whole distribution of each action."""
        return self.streams == "speak" or (self.kl_in_loss and self.kl_estimator == "exact")

    def check(self, world: int = 1) -> None:
        """Raise UptakeError for a value or a combination that cannot be trained with on `world` ranks."""
        for name, known in self.choices.items():
            if getattr(self, name) not in known:
                allowed = ", ".join(map(str, known))
                raise UptakeError(f"{self.section}.{name} = {getattr(self, name)!r}: must be one of {allowed}")
        check_numbers(self, self.least)
        if self.kl_weight and self.use_kl_in_reward and self.kl_estimator != "k1":
            raise UptakeError(
                f"{self.section}.kl_estimator = '{self.kl_estimator}' with {self.section}.use_kl_in_reward: as a "
                f"reward only k1 has the policy gradient of the KL; give {self.section}.kl_estimator = k1, or take it "
                f"into the loss with {self.section}.use_kl_in_reward = false"
            )
        if self.use_kl_in_reward and not self.kl_weight:
            raise UptakeError(f"{self.section}.use_kl_in_reward = true: there is no KL, its weight is 0")
        if self.kl_in_loss and self.kl_estimator == "k1" and not self.kl_corrected:
            raise UptakeError(
                f"{self.section}.kl_estimator = 'k1' in the loss has no gradient on average; use exact, k2 or k3, or "
                f"{self.section}.use_kl_in_reward = true"
            )
        if self.context_probability > 1:
            raise UptakeError(f"{self.section}.context_probability = {self.context_probability}: must be at most 1")
        if self.max_context_s and not self.context_probability:
            raise UptakeError(
                f"{self.section}.max_context_s = {self.max_context_s:g} with {self.section}.context_probability = 0: "
                "no conversation would begin with a context; give a share, or max_context_s = 0"
            )
        self.alarms.check(self.section)
        if self.alarms.kl_above is not None and not self.kl_weight:
            raise UptakeError(
                f"{self.section}.alarms.kl_above = {self.alarms.kl_above:g}: there is no KL to watch, its weight is 0; "
                "give it one, or null for no alarm"
            )
        if self.offload != "none" and self.zero_stage < {"optimizer": 1, "all": 3}[self.offload]:
            raise UptakeError(
                f"{self.section}.offload = {self.offload!r} needs {self.section}.zero_stage = "
                f"{'3' if self.offload == 'all' else '1, 2 or 3'}, which keeps apart what is to be moved"
            )
        if self.bf16 and not self.zero_stage:
            raise UptakeError(
                f"{self.section}.bf16 = true needs {self.section}.zero_stage = 1, 2 or 3: stage 0 keeps no fp32 master "
                "weights"
            )

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the run."""
        return self.iterations * self.updates

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of an optimiser step, counted from 0."""
        rate = self.learning_rate
        if step < self.warmup_steps:
            rate *= (step + 1) / (self.warmup_steps + 1)
        if self.lr_scheduler_type == "cosine":
            rate *= 0.5 * (1 + math.cos(math.pi * step / max(self.total_steps, 1)))
        return rate

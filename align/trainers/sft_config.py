"""What `uptake sft` is configured with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from align import settings
from align.config import WandbConfig
from align.settings import Schema
from align.trainers.run_config import check_numbers
from envs.corpora.dialogues import AGENTS
from envs.corpora.layouts import READERS
from envs.errors import UptakeError, nearest

CHOICES: dict[str, Sequence[Any]] = {
    "lr_scheduler_type": ("constant", "cosine"),
    "zero_stage": (0, 1, 2, 3),
    "offload": ("none", "optimizer", "all"),
}
LEAST: dict[str, float] = {
    "iterations": 1, "frames": 2, "train_batch_size": 1, "per_device_train_batch_size": 1, "learning_rate": 0,
    "warmup_steps": 0, "adam_beta1": 0, "adam_beta2": 0, "weight_decay": 0, "max_grad_norm": 0,
    "text_padding_weight": 0, "first_codebook_weight": 0, "audio_weight": 0, "control_weight": 0, "response_gap_s": 0,
    "max_delay": 0, "delay": 0, "eval_steps": 0, "nan_budget": 0, "lora_r": 1, "lora_alpha": 1,
    "save_steps": 1, "save_total_limit": 1, "collective_timeout": 1,
}  # fmt: skip


@dataclass
class DataConfig:
    """The recordings that are learned from. `docs/training.md` says what they must look like."""

    path: str = ""
    """A folder of two-channel recordings with word times, or a manifest (JSON Lines)."""
    dev: str = ""
    """The same, to measure on and not to learn from; empty: none."""
    layout: str = ""
    """Of folders: plain, fisher, seamless, candor or lhotse; empty: found out."""
    agent: str = "first"
    """Which track is the agent's: first (the left channel, as in moshi-finetune), second, or both: then each recording
    is learned from twice, once from either side."""
    skip_unusable: bool = False
    """Leave recordings out that cannot be used, and count them, instead of ending the run with the first one's line."""


@dataclass
class SftConfig:
    """How it is learned from them."""

    section = "sft"

    iterations: int = 100
    """Optimiser steps of the run."""
    frames: int = 150
    """Length of a training example, in frames of 80 ms; recordings are cut into pieces so long. Published for Moshi:
    100 s (moshi-finetune), 1250 frames."""
    train_batch_size: int = 16
    """Examples an optimiser step, over all ranks. Published: 16 (moshi-finetune)."""
    per_device_train_batch_size: int = 16
    """Examples a forward pass. Changes memory and speed, not the result."""

    text_padding_weight: float = 0.5
    """Weight of PAD and EPAD in the text loss, where a word's piece has 1. Published: 0.5 (arXiv 2410.00037;
    moshi-finetune)."""
    first_codebook_weight: float = 100.0
    """Weight of the first (semantic) codebook in the audio loss, where the others have 1. Published: 100 (arXiv
    2410.00037; moshi-finetune's example, whose default is 1)."""
    audio_weight: float = 1.0
    """Weight of the audio loss beside the text loss. Published: 1. With 0 the voice stays as it is."""
    control_weight: float = 1.0
    """Lambda: weight of the streaming-control loss of a chunk policy. Published: 1 (arXiv 2606.05121)."""
    response_gap_s: float = 1.0
    """For a chunk policy: a longer silence of the agent ends a response. 1 s is what ends an utterance in arXiv
    2606.11167."""
    max_delay: int = 0
    """For a Moshi-class policy: the agent's text and audio are late against what it hears by a number of frames that is
    drawn anew for each example, uniformly from 0 to this, and the model is told which (arXiv 2509.08753). 0: never."""
    delay: int = 0
    """Which of these delays the policy that comes out is told for good, and is measured with. It may be changed on
    --resume."""

    learning_rate: float = 2e-6
    """Of AdamW. Published: 2e-6 for 7 billion parameters (moshi-finetune)."""
    lr_scheduler_type: str = "cosine"
    """constant, or cosine (to zero at the last step)."""
    warmup_steps: int = 0
    """Optimiser steps over which the learning rate rises from zero."""
    adam_beta1: float = 0.9
    """Published: 0.9."""
    adam_beta2: float = 0.95
    """Published: 0.95."""
    weight_decay: float = 0.1
    """Published: 0.1."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm; 0: they are not. Published: 1."""
    nan_budget: int = 3
    """Updates that may be skipped because of a loss that is not a number, before the run stops."""

    zero_stage: int = 0
    """DeepSpeed ZeRO: 0 nothing sharded, 1 optimiser state, 2 gradients as well, 3 weights as well."""
    bf16: bool = False
    """Weights and arithmetic in bfloat16 with fp32 master weights."""
    offload: str = "none"
    """What waits in the CPU's memory while a GPU does not need it. none; optimizer (zero_stage 1 to 3); all (3)."""
    gradient_checkpointing: bool = False
    """Compute the activations of each layer of the temporal transformer again in the backward pass."""
    collective_timeout: float = 1800.0
    """Seconds that a rank waits for the others; reading the recordings included."""
    frozen: list[str] = field(default_factory=list)
    """Parameters whose names start with one of these stay as they are."""
    use_peft: bool = False
    """Train LoRA adapters instead of the weights."""
    lora_r: int = 128
    """Rank of the adapters. Published: 128 (moshi-finetune's example)."""
    lora_alpha: int = 256
    """Their scale is lora_alpha / lora_r. Published: a scale of 2."""
    lora_target_modules: str = r".*"
    """Regular expression for the full names of the linear layers that get an adapter. Published: all."""

    eval_steps: int = 50
    """Iterations between measurements on `data.dev`; there is one at the end, too. 0: only that."""
    save_steps: int = 50
    """Iterations between checkpoints; the last iteration always writes one."""
    save_total_limit: int = 2
    """Checkpoints that are kept."""
    tensorboard: bool = False
    """Write metrics for TensorBoard as well; needs `pip install uptake[tensorboard]`."""

    def check(self, world: int = 1) -> None:
        """Raise UptakeError for a value or a combination that cannot be trained with on `world` ranks."""
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise UptakeError(f"sft.{name} = {getattr(self, name)!r}: must be one of {', '.join(map(str, known))}")
        check_numbers(self, LEAST)
        if self.train_batch_size % world:
            raise UptakeError(f"sft.train_batch_size = {self.train_batch_size}: not a multiple of the {world} ranks")
        if self.delay > self.max_delay:
            raise UptakeError(
                f"sft.delay = {self.delay}: the model is trained with delays up to sft.max_delay = {self.max_delay}; "
                "give one of these"
            )
        if self.offload != "none" and self.zero_stage < {"optimizer": 1, "all": 3}[self.offload]:
            raise UptakeError(
                f"sft.offload = {self.offload!r} needs sft.zero_stage = "
                f"{'3' if self.offload == 'all' else '1, 2 or 3'}, which keeps apart what is to be moved"
            )
        if self.bf16 and not self.zero_stage:
            raise UptakeError("sft.bf16 = true needs sft.zero_stage = 1, 2 or 3: stage 0 keeps no fp32 master weights")

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of an optimiser step, counted from 0."""
        rate = self.learning_rate
        if step < self.warmup_steps:
            rate *= (step + 1) / (self.warmup_steps + 1)
        if self.lr_scheduler_type == "cosine":
            rate *= 0.5 * (1 + math.cos(math.pi * step / max(self.iterations, 1)))
        return rate


@dataclass
class WarmStartConfig:
    """Everything that decides a warm start."""

    name: str = "sft"
    """The run folder's name."""
    runs: str = "runs"
    """The folder of run folders."""
    policy: str = "pocket"
    """The checkpoint that it starts from: `pocket`, or the path of a checkpoint folder of a Moshi-class or a chunk
    policy."""
    data: DataConfig = field(default_factory=DataConfig)
    seed: int = 0
    """Order of the examples, their delays, the adapters' first values."""
    sft: SftConfig = field(default_factory=SftConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.runs) / self.name


SCHEMA = Schema(WarmStartConfig, "sft.iterations=20", folder="sft")


def load_config(name_or_path: str, overrides: Sequence[str] = ()) -> WarmStartConfig:
    """Read a configuration and check it; `align.config.load_config` says how.

    Args:
        name_or_path: a name inside `configs/sft/` ("pocket") or the path of a YAML file.

    Raises:
        UptakeError: no such file, YAML that does not parse, an unknown key, a value of the wrong type or range.
    """
    config, given = SCHEMA.read(name_or_path, overrides)
    check = partial(settings.check, config, given)
    check(("seed",), lambda n: 0 <= n < 2**63, "must be 0 or more, and below 2**63")
    check(("name",), lambda n: bool(n) and Path(n).name == n, "must be one folder name, without '/'")
    check(("wandb", "mode"), lambda m: m in ("disabled", "offline", "online"), "must be disabled, offline or online")
    check(("data", "path"), bool, "give a folder of two-channel recordings with word times, or a manifest")
    check(("data", "agent"), lambda a: a in AGENTS, f"must be one of {', '.join(AGENTS)}")
    layout = config.data.layout
    check(("data", "layout"), lambda a: not a or a in READERS, f"no such layout{nearest(layout, READERS)}")
    return config

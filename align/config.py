"""A run's configuration: what `uptake train` reads.

`load_config("quickstart", ["seed=1"])` reads `configs/quickstart.yaml` (from the clone or from the installed wheel),
lays the overrides on top and returns a complete `TrainConfig`; mistakes are told as `align.settings` says.
`save_config` writes every field out, defaults included, so a run folder says what was done and not what was asked.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from align import settings
from align.policies.moshi.prompt import PromptConfig
from align.settings import Schema, Setting, dump
from align.trainers.grpo_config import GrpoConfig
from align.trainers.ppo_config import PpoConfig
from rewards.detector import DetectorConfig
from rewards.judge.config import JudgeConfig

names = settings.names

ALGORITHMS: dict[str, type[GrpoConfig] | type[PpoConfig]] = {"grpo": GrpoConfig, "ppo": PpoConfig}
"""Sections of which a configuration has exactly one: it says what is trained with."""


@dataclass
class EvaluationConfig:
    """What is measured before and after training."""

    split: str = "test"
    """Which scenarios: dev or test. Their voices and texts are in no training split."""
    variants: int = 4
    """How many times each scenario is played; variant v of a scenario sounds the same before and after."""
    frames: int = 150
    """Length of a conversation in frames of 80 ms."""
    batch: int = 32
    """Conversations played side by side. Changes speed and memory, no figure."""
    seed: int = 1234
    """Seeds the users' rooms and timing and the policy's sampling; the same for every seed of the training."""
    baselines: list[str] = field(default_factory=lambda: ["silent", "always_talking", "vad_200", "vad_700", "oracle"])
    """Scripted agents measured in the same table (names: `align.loading.BASELINES`)."""
    resamples: int = 2000
    """Bootstrap resamples behind every 95 % interval."""
    conversations: int = 6
    """How many conversations the report shows and plays, before and after."""


@dataclass
class WandbConfig:
    """Where metrics go besides `metrics.jsonl`."""

    mode: str = "offline"
    """offline (a folder inside the run that `wandb sync` uploads later), online or disabled."""
    project: str = "uptake"


@dataclass
class TrainConfig:
    """Everything that decides a run."""

    name: str = "run"
    """The run folder's name."""
    runs: str = "runs"
    """The folder of run folders."""
    policy: str = "pocket"
    """What training starts from: `pocket`, `cascade`, the path of a checkpoint folder, or a cascade's YAML file."""
    prompt: PromptConfig = field(default_factory=PromptConfig)
    """What its conversations begin with."""
    context: int = 0
    """Frames that a Moshi-class policy looks back, at most those of its checkpoint; the trained one's config.json says
    them. 0: as many as the checkpoint's."""
    pack: str = "core"
    """The scenarios and their audio: `core`, or the path of a pack folder."""
    users: str = ""
    """Other scenarios for the pack's audio: `reactive`, or the path of a YAML file. Empty: the pack's own."""
    axes: list[str] = field(default_factory=list)
    """Axes that the groups are drawn from, in turn (`align.curriculum.AXES`). Empty: all that the pack has."""
    acoustics: str = "clean"
    """How conversations sound that do not say it themselves, in training and when they are measured: a preset (`cafe`,
    `telephone`, ...; `mixed`: another one for every conversation), or a YAML file (docs/acoustics.md)."""
    seed: int = 0
    """Seeds the training: rollouts, batches, sampling."""
    rewards: dict[str, float] = field(default_factory=dict)
    """Reward term -> weight; 0 leaves it out. A term is a registered name, or `path/to/file.py:name`."""
    schedules: dict[str, dict[int, float]] = field(default_factory=dict)
    """Reward term -> {iteration: factor on its weight}, linear in between; terms without one keep their weight."""
    activity: DetectorConfig = field(default_factory=DetectorConfig)
    """Who is taken to speak when, in rewards and measures."""
    embedding: str = ""
    """Folder of the sentence encoder that terms on meaning compare texts with; empty: none (docs/judge.md)."""
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    """The language model that the terms which ask one are put to."""
    ranks: int = 1
    """Processes that `uptake train` starts on this machine, each with its share of the cores and the conversations; no
    two on one GPU. torchrun and `uptake launch` say themselves how many."""
    grpo: GrpoConfig | None = None
    """Train with GRPO; or"""
    ppo: PpoConfig | None = None
    """with PPO. Exactly one of the two is given."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.runs) / self.name

    @property
    def algorithm(self) -> GrpoConfig | PpoConfig:
        """The section that is given."""
        found = self.grpo or self.ppo
        assert found is not None  # load_config sees to it
        return found


SCHEMA = Schema(TrainConfig, "grpo.iterations=2", alternatives=ALGORITHMS)


def load_config(name_or_path: str, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a configuration and check it.

    A recipe for a large machine may have a section `small`: settings that `small=true` lays over the others, so that
    the same recipe runs on a laptop.

    Args:
        name_or_path: a name inside `configs/` ("quickstart", "recipes/published") or the path of a YAML file.
        overrides: `key=value` with dotted keys ("grpo.iterations=2"); the values are YAML.

    Raises:
        UptakeError: no such file, YAML that does not parse, an unknown key, a value of the wrong type or range.
    """
    config, given = SCHEMA.read(name_or_path, overrides)
    _check_values(config, given)
    return config


def save_config(config: TrainConfig, path: Path) -> None:
    """Write the resolved configuration, every field included, whole or not at all."""
    settings.save(config, path)


def dump_config(config: TrainConfig) -> str:
    """The resolved configuration as YAML."""
    return dump(config)


def _check_values(config: TrainConfig, given: Sequence[Setting]) -> None:
    """Ranges that a type does not say."""

    check = partial(settings.check, config, given)
    for name in ("variants", "frames", "batch", "resamples"):
        check(("evaluation", name), lambda n: n >= 1, "must be at least 1")
    for path in (("seed",), ("evaluation", "seed")):
        check(path, lambda n: 0 <= n < 2**63, "must be 0 or more, and below 2**63")
    check(("evaluation", "conversations"), lambda n: n >= 0, "must be 0 or more")
    check(("ranks",), lambda n: n >= 1, "must be at least 1")
    check(("context",), lambda n: n >= 0, "must be 0 or more")
    check(("evaluation", "split"), lambda s: s in ("train", "dev", "test"), "must be train, dev or test")
    check(("wandb", "mode"), lambda m: m in ("disabled", "offline", "online"), "must be disabled, offline or online")
    check(("name",), lambda n: bool(n) and Path(n).name == n, "must be one folder name, without '/'")
    for term in config.rewards:
        check(("rewards", term), math.isfinite, "a weight must be finite")
    for name, kind in SCHEMA.fields(type(config.algorithm)).items():
        if kind in (float, float | None):
            check((config.algorithm.section, name), lambda x: x is None or math.isfinite(x), "must be finite")

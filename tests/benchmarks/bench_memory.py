"""The memory that `--dry-run` plans beside what a run really takes.

    python -m tests.benchmarks.bench_memory [--dim 1024] [--layers 8] [--text 8000] [--full] [--recompute] [--fp32]

Trains a Moshi-class model of random weights for one iteration of GRPO (LoRA unless `--full`) in a process of its own
and prints one JSON line: GiB of every part as planned, the plan's sum, and the most that the process held beyond what
it held before there was a model. Then the plan for the published 7B shape as `recipes/moshi_lora_80gb` runs it; what a
frame keeps for the way back is that of one and of two of its layers, measured here, and so many more of the difference.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch

from align import checkpoints, curriculum, plan
from align.config import load_config
from align.memory import keep_memory, peak_memory
from align.policies.base import DuplexSpec
from align.policies.moshi.config import MoshiConfig
from align.policies.moshi.model import MoshiModel
from align.policies.moshi.policy import MoshiPolicy
from align.trainers import grpo
from align.trainers.grpo_config import GrpoConfig
from align.trainers.learner import choose_trained
from envs.duplex_vector_env import DuplexVectorEnv
from envs.pack import Pack
from rewards.compose import Composition
from tests.tiny_moshi import BlurCodec, tokenizer


class WideCodec(BlurCodec):
    """With as many codes as Mimi."""

    card = 2048


def policy_of(config: MoshiConfig, bf16: bool) -> MoshiPolicy:
    """Random weights; a tokenizer that knows only the first few text tokens."""
    torch.set_default_dtype(torch.bfloat16 if bf16 else torch.float32)  # no copy in another precision before
    model = MoshiModel(config, seed=0)
    torch.set_default_dtype(torch.float32)
    return MoshiPolicy(model, WideCodec(), tokenizer())


def world(learning: GrpoConfig) -> tuple[DuplexVectorEnv, Mapping[str, list[str]]]:
    """The run's conversations, and its scenarios by axis."""
    pack = Pack.load("core")
    env = DuplexVectorEnv(pack, learning.conversations, split="train", frames=learning.frames)
    return env, curriculum.cards(pack.scenarios("train"))


def planned(config: MoshiConfig, learning: GrpoConfig) -> dict[str, int]:
    """Bytes by part, as `--dry-run` has them; and what autograd keeps of a frame."""
    env, axes = world(learning)
    policy = policy_of(config, learning.bf16)
    choose_trained(policy.model, learning)
    names = [name for group in zip(*axes.values(), strict=False) for name in group]
    pace = plan.measure(policy, env, names, learning)
    needs = plan.memory(policy.model, policy.spec, learning, 1, pace.activations)
    return needs | {"of a frame": pace.activations}


def taken(config: MoshiConfig, learning: GrpoConfig) -> int:
    """Bytes that the process comes to hold in one iteration, beyond what it held after one with next to no model.

    Up to the checkpoint: what is written is copied to the memory of the host first, which is no device's.
    """
    keep_memory()
    env, axes = world(learning)
    least = {"dim": 32, "num_layers": 1, "num_heads": 2, "depformer_dim": 16, "depformer_num_layers": 1}
    train(replace(config, **least), learning, env, axes)
    gc.collect()
    before = psutil.Process().memory_info().rss
    peaks = []
    save = checkpoints.save_checkpoint

    def see(*arguments: Any, **options: Any) -> Any:
        peaks.append(peak_memory())
        return save(*arguments, **options)

    checkpoints.save_checkpoint = see
    train(config, learning, env, axes)
    return peaks[0] - before


def train(config: MoshiConfig, learning: GrpoConfig, env: DuplexVectorEnv, axes: Mapping[str, Sequence[str]]) -> None:
    """One iteration of a run."""
    with tempfile.TemporaryDirectory() as folder:
        policy = policy_of(config, learning.bf16)
        grpo.train(learning, policy, lambda rows: env, axes, Composition({"turn_taking": 1.0}), Path(folder))


def alone(task: Any, *arguments: Any) -> Any:
    """A task's result, from a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(task, arguments)


def told(parts: Mapping[str, int]) -> dict[str, float]:
    """GiB."""
    return {name: round(size / 2**30, 2) for name, size in parts.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--text", type=int, default=8000, help="text tokens")
    parser.add_argument("--full", action="store_true", help="no adapters")
    parser.add_argument("--recompute", action="store_true", help="gradient checkpointing")
    parser.add_argument("--fp32", action="store_true")
    given = parser.parse_args()
    config = MoshiConfig(
        dim=given.dim, num_layers=given.layers, num_heads=16, text_card=given.text, depformer_dim=256,
        depformer_num_layers=2, depformer_num_heads=4,
    )  # fmt: skip
    learning = GrpoConfig(
        iterations=1, frames=100, num_groups=2, num_generations=4, per_device_train_batch_size=2, lora_r=64,
        lora_alpha=128, use_peft=not given.full, bf16=not given.fp32, zero_stage=0 if given.fp32 else 1, beta=0.01,
        gradient_checkpointing=given.recompute, scale_rewards="none",
    )  # fmt: skip
    parts = alone(planned, config, learning)
    frame = parts.pop("of a frame")
    needs = {"planned": told(parts), "sum": told({"": sum(parts.values())})[""]}
    print(json.dumps(needs | {"taken": told({"": alone(taken, config, learning)})[""], "MiB a frame": frame / 2**20}))

    recipe = load_config("recipes/moshi_lora_80gb", []).grpo
    assert recipe is not None
    recipe = replace(recipe, gradient_checkpointing=given.recompute)
    published = MoshiConfig()
    few = replace(learning, num_groups=1, num_generations=2, frames=25)
    one, two = (alone(planned, replace(published, num_layers=n), few)["of a frame"] for n in (1, 2))
    activations = one + (published.num_layers - 1) * (two - one)
    with torch.device("meta"):
        model = MoshiModel(published)
    choose_trained(model, recipe)
    spec = DuplexSpec(24000, 1920, (), published.context, lived=38, cached=2 * published.num_layers * published.dim)
    parts = plan.memory(model, spec, recipe, 1, activations)
    print(
        json.dumps(
            {"7B planned": told(parts), "sum": told({"": sum(parts.values())})[""], "MiB a frame": activations / 2**20}
        )
    )


if __name__ == "__main__":
    main()

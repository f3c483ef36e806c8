"""GRPO and PPO teach a chunk-decision policy of random weights when to respond; its voice stays as it was."""

from __future__ import annotations

import json

import pytest
import torch

from align.policies.chunk.policy import ChunkPolicy
from align.policies.sampling import Sampling
from align.trainers import grpo, ppo
from align.trainers.grpo_config import GrpoConfig
from align.trainers.ppo_config import PpoConfig
from tests.toy_caller import FRAMES, Caller, Judge
from tests.unit.test_policy_chunk import tiny

COMMON = {
    "iterations": 10, "frames": FRAMES, "per_device_train_batch_size": 32, "learning_rate": 1e-2, "save_steps": 10,
}  # fmt: skip
RUNS = {
    "grpo": (grpo, GrpoConfig(**COMMON, num_groups=1, num_generations=32, steps_per_generation=2, beta=0.001)),
    "ppo": (ppo, PpoConfig(**COMMON, train_batch_size=32, num_mini_batches=2, num_ppo_epochs=2, kl_coef=0.001)),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_random_policy_learns_when_to_respond(tmp_path, name):
    trainer, config = RUNS[name]
    policy = tiny(Sampling(1.0, 0, 0.8, 0), context=64)
    voice = {key: value.clone() for key, value in policy.model.talker.state_dict().items()}
    trainer.train(config, policy, Caller, {"turn": ["call"]}, Judge(), tmp_path, seed=0)
    rewards = [json.loads(line)["reward"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert sum(rewards[-2:]) / 2 > sum(rewards[:2]) / 2 + 0.3, rewards
    assert all(torch.equal(value, voice[key]) for key, value in policy.model.talker.state_dict().items())
    again = ChunkPolicy.load(tmp_path / "policy", codec=policy.codec)
    assert torch.equal(again.model.text_linear.weight, policy.model.text_linear.weight)

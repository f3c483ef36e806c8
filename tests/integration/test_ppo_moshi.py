"""PPO on a Moshi-class policy in the real environment: the head on its temporal transformer, adapters, shards."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from align import curriculum
from align.policies.sampling import Sampling
from align.trainers import ppo
from align.trainers.ppo_config import PpoConfig
from envs.duplex_vector_env import DuplexVectorEnv
from rewards.compose import term_values
from rewards.verdict import Verdict
from tests import tiny_moshi
from tests.packs import tiny_pack


class Quiet:
    """Wants few words in the second second: something that even random weights differ in."""

    terms = weights = {"quiet": 1.0}
    schedules = {}

    def at(self, iteration):
        return self

    def score(self, episode):
        words = sum(24_000 <= word.onset < 48_000 for word in episode.transcript)
        return [Verdict(max(-1.0, 1.0 - words / 8), (24_000, 48_000), {}, "quiet", "second")]

    def start(self, episode):
        return lambda: self.score(episode)

    def total(self, verdicts):
        return term_values(verdicts)["quiet"]


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    return tiny_pack(tmp_path_factory.mktemp("pack"))


def train(pack, folder, top_k=0, **changes):
    policy = tiny_moshi.policy(Sampling(text_top_k=top_k))
    choices = {"iterations": 2, "frames": 40, "train_batch_size": 8, "learning_rate": 2e-3, "value_learning_rate": 1e-2}
    config = PpoConfig(**(choices | changes))
    scenarios = curriculum.cards(pack.scenarios("train"))
    metrics = ppo.train(
        config, policy, lambda rows: DuplexVectorEnv(pack, rows, frames=config.frames), scenarios, Quiet(), folder
    )
    assert metrics["grad_norm"] > 0
    return metrics


def changed(folder):
    """Names of the parameters that differ from the start, of a policy that was exported in the published layout."""
    start = dict(tiny_moshi.policy().model.state_dict())
    now = load_file(folder / "policy" / "model.safetensors")
    assert now.keys() == start.keys()  # no value head
    return {name for name, value in now.items() if not torch.equal(value, start[name])}


@pytest.fixture(scope="module")
def plain(pack, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    return folder, train(pack, folder)


def test_the_temporal_transformer_and_the_head_learn_and_the_depth_transformer_stays(plain):
    folder, metrics = plain
    names = changed(folder)
    assert any(name.startswith("transformer.") for name in names)
    assert "text_linear.weight" in names
    assert not any(name.startswith(("depformer", "linears")) for name in names)
    assert metrics["sampling/sampling_logp_difference/max"] < 1e-4
    assert metrics["kl"] > 0
    assert metrics["value/mean"] != 0


def test_under_top_k_the_first_ratio_is_exactly_one_as_well(pack, tmp_path):
    train(pack, tmp_path, top_k=6, iterations=1, num_mini_batches=1, num_ppo_epochs=1)
    (first,) = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert first["ratio/mean"] == first["ratio/max"] == 1.0
    assert first["kl"] == pytest.approx(0.0, abs=1e-7)


def test_sharded_weights_end_where_whole_ones_do(pack, plain, tmp_path):
    train(pack, tmp_path, zero_stage=3)
    ours, theirs = (load_file(f / "policy" / "model.safetensors") for f in (plain[0], tmp_path))
    for name, value in ours.items():
        assert torch.allclose(value, theirs[name], atol=1e-5), name


def test_lora_trains_adapters_and_the_whole_head(pack, tmp_path):
    train(pack, tmp_path, use_peft=True, lora_r=4, learning_rate=2e-2, use_kl_in_reward=True, kl_estimator="k1")
    names = changed(tmp_path)
    assert names
    assert all(name.startswith("transformer.") and name.endswith("weight") for name in names)
    saved = load_file(tmp_path / "checkpoints" / "iteration-000002" / "model.safetensors")
    assert {name for name in saved if "lora" not in name} == {
        f"value_head.{layer}.{kind}" for layer in ("inner", "out") for kind in ("weight", "bias")
    }

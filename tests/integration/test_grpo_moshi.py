"""GRPO on a Moshi-class policy in the real environment: every way to store the weights trains the same thing."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from align import curriculum
from align.lora import adapters
from align.policies.moshi.policy import MoshiPolicy
from align.policies.sampling import Sampling
from align.trainers import grpo
from align.trainers.grpo import GrpoConfig
from envs.duplex_vector_env import DuplexVectorEnv
from envs.errors import UptakeError
from rewards.compose import term_values
from rewards.verdict import Verdict
from tests import tiny_moshi
from tests.packs import tiny_pack

CONFIG = GrpoConfig(
    iterations=2, frames=40, num_groups=2, num_generations=4, steps_per_generation=2, learning_rate=2e-3, save_steps=2
)


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
    scenarios = curriculum.cards(pack.scenarios("train"))
    config = replace(CONFIG, **changes)
    metrics = grpo.train(
        config, policy, lambda rows: DuplexVectorEnv(pack, rows, frames=config.frames), scenarios, Quiet(), folder
    )
    assert metrics["reward_std"] > 0
    assert metrics["grad_norm"] > 0
    return policy, metrics


def changed(folder):
    """Names of the parameters that differ from the start, of a policy that was exported in the published layout."""
    start = dict(tiny_moshi.policy().model.state_dict())
    now = load_file(folder / "policy" / "model.safetensors")
    assert now.keys() == start.keys()
    return {name for name, value in now.items() if not torch.equal(value, start[name])}


@pytest.fixture(scope="module")
def plain(pack, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    return folder, *train(pack, folder)


def test_the_temporal_transformer_learns_and_the_depth_transformer_stays(plain):
    folder, _, metrics = plain
    names = changed(folder)
    assert any(name.startswith("transformer.") for name in names)
    assert "text_linear.weight" in names
    assert not any(name.startswith(("depformer", "linears")) for name in names)
    assert metrics["sampling/sampling_logp_difference/max"] < 1e-4
    assert metrics["kl"] > 0


def test_the_first_update_has_ratio_one(pack, tmp_path):
    train(pack, tmp_path, iterations=1, steps_per_generation=1)
    first = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert first["ratio/mean"] == pytest.approx(1.0, abs=1e-6)
    assert first["kl"] == pytest.approx(0.0, abs=1e-7)


def test_the_exported_policy_is_the_one_that_was_trained(plain):
    folder, policy, _ = plain
    again = MoshiPolicy.load(folder / "policy", Sampling(text_top_k=0), codec=tiny_moshi.BlurCodec())
    for one in (policy, again):
        one.reset(np.ones(2, bool), [1, 2])
    rng = np.random.default_rng(0)
    for _ in range(8):
        mic = rng.normal(0, 0.1, (2, 1920)).astype(np.float32)
        ours, theirs = policy.step(mic, np.ones(2, bool)), again.step(mic, np.ones(2, bool))
        assert np.array_equal(ours.tokens, theirs.tokens)
        assert np.array_equal(ours.audio, theirs.audio)


@pytest.mark.parametrize("stage", [2, 3])
def test_sharded_weights_end_where_whole_ones_do(pack, plain, tmp_path, stage):
    train(pack, tmp_path, zero_stage=stage)
    ours, theirs = (load_file(f / "policy" / "model.safetensors") for f in (plain[0], tmp_path))
    for name, value in ours.items():
        assert torch.allclose(value, theirs[name], atol=1e-5), name


@pytest.mark.parametrize("stage", [0, 3])
def test_lora_trains_linear_layers_of_the_temporal_transformer_and_is_merged_at_the_end(pack, tmp_path, stage):
    policy, metrics = train(pack, tmp_path, use_peft=True, lora_r=4, zero_stage=stage, learning_rate=2e-2)
    names = changed(tmp_path)
    assert names
    assert all(name.startswith("transformer.") and name.endswith("weight") for name in names)
    assert metrics["kl"] > 0
    assert not any("lora" in name for name, _ in policy.model.named_modules())


def test_lora_in_bfloat16_writes_all_that_it_learned(pack, tmp_path):
    """Merged into weights of bfloat16 most of it would be rounded away."""
    policy, _ = train(pack, tmp_path, use_peft=True, lora_r=4, zero_stage=1, bf16=True, learning_rate=2e-4)
    learned = adapters(policy.model)
    assert learned, "they stay beside the weights, for what is measured after training"
    start = {name: value.bfloat16().float() for name, value in tiny_moshi.policy().model.state_dict().items()}
    for name, value in load_file(tmp_path / "policy" / "model.safetensors").items():
        change = value - start[name]
        if (adapter := learned.get(name.removesuffix(".weight"))) is None:
            assert not change.any()
        else:
            assert adapter.change().any() and (change - adapter.change()).norm() < 1e-3 * adapter.change().norm()


def test_lora_without_a_layer_names_one(pack, tmp_path):
    with pytest.raises(UptakeError, match=r"'decoder.*' matches no linear layer; one is '"):
        train(pack, tmp_path, use_peft=True, lora_target_modules="decoder.*")


def test_top_k_keeps_the_ratio_and_the_kl_finite(pack, tmp_path):
    _, metrics = train(pack, tmp_path, top_k=6)
    assert metrics["sampling/sampling_logp_difference/max"] < 1e-4
    assert 0 < metrics["kl"] < 10


@pytest.mark.parametrize("stage", [1, 3])
def test_bfloat16_with_fp32_masters_stays_near_its_sampler(pack, tmp_path, stage):
    _, metrics = train(pack, tmp_path, zero_stage=stage, bf16=True)
    assert metrics["sampling/sampling_logp_difference/mean"] < 0.02
    assert changed(tmp_path)


def test_a_resumed_run_is_bit_identical(pack, tmp_path):
    train(pack, tmp_path / "whole", iterations=3, save_steps=1)
    train(pack, tmp_path / "parts", iterations=2, save_steps=1)
    policy = tiny_moshi.policy(Sampling(text_top_k=0))
    grpo.train(
        replace(CONFIG, iterations=3, save_steps=1),
        policy,
        lambda rows: DuplexVectorEnv(pack, rows, frames=CONFIG.frames),
        curriculum.cards(pack.scenarios("train")),
        Quiet(),
        tmp_path / "parts",
        resume=True,
    )
    whole, parts = (load_file(tmp_path / f / "policy" / "model.safetensors") for f in ("whole", "parts"))
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())


@pytest.mark.parametrize(
    ("streams", "level"),
    [("semantic", "frame"), ("all", "token"), ("all", "frame"), ("all", "stream"), ("all", "sequence")],
)
def test_audio_streams_in_the_objective_train_the_depth_transformer(pack, tmp_path, streams, level):
    _, metrics = train(
        pack, tmp_path, streams=streams, importance_sampling_level=level, frozen=[], steps_per_generation=1,
        sampler_importance_sampling_mode="sequence_truncate", iterations=1, save_steps=1,
    )  # fmt: skip
    names = changed(tmp_path)
    assert any(name.startswith("depformer.") for name in names)
    assert any(name.startswith("transformer.") for name in names)
    # The last codebook's head is trained exactly if all codebooks are in the objective.
    assert ("linears.7.weight" in names) == (streams == "all")
    assert "linears.0.weight" in names
    assert metrics["sampling/sampling_logp_difference/max"] < 1e-4
    assert metrics["ratio/mean"] == pytest.approx(1.0, abs=1e-6)  # one update: the policy is the one that played
    assert metrics["ratio/max"] == pytest.approx(1.0, abs=1e-5)
    assert metrics["kl"] == pytest.approx(0.0, abs=1e-6)
    assert metrics["sampling/importance_sampling_weight/mean"] == pytest.approx(1.0, abs=1e-2)

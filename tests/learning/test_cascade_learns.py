"""GRPO moves a cascade's threshold: an endpointer that answers into a pause learns to wait until the turn is over."""

from __future__ import annotations

import json

import pytest

from align.policies.cascade.config import CascadeConfig, LlmConfig, ReplyEndpoint
from align.policies.cascade.head import TurnHead
from align.policies.cascade.policy import CascadePolicy
from align.trainers import grpo
from align.trainers.grpo_config import GrpoConfig
from tests.judge_server import JudgeServer
from tests.packs import tiny_pack
from tests.toy_caller import FRAMES, Caller, Judge

READER = """
from envs.event import Word

def read(audio, rate):
    return [Word(f"frames{len(audio) // 1920}", 0, len(audio))]
"""


def run(pack, folder, llm=None, **changes):
    """Rewards of the iterations, and the thresholds before and after."""
    policy = CascadePolicy(pack, TurnHead(0.25, 0.3), CascadeConfig(response_s=0.0, llm=llm))
    before = policy.model.thresholds_s()
    config = GrpoConfig(
        **({
            "iterations": 10, "frames": FRAMES, "num_groups": 1, "num_generations": 24, "steps_per_generation": 2,
            "per_device_train_batch_size": 24, "learning_rate": 0.15, "beta": 0.0, "save_steps": 10,
        } | changes)
    )  # fmt: skip
    grpo.train(config, policy, Caller, {"turn": ["call"]}, Judge(), folder, seed=0)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["reward"] for line in lines], before, policy, folder


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    return tiny_pack(tmp_path_factory.mktemp("packs"))


def test_a_hasty_endpointer_learns_to_wait_and_its_threshold_rises(pack, tmp_path):
    rewards, before, policy, folder = run(pack, tmp_path)
    assert sum(rewards[:2]) / 2 < 0.4
    assert sum(rewards[-2:]) / 2 > sum(rewards[:2]) / 2 + 0.3
    after = policy.model.thresholds_s()
    assert after[0] > before[0] + 0.1
    exported = CascadePolicy.load(folder / "policy")
    assert exported.model.thresholds_s() == pytest.approx(after)


def test_it_learns_the_same_while_a_language_model_answers(pack, tmp_path, monkeypatch):
    """The pause is asked about again and again, and what the model says there is withdrawn or said like a clip."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reader.py").write_text(READER)
    clip = pack.clips("agent")[0]
    with JudgeServer(answer=lambda body: clip.text) as server:
        endpoint = ReplyEndpoint(base_url=server.url, model="tester")
        recogniser = f"{tmp_path / 'reader.py'}:read"
        llm = LlmConfig(endpoint=endpoint, recogniser=recogniser, ask_after_s=0.16, think_s=0.16)
        rewards, before, policy, _ = run(pack, tmp_path / "run", llm)
        assert server.requests
    assert sum(rewards[-2:]) / 2 > sum(rewards[:2]) / 2 + 0.3
    assert policy.model.thresholds_s()[0] > before[0] + 0.1


def test_with_shuffled_rewards_it_stays_hasty(pack, tmp_path):
    rewards, *_ = run(pack, tmp_path, shuffle_rewards=True)
    assert sum(rewards[-2:]) / 2 < 0.5

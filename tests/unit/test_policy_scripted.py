"""Fixed baselines through the contract, and a recording as one of them."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile

from align.evaluation import evaluate
from align.loading import BASELINES, find_scripted
from align.policies import checks
from align.policies.cascade.policy import CascadePolicy
from align.policies.scripted import ScriptedPolicy
from envs import agents
from envs.clock import CLOCK
from envs.duplex_vector_env import DuplexVectorEnv
from envs.errors import UptakeError
from tests.packs import tiny_pack

BLIND = {
    "silent": agents.Silent,
    "always_talking": agents.AlwaysTalking,
    "always_backchannel": agents.AlwaysBackchannel,
    "metronome": agents.Metronome,
    "vad_200": lambda rows, pack: agents.EnergyVad(rows, pack, ms=200),
    "vad_700": lambda rows, pack: agents.EnergyVad(rows, pack, ms=700),
}


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    return tiny_pack(tmp_path_factory.mktemp("packs"))


@pytest.mark.parametrize("name", BLIND)
def test_a_fixed_baseline_passes_every_check_that_applies(pack, name):
    checks.check_policy(ScriptedPolicy(lambda: BLIND[name](1, pack)), frames=40)


def test_a_replay_passes_every_check_that_applies():
    recorded = agents.Recorded(np.random.default_rng(0).normal(0, 0.1, 30 * 1920 + 7).astype(np.float32))
    checks.check_policy(ScriptedPolicy(lambda: agents.Replay(1, recorded)), frames=40)


def test_a_prompt_is_refused_before_anything_is_forgotten(pack):
    for policy in (ScriptedPolicy(lambda: agents.Silent(1, pack)), CascadePolicy(pack)):
        policy.reset(np.ones(2, bool), [1, 2])
        checks.play(policy, checks.noise_user(policy, 2, 5))
        with pytest.raises(ValueError, match="takes no prompt"):
            policy.reset(np.ones(3, bool), [1, 2, 3], prompts=[None, None, np.zeros(4)])
        assert policy.trajectory().codes.shape[::2] == (2, 5)


def test_every_baseline_but_the_oracle_is_a_policy(pack):
    assert set(BLIND) == set(BASELINES) - {"oracle"}


def test_a_policy_says_what_the_agent_says(pack):
    env = DuplexVectorEnv(pack, 1, frames=60)
    agent = agents.EnergyVad(1, pack, ms=200)
    policy = ScriptedPolicy(lambda: agents.EnergyVad(1, pack, ms=200))
    policy.reset(np.ones(1, bool), [0])
    agent.reset()
    obs, _ = env.reset(seed=1, options={"scenario": ["turn"]})
    said = []
    for _ in range(60):
        audio = agent.act(obs["mic"])
        step = policy.step(obs["mic"], np.ones(1, bool))
        assert np.array_equal(step.audio, audio)
        said += step.text[0].split()
        obs, *_ = env.step(audio)
    assert said == [word.text for word in agent.transcript(0)] and said
    with pytest.raises(TypeError, match="not trained"):
        policy.score(policy.trajectory())


def test_a_replayed_episode_gives_its_agent_and_its_words_again(pack, tmp_path):
    env = DuplexVectorEnv(pack, 1, frames=60)
    (first,) = agents.converse(env, agents.EnergyVad(1, pack, ms=200), 1, {"scenario": ["turn"]})
    first.save(tmp_path / "talk")
    (again,) = agents.converse(env, find_scripted(f"replay:{tmp_path / 'talk'}")(env), 1, {"scenario": ["turn"]})
    assert np.array_equal(again.agent, first.agent) and again.agent.any()
    assert again.transcript == first.transcript


def test_a_recording_of_another_rate_is_played_in_time_into_every_conversation(pack, tmp_path):
    file = tmp_path / "call.wav"
    left, right = np.zeros(3 * 16_000), np.zeros(3 * 16_000)
    right[16_000:32_000] = 0.5 * np.sin(2 * np.pi * 300 / 16_000 * np.arange(16_000))
    soundfile.write(file, np.stack((left, right), 1), 16_000)
    env = DuplexVectorEnv(pack, 2, frames=60)
    episodes = agents.converse(env, find_scripted(f"replay:{file}#1")(env), 1, {"scenario": ["turn", "story"]})
    for episode in episodes:
        loud = np.flatnonzero(np.abs(episode.agent) > 0.1)
        assert abs(loud[0] - CLOCK.sample_rate) < 100 and abs(loud[-1] - 2 * CLOCK.sample_rate) < 100
    found = evaluate(find_scripted(f"replay:{file}#1"), pack, "test", name="replay", variants=1, frames=40)
    assert found.episodes == 1


def test_a_replay_that_cannot_be_is_one_clear_line(tmp_path):
    soundfile.write(tmp_path / "two.wav", np.zeros((800, 2)), 8000)
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 8000)
    (tmp_path / "text.wav").write_text("no audio")
    for name, message in (
        ("nowhere.wav", "no such recording; .* counts from the working directory"),
        ("empty.wav", "empty.wav: holds no audio"),
        ("two.wav", "2 channels; say which"),
        ("two.wav#2", "no channel 2"),
        ("text.wav", "unreadable"),
    ):
        with pytest.raises(UptakeError, match=message) as error:
            find_scripted(f"replay:{tmp_path / name}")
        assert "\n" not in str(error.value)

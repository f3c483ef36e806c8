"""The public check: it passes on every id of ours, and each clause fails on what breaks it."""

from __future__ import annotations

import itertools

import gymnasium as gym
import numpy as np
import pytest
from typer.testing import CliRunner

from envs.agents import converse
from envs.checks import check_duplex_env, examine
from envs.clock import CLOCK
from envs.contract import QUICK, THOROUGH, Skip, Subject
from envs.duplex_env import DuplexEnv
from envs.duplex_vector_env import DuplexVectorEnv
from envs.episode import Episode
from envs.errors import UptakeError
from envs.event import Event
from envs.leak import auc, decision, probe
from envs.pack import Pack
from envs.registration import IDS
from launch.cli import app
from rewards.compose import OURS, Composition
from tests.packs import tiny_pack, write_tiny_pack
from tests.toy_codec import ToyCodec

F = CLOCK.frame
MAY_SKIP = {
    "Uptake/DuplexReactive-v0": {"silence identity"},
    "Uptake/DuplexSpeakerphone-v0": {"silence identity"},
    "Uptake/DuplexCanned-v0": {"impulse"},
    "Uptake/DuplexTokens-v0": {"impulse"},
    "Uptake/DuplexCodes-v0": {"impulse", "microphone"},
}


@pytest.fixture(scope="module")
def pack(tmp_path_factory) -> Pack:
    return tiny_pack(tmp_path_factory.mktemp("packs"))


@pytest.mark.parametrize("name", IDS)
def test_every_registered_environment_keeps_the_whole_contract(name):
    env = gym.make(name).unwrapped
    found = {finding.check: finding for finding in examine(env, hours=0.01, pairs=4, score=Composition(OURS))}
    assert set(found) == {*QUICK, *THOROUGH, "degenerate ranking"}
    assert not [finding for finding in found.values() if finding.result == "broken"]
    assert {check for check, finding in found.items() if finding.result == "skipped"} == MAY_SKIP.get(name, set())


def test_an_hour_of_conversation_drifts_by_no_sample(pack):
    said = THOROUGH["drift"](Subject(DuplexEnv(pack, frames=150), hours=1.0))
    assert said.startswith("0 samples in 1.00 h")


def test_one_conversation_of_an_hour_ends_on_its_sample(tmp_path):
    """45,000 frames; what is said in the last second lies where the scenario put it."""
    text = """\
schema: duplex.scenario/1
id: long
split: train
duration_s: {max: 3600}
user: {script: [{id: ask, type: A1, clip: ask, at: 0.5s}, {id: bye, type: A3, clip: digits, at: 3590.25s}]}
"""
    env = DuplexVectorEnv(Pack.load(write_tiny_pack(tmp_path / "p", text)), 1, frames=44_999)
    env.reset(seed=1)
    silence = np.zeros((1, F), np.float32)
    click = silence.copy()
    click[0, -1] = 0.5
    for k in itertools.count():
        _, _, terminated, truncated, info = env.step(click if k % 1000 == 999 else silence)
        if terminated or truncated:
            break
    episode = env.episode(0)
    assert info["t"][0] == pytest.approx((k + 2) * 0.08, abs=1e-6) and k > 44_800
    assert np.flatnonzero(episode.agent).tolist() == [(j + 2) * F - 1 for j in range(999, k + 1, 1000)]
    last = next(event for event in episode.events if event.id == "bye")
    assert last.onset == CLOCK.samples(3590.25) + env.pack.clip("digits").words[0].onset
    heard = np.flatnonzero(episode.user[last.onset - 2000 : last.offset])
    assert abs(heard[0] - 2000) < 20


class Broken(DuplexEnv):
    """The environment with one fault."""

    def __init__(self, pack, fault, **options):
        super().__init__(pack, **options)
        self.fault, self.steps, self.resets = fault, 0, 0

    def reset(self, *, seed=None, options=None):
        self.steps, self.resets = 0, self.resets + 1
        obs, info = super().reset(seed=seed, options=options)
        if self.fault == "counts resets":
            obs["mic"][0] = self.resets / 1000
        return obs, info

    def step(self, action):
        self.steps += 1
        if self.fault == "swallows late" and self.steps == 12:
            action = np.zeros_like(action)
        if self.fault == "accepts NaN":
            action = np.nan_to_num(np.resize(action, F)).astype(np.float32)
        obs, reward, terminated, truncated, info = super().step(action)
        if self.fault == "hears the action":
            obs["mic"] = np.clip(obs["mic"] + np.float32(0.1) * action, -1, 1)
        if self.fault == "echoes":
            obs["mic"] = np.clip(obs["mic"] + np.roll(np.float32(0.1) * action, 240), -1, 1)
        if self.fault == "slow clock":
            info["t"] *= 1.0001
        if self.fault == "silent":
            obs["mic"][:] = 0
        if self.fault == "loud":
            obs["mic"] = obs["mic"] + 1.5
        return obs, reward, terminated, truncated, info


@pytest.mark.parametrize(
    "fault, check, message",
    [
        ("counts resets", "same seed, same audio", "the same seed gave other audio"),
        ("silent", "microphone", "frame 1 is digital silence"),
        ("loud", "microphone", "exceeds full scale"),
        ("hears the action", "causality", "before it could be heard"),
        ("echoes", "silence identity", "conversation that ignores it"),
        ("accepts NaN", "bad actions", "NaN was accepted"),
        ("swallows late", "impulse", "action 11 was recorded at .., expected"),
        ("swallows late", "drift", "clicks of conversation 0"),
        ("slow clock", "drift", "count samples"),
    ],
)
def test_each_clause_names_what_breaks_it(pack, fault, check, message):
    subject = Subject(Broken(pack, fault, frames=30), hours=0.002)
    with pytest.raises(UptakeError, match=message):
        {**QUICK, **THOROUGH}[check](subject)


def test_a_sound_that_is_told_apart_before_it_comes_is_found(pack):
    """A pause's twin that is a little quieter from the start: what an environment with two ways of mixing would do."""

    class Leaky(DuplexEnv):
        def episode(self, transcript=None):
            episode = super().episode(transcript)
            goes_on = episode.meta["scenario"] in ("pause", "barge")
            gain = 1.0 if goes_on else 0.7
            return Episode(episode.mic * np.float32(gain), episode.user, episode.agent, episode.events)

        def twins(self):
            return [
                ({**one, "variant": v}, {**other, "variant": v}) for one, other in super().twins() for v in range(12)
            ]

    with pytest.raises(UptakeError, match=r"AUC \d\.\d+ over \d+ twins, 0 of them alike"):
        THOROUGH["leak"](Subject(Leaky(pack, frames=110), pairs=24))
    said = THOROUGH["leak"](Subject(DuplexEnv(pack, frames=110), pairs=24))
    assert said.startswith("AUC 0.500 over 2 twins, 2 of them alike")


def talk(*events: tuple[str, int, int]) -> Episode:
    sound = np.zeros(30_000, np.float32)
    return Episode(sound, sound, sound, [Event(name, name, "user", on, off) for name, on, off in events])


def test_the_decision_point_is_where_the_first_event_that_differs_ends_or_begins():
    pause, turn = talk(("A1", 100, 9000), ("B1", 4000, 6000)), talk(("A1", 100, 4000))
    assert decision(pause, turn) == (4000, True) and decision(turn, pause) == (4000, False)
    noise, none = talk(("A1", 100, 900), ("D4", 2000, 3000)), talk(("A1", 100, 900))
    assert decision(noise, none) == (2000, True) and decision(none, none) is None
    early, late = talk(("A1", 100, 900), ("C1", 2000, 3000)), talk(("A1", 100, 900), ("D4", 2500, 3000))
    assert decision(early, late) == (2000, True)


def test_the_area_under_the_curve_is_that_of_ranks():
    scores = np.array([0.1, 0.4, 0.35, 0.8])
    assert auc(scores, np.array([False, False, True, True])) == 0.75
    assert auc(np.zeros(4), np.array([False, True, True, False])) == 0.5
    assert auc(scores, np.ones(4, bool)) == 0.5
    assert probe([]).auc == 0.5


def test_agents_are_ranked_in_the_acoustics_of_the_environment(pack, monkeypatch):
    heard = set()

    def noted(env, *conversation):
        heard.add(env.acoustics.preset)
        return converse(env, *conversation)

    monkeypatch.setattr("envs.checks.converse", noted)
    found = list(examine(DuplexEnv(pack, frames=60, acoustics="telephone"), 0.001, 2, score=Composition(OURS)))
    assert heard == {"telephone"} and found[-1].check == "degenerate ranking"


def test_codes_of_an_own_codec_can_be_checked(pack):
    check_duplex_env(DuplexEnv(pack, frames=20, act=ToyCodec()))
    check_duplex_env(DuplexEnv(pack, frames=20, obs=ToyCodec()))


@pytest.mark.parametrize(
    "env, message",
    [
        (lambda pack: gym.make("CartPole-v1").unwrapped, "has no 'mic'"),
        (lambda pack: gym.wrappers.TransformAction(DuplexEnv(pack), None, gym.spaces.Box(-1, 1, (7,))), "action space"),
    ],
)
def test_what_is_no_duplex_environment_is_named(pack, env, message):
    with pytest.raises(UptakeError, match=message):
        check_duplex_env(env(pack))


def test_what_does_not_apply_is_skipped_with_its_reason(pack):
    class Bare(gym.Env):
        def __init__(self):
            self.inner = DuplexEnv(pack, frames=20)
            self.observation_space, self.action_space = self.inner.observation_space, self.inner.action_space

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return self.inner.reset(seed=seed, options=options)

        def step(self, action):
            return self.inner.step(action)

    subject = Subject(Bare())
    for check in ("silence identity", "impulse", "drift", "batch sizes", "processes", "leak"):
        with pytest.raises(Skip):
            {**QUICK, **THOROUGH}[check](subject)
    results = {finding.check: finding.result for finding in examine(Bare())}
    assert results["causality"] == "holds" and "broken" not in results.values()


def test_the_command_checks_an_id_and_says_by_its_status_whether_it_holds(tmp_path):
    pack = str(write_tiny_pack(tmp_path / "p"))
    small = ["--hours", "0.005", "--pairs", "2"]
    done = CliRunner().invoke(app, ["check-env", "Uptake/Duplex-v0", f"pack={pack}", "frames=120", *small])
    assert done.exit_code == 0 and "degenerate ranking" in done.output and "to the sample" in done.output
    gym.register("Tests/Silent-v0", entry_point=lambda: Broken(Pack.load(pack), "silent", frames=30))
    done = CliRunner().invoke(app, ["check-env", "Tests/Silent-v0", *small])
    assert done.exit_code == 1 and "digital silence" in done.output
    for arguments, message in (
        (["Uptake/Duplx-v0"], "did you mean 'Uptake/Duplex-v0'"),
        (["nowhere:Duplex-v0"], "No module named 'nowhere'"),
        (["Uptake/Duplex-v0", "frame=3"], "unexpected keyword argument 'frame'"),
        (["Uptake/Duplex-v0", "frames"], "'frames' is not key=value"),
        (["Uptake/Duplex-v0", "pack=["], "the value is no YAML"),
    ):
        done = CliRunner().invoke(app, ["check-env", *arguments])
        assert isinstance(done.exception, UptakeError) and message in str(done.exception), done.exception

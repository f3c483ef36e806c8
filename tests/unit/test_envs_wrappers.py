"""The wrappers: time to the sample, honest ledgers, state that goes on the same."""

from __future__ import annotations

import warnings

import gymnasium as gym
import numpy as np
import pytest
import soundfile
from gymnasium.utils.env_checker import check_env

from envs.activity import activity
from envs.clock import CLOCK
from envs.duplex_env import DuplexEnv
from envs.episode import Episode
from envs.errors import UptakeError
from envs.pack import Pack
from envs.wrappers import CodecTokens, Deadline, Latency, Record, Resample, TelephoneCall, Transcript
from envs.wrappers.resample import Stream
from tests.packs import tiny_pack
from tests.toy_codec import ToyCodec

F = CLOCK.frame


@pytest.fixture(scope="module")
def pack(tmp_path_factory) -> Pack:
    return tiny_pack(tmp_path_factory.mktemp("packs"))


def impulse(env: gym.Env, sample: int = 0) -> np.ndarray:
    action = np.zeros(env.action_space.shape, np.float32)
    action[sample] = 0.5
    return action


def silence(env: gym.Env) -> np.ndarray:
    return np.zeros(env.action_space.shape, env.action_space.dtype)


WRAPPERS = {
    "codec": lambda env: CodecTokens(env, ToyCodec()),
    "resample": lambda env: Resample(env, 16_000),
    "latency": lambda env: Latency(env, (10, 90), (0, 40)),
    "deadline": lambda env: Deadline(env, (0.05, 0.12)),
    "telephone": TelephoneCall,
    "transcript": Transcript,
    "all": lambda env: Resample(TelephoneCall(Deadline(Latency(Transcript(env), 30, 20), 0.09)), 8_000),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_wrapper_is_a_gymnasium_environment(pack, name):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(unwrapped version|does not have a spec|not having a spec).*")
        check_env(WRAPPERS[name](DuplexEnv(pack, frames=20)))


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_wrapper_that_is_set_back_goes_on_the_same(pack, name):
    def make() -> gym.Env:
        return WRAPPERS[name](DuplexEnv(pack, frames=80))

    env, other = make(), make()
    env.action_space.seed(3)
    env.reset(seed=2, options={"scenario": "pause"})
    talk = [env.action_space.sample() for _ in range(40)]
    for action in talk[:20]:
        env.step(action)
    state, rng = env.get_state(), env.np_random.bit_generator.state

    def rest(one: gym.Env) -> list:
        one.np_random.bit_generator.state = rng  # what is drawn per frame comes from the environment's generator
        return [one.step(action) for action in talk[20:]]

    first = rest(env)
    other.reset(seed=9)
    other.set_state(state)
    env.set_state(state)
    for found in (rest(env), rest(other)):
        for one, two in zip(first, found, strict=True):
            for key in one[0]:
                assert np.array_equal(one[0][key], two[0][key])
            assert one[1] == two[1]


def test_codes_are_heard_and_said(pack):
    env = CodecTokens(DuplexEnv(pack, frames=30), ToyCodec())
    obs, _ = env.reset(seed=1, options={"scenario": "turn"})
    assert set(obs) == {"codes"} and obs["codes"].tolist() == [0, 0]
    heard = [env.step(np.array([8, 0]))[0]["codes"] for _ in range(20)]
    assert max(code[0] for code in heard) >= 3  # tone bursts of the user, level 0.2 in sixteenths
    assert [code[1] for code in heard[1:]] == [code[0] for code in heard[:-1]]
    assert env.unwrapped.episode().agent[2 * F] == 0.25
    with pytest.raises(UptakeError, match="action holds 16"):
        env.step(np.array([16, 0]))


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 48_000])
def test_a_resampled_voice_is_the_voice_as_late_as_it_says(pack, rate):
    env = Resample(DuplexEnv(pack, frames=40), rate)
    obs, info = env.reset(seed=1, options={"scenario": "noise"})
    size = F * rate // CLOCK.sample_rate
    assert obs["mic"].shape == env.action_space.shape == (size,)
    t = np.arange(30 * size) / rate
    tone = (0.3 * np.sin(2 * np.pi * 500 * t)).astype(np.float32).reshape(30, size)
    for frame in tone:
        obs, *_ = env.step(frame)
        assert obs["mic"].shape == (size,)
    agent = env.unwrapped.episode().agent
    delay = Stream(rate, CLOCK.sample_rate, size).delay_seconds
    assert info["latency_ledger"]["resample_ms"] > 1000 * delay > 0
    n = np.arange(F * 5, F * 25)
    wanted = 0.3 * np.sin(2 * np.pi * 500 * ((n - F) / CLOCK.sample_rate - delay))
    assert np.abs(agent[n] - wanted).max() < 1e-3


def test_a_resampler_keeps_no_sound_that_the_lower_rate_cannot_hold():
    stream = Stream(24_000, 8_000, F)
    t = np.arange(20 * F) / 24_000
    above = np.sin(2 * np.pi * 6_000 * t).astype(np.float32).reshape(20, F)
    out = np.concatenate([stream.process(frame) for frame in above])
    assert out.size == 20 * F // 3 and np.abs(out[F:]).max() < 1e-3


def test_a_latency_is_exact_both_ways_and_in_the_ledger(pack):
    plain, late = DuplexEnv(pack, frames=30), Latency(DuplexEnv(pack, frames=30), to_user_ms=100, to_agent_ms=50)
    heard = []
    for env in (plain, late):
        obs, info = env.reset(seed=1, options={"scenario": "turn"})
        frames = [obs["mic"]]
        for k in range(20):
            obs, *_, info = env.step(impulse(env, 7) if k == 4 else silence(env))
            frames.append(obs["mic"])
        heard.append(np.concatenate(frames))
    assert info["latency_ledger"]["network_ms"] == 150
    assert np.flatnonzero(late.unwrapped.episode().agent).tolist() == [5 * F + 7 + 2400]
    assert np.array_equal(heard[0][:-1200], heard[1][1200:])
    assert np.array_equal(heard[1][:1200], heard[0][:F][::-1][:1200])  # no digital silence tells the delay


def test_a_range_of_latency_is_drawn_for_every_conversation_from_the_seed(pack):
    env = Latency(DuplexEnv(pack, frames=5), to_user_ms=(0, 400))
    drawn = [env.reset(seed=seed)[1]["latency_ledger"]["network_ms"] for seed in (1, 2, 1, None, None)]
    assert drawn[0] == drawn[2] and len(set(drawn)) == 4 and all(0 <= ms <= 400 for ms in drawn)


def test_a_policy_within_its_deadline_pays_the_buffer_and_nothing_else(pack):
    env = Deadline(DuplexEnv(pack, frames=30), seconds=0.08)
    env.reset(seed=1, options={"scenario": "turn"})
    for k in range(20):
        *_, info = env.step(impulse(env, 3) if k == 2 else silence(env))
        assert info["underrun_ms"] == 0 and info["real_time_factor"] == 1.0
    assert info["latency_ledger"]["compute_ms"] == 80
    assert np.flatnonzero(env.unwrapped.episode().agent).tolist() == [4 * F + 3]


def test_a_policy_slower_than_its_frame_loses_what_is_late_and_is_charged(pack):
    """At 100 ms a frame with 80 ms of buffer each frame is 20 ms later than the last, until nothing comes through."""
    env = Deadline(DuplexEnv(pack, frames=30), seconds=0.1, charge=2.0, abort_s=0.5)
    env.reset(seed=1, options={"scenario": "turn"})
    late, rewards, ends = [], [], []
    for _ in range(9):
        _, reward, _, truncated, info = env.step(np.full(F, 0.25, np.float32))
        late.append(info["underrun_ms"])
        rewards.append(reward)
        ends.append(truncated)
    assert late == [20, 40, 60, 80, 80, 80, 80, 80, 80]
    assert np.allclose(rewards, [-0.002 * ms for ms in late]) and info["real_time_factor"] == 1.25
    assert info["underrun_total_ms"] == sum(late) and ends.index(True) == int(np.argmax(np.cumsum(late) > 500))
    agent = env.unwrapped.episode().agent
    first = np.flatnonzero(agent)
    assert first[0] == 2 * F + 480 and agent[3 * F : 3 * F + 960].max() == 0 and not agent[5 * F :].any()


def test_a_deadline_can_be_measured_with_a_clock(pack):
    now = iter(np.cumsum([0, 0, 0.3, 0, 0.01, 0]).tolist())
    env = Deadline(DuplexEnv(pack, frames=30), clock=lambda: next(now))
    env.reset(seed=1)
    assert env.step(silence(env))[-1]["underrun_ms"] == 80
    assert env.step(silence(env))[-1]["underrun_ms"] == 80  # the backlog is worked off one frame after the other
    with pytest.raises(UptakeError, match="either seconds a frame or a clock"):
        Deadline(DuplexEnv(pack))


def test_a_telephone_is_narrow_and_as_late_as_it_says(pack):
    env = TelephoneCall(DuplexEnv(pack, frames=40))
    _, info = env.reset(seed=1, options={"scenario": "noise"})
    assert info["latency_ledger"]["telephone_ms"] == 15.0
    t = np.arange(F * 30) / CLOCK.sample_rate
    low, high = np.sin(2 * np.pi * 1000 * t), np.sin(2 * np.pi * 6000 * t)
    for k in range(30):
        env.step((0.2 * (low + high))[k * F : (k + 1) * F].astype(np.float32))
    agent = env.unwrapped.episode().agent[10 * F : 20 * F]
    power = np.square(np.abs(np.fft.rfft(agent)))
    hz = np.fft.rfftfreq(agent.size, 1 / CLOCK.sample_rate)
    assert power[np.abs(hz - 6000) < 5].sum() < 1e-3 * power[np.abs(hz - 1000) < 5].sum()
    onset = activity(env.unwrapped.episode().agent)[0, 0]
    assert abs(onset - (F + 180)) <= 240


def test_the_users_words_come_with_the_frame_in_which_they_are_over(pack):
    seen = {}
    for delay in (0.0, 0.5):
        env = Transcript(DuplexEnv(pack, frames=60), delay_s=delay)
        obs, _ = env.reset(seed=1, options={"scenario": "turn"})
        texts = [obs["text"]] + [env.step(silence(env))[0]["text"] for _ in range(50)]
        seen[delay] = [(k, text) for k, text in enumerate(texts) if text]
    (event,) = env.unwrapped.privileged()
    assert [text for _, text in seen[0.0]] == [word.text for word in event.words]
    assert [k for k, _ in seen[0.0]] == [(word.offset - 1) // F for word in event.words]
    assert [k for k, _ in seen[0.5]] == [(word.offset + 12_000 - 1) // F for word in event.words]


def test_every_finished_conversation_is_recorded_seen_and_heard(pack, tmp_path):
    env = Record(DuplexEnv(pack, frames=15), tmp_path / "kept", every=2)
    for conversation in range(3):
        env.reset(seed=conversation)
        for _ in range(15):
            env.step(np.full(F, 0.1, np.float32))
    env.reset()
    env.step(silence(env))  # broken off: not kept
    kept = sorted(path.name for path in (tmp_path / "kept").iterdir())
    assert kept == ["000000", "000002"]
    folder = tmp_path / "kept" / "000002"
    episode = Episode.load(folder)
    sound, rate = soundfile.read(folder / "stereo.wav", dtype="float32")
    assert rate == CLOCK.sample_rate and np.array_equal(sound, np.stack([episode.mic, episode.agent], axis=1))
    assert (folder / "timeline.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(UptakeError, match="exists already"):
        Record(DuplexEnv(pack), tmp_path / "kept")


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda e: Latency(DuplexEnv(e, act="canned"), 10), "Latency: action is Discrete.*frame of audio"),
        (lambda e: Latency(Resample(DuplexEnv(e), 16_000), 10), "action is Box.*put this wrapper inside"),
        (lambda e: Latency(DuplexEnv(e), -1), "to_user_ms=-1"),
        (lambda e: Latency(DuplexEnv(e), (5, 1)), r"to_user_ms=\(5, 1\)"),
        (lambda e: Resample(DuplexEnv(e), 22_051), "no whole number of samples at 22051 Hz"),
        (lambda e: Resample(DuplexEnv(e), 0), "rate 0 is no sample rate"),
        (lambda e: Deadline(DuplexEnv(e), (0.2, 0.1)), "seconds=.0.2, 0.1."),
        (lambda e: TelephoneCall(DuplexEnv(e), "mp3"), "'mp3' is none of g711u, none"),
        (lambda e: Transcript(DuplexEnv(e), -1), "nobody knows a word before it is over"),
        (lambda e: Transcript(gym.make("CartPole-v1")), "no privileged"),
        (lambda e: Record(DuplexEnv(e), "x", 0), "every=0"),
        (lambda e: CodecTokens(DuplexEnv(e), "nowhere:codec"), "No module named"),
    ],
)
def test_a_wrapper_that_cannot_be_is_named(pack, make, message):
    with pytest.raises(UptakeError, match=message):
        make(pack)


def test_audio_that_is_none_is_refused_by_every_wrapper(pack):
    for name in ("resample", "latency", "deadline", "telephone"):
        env = WRAPPERS[name](DuplexEnv(pack, frames=20))
        env.reset(seed=1)
        for bad in (silence(env)[:-1], silence(env) + np.nan, silence(env).astype(np.int16), silence(env)[:0]):
            with pytest.raises(UptakeError, match="action"):
                env.step(bad)
        env.step(silence(env))

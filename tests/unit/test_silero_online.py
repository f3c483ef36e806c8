"""Silero frame by frame is the detector `silero`, to the bit; and what a cascade with that ear can be held to."""

from __future__ import annotations

import numpy as np
import pytest

from align.policies import checks
from align.policies.cascade.config import CascadeConfig
from align.policies.cascade.head import TurnHead
from align.policies.cascade.policy import ACT, CascadePolicy
from align.policies.sampling import Sampling
from envs.clock import CLOCK
from envs.episode import Episode
from envs.pack import Pack
from rewards import silero
from rewards.detector import Activity, DetectorConfig
from rewards.silero_online import OnlineSilero

F = CLOCK.frame
GREEDY = Sampling(text_temperature=1.0, text_top_k=1)


@pytest.fixture(scope="module")
def core() -> Pack:
    return Pack.load("core")


def track(core: Pack, number: int, gap_s: float, gain: float = 1.0) -> np.ndarray:
    """(T, F): silence, a user's clip, a gap, another, silence."""
    spoken = [clip for clip in core.clips() if clip.said_as == "question"]
    gap = np.zeros(CLOCK.nearest_sample(gap_s), np.float32)
    parts = [np.zeros(7 * F, np.float32), spoken[number].audio, gap, spoken[-number - 1].audio, np.zeros(12 * F)]
    audio = (gain * np.concatenate(parts)).astype(np.float32)
    return audio[: audio.size // F * F].reshape(-1, F)


@pytest.mark.parametrize(("number", "gap_s", "gain"), [(0, 0.9, 1.0), (3, 0.2, 0.3), (5, 0.4, 2.0)])
def test_after_every_frame_it_knows_the_last_segment_of_the_detector(core, number, gap_s, gain):
    frames = track(core, number, gap_s, gain)
    audio = frames.reshape(-1)
    whole = Activity(Episode(audio, audio, audio), DetectorConfig("silero"))
    ear = OnlineSilero(1)
    found = 0
    for at, frame in enumerate(frames, 1):
        speaking = ear.update(frame[None])
        segments = whole.user(at * F)
        wanted = tuple(segments[-1]) if len(segments) else (-1, -1)
        assert (int(ear.onset[0]), int(ear.offset[0])) == wanted
        assert ear.now[0] == at * F and speaking[0] == (wanted[1] >= 0 and at * F - wanted[1] < F)
        found += wanted[1] >= 0
    assert found > 20


def test_its_probabilities_are_the_detectors_to_the_bit(core, monkeypatch):
    frames, heard = track(core, 1, 0.5), []
    follow = OnlineSilero._follow
    monkeypatch.setattr(OnlineSilero, "_follow", lambda ear, *a: (heard.append(a[2]), follow(ear, *a)))
    ear = OnlineSilero(1)
    for frame in frames:
        ear.update(frame[None])
    assert np.array_equal(np.array(heard, np.float32), silero.probabilities(frames.reshape(-1), CLOCK.sample_rate))


def test_rows_know_nothing_of_each_other_and_a_state_goes_on_where_it_was(core):
    one, other = track(core, 0, 0.5)[:60], track(core, 2, 0.5)[:60]
    alone, both = OnlineSilero(1), OnlineSilero(3)
    for frame in one[:30]:
        alone.update(frame[None])
    for mine, theirs in zip(one[:30], other[:30], strict=True):
        both.update(np.stack([theirs, mine, theirs]))
    both.fork(1, np.array([2]))
    kept = both.get_state()
    both.update(other[30:31].repeat(3, 0))
    both.set_state(kept)
    both.reset(np.array([True, False, False]))
    fresh = OnlineSilero(1)
    for at in range(30, 60):
        alone.update(one[at][None])
        fresh.update(other[at][None])
        both.update(np.stack([other[at], one[at], one[at]]))
        for name in ("onset", "offset", "speaking_for"):
            mine = getattr(both, name)
            assert mine[1] == mine[2] == getattr(alone, name)[0] and mine[0] == getattr(fresh, name)[0]
    assert both.onset[1] >= 0


def talkers(core: Pack):
    """`checks.noise_user` that speaks: Silero takes noise for none."""

    def user(policy, batch: int, frames: int, seed: int = 0) -> np.ndarray:
        rows = []
        for row in range(batch):
            audio = track(core, (2 * row + seed) % 11, 0.5 + 0.2 * row).reshape(-1, F)[5 + row :]
            rows.append(np.resize(audio, (frames, F)))
        return np.stack(rows, axis=1)

    return user


def test_a_cascade_with_this_ear_passes_every_check(core, monkeypatch):
    monkeypatch.setattr(checks, "noise_user", talkers(core))
    policy = CascadePolicy(core, TurnHead(0.3, 0.2), CascadeConfig(ear="silero"))
    checks.check_policy(policy, load=CascadePolicy.load, frames=70)


def test_it_answers_speech_and_not_a_noise_that_energy_answers(core):
    speech = track(core, 0, 0.3)[:, None]
    noise = np.zeros_like(speech)
    noise[5:20] = np.random.default_rng(0).normal(0, 0.1, noise[5:20].shape)
    for ear, user, answers in (("energy", noise, True), ("silero", noise, False), ("silero", speech, True)):
        policy = CascadePolicy(core, config=CascadeConfig(ear=ear), sampling=GREEDY)
        policy.reset(np.ones(1, bool), [0])
        acts = [step.tokens[0, 0] for step in checks.play(policy, user)]
        assert (ACT in acts) == answers, ear

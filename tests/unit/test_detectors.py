"""Who speaks when: one answer whatever follows, and how far the detectors are from the truth and from each other."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.activity import activity
from envs.episode import Episode
from envs.errors import UptakeError
from envs.event import Word
from envs.pack import Pack
from rewards import Composition
from rewards.detector import CODE_ACTIVITY, Activity, DetectorConfig, parse_detector

F = 1920


@pytest.fixture(scope="module")
def speech() -> Episode:
    """An agent of the core pack who says two things, 0.6 s apart."""
    clips = Pack.load("core").clips("agent")[:2]
    gap = np.zeros(14_400, np.float32)
    audio = np.concatenate([gap, clips[0].audio, gap, clips[1].audio, gap])
    audio = audio[: audio.size // F * F]
    starts = (gap.size, 2 * gap.size + clips[0].samples)
    words = tuple(
        Word(w.text, w.onset + at, w.offset + at) for clip, at in zip(clips, starts, strict=True) for w in clip.words
    )
    codes = "".join("1" if chunk.any() else "0" for chunk in audio.reshape(-1, F))
    return Episode(audio, audio, audio, transcript=words, meta={CODE_ACTIVITY: codes})


@settings(max_examples=25, deadline=None)
@given(share=st.floats(0, 1), detector=st.sampled_from(["energy", "silero", "codec", "text"]))
def test_what_was_heard_by_a_moment_does_not_depend_on_what_follows(speech, share, detector):
    end = int(share * speech.samples)
    config = DetectorConfig(detector)
    cut = replace(
        speech,
        **{name: getattr(speech, name)[:end] for name in ("mic", "user", "agent")},
        transcript=tuple(word for word in speech.transcript if word.onset < end),
    )
    assert np.array_equal(Activity(speech, config).agent(end), Activity(cut, config).agent(end))
    assert np.array_equal(Activity(speech, config).user(end), Activity(cut, config).user(end))


@settings(max_examples=50, deadline=None)
@given(end=st.integers(0, 200_000))
def test_energy_before_a_moment_is_the_activity_of_the_audio_before_it(speech, end):
    assert np.array_equal(Activity(speech).agent(end), activity(speech.agent[:end]))


@pytest.mark.parametrize("detector, onset, offset", [("energy", 0.06, 0.12), ("silero", 0.1, 0.2), ("text", 0.02, 0.4)])
@pytest.mark.parametrize("noise_db", [None, -62.0])
def test_detectors_agree_with_the_words_of_the_pack(speech, detector, onset, offset, noise_db):
    audio = speech.agent
    if noise_db is not None:
        audio = audio + (10 ** (noise_db / 20) * np.random.default_rng(0).standard_normal(audio.size)).astype("f4")
    heard = Activity(replace(speech, agent=audio), DetectorConfig(detector)).agent(audio.size)
    assert abs(heard[0, 0] - speech.transcript[0].onset) < onset * 24_000
    assert abs(heard[-1, 1] - speech.transcript[-1].offset) < offset * 24_000


def test_noise_that_energy_takes_for_speech_is_none_to_silero():
    noise = (10 ** (-38 / 20) * np.random.default_rng(0).standard_normal(96_000)).astype(np.float32)
    episode = Episode(noise, noise, noise)
    assert len(Activity(episode).agent(96_000)) == 1
    assert len(Activity(episode, DetectorConfig("silero")).agent(96_000)) == 0


def test_gaps_and_lengths_are_settings_of_every_detector(speech):
    for detector in ("energy", "silero", "codec", "text"):
        apart = Activity(speech, DetectorConfig(detector, merge_gap=0.1)).agent(speech.samples)
        joined = Activity(speech, DetectorConfig(detector, merge_gap=2.0)).agent(speech.samples)
        assert len(joined) == 1 <= len(apart), detector
        assert not len(Activity(speech, DetectorConfig(detector, min_length=60.0)).agent(speech.samples)), detector


def test_codes_that_are_not_there_are_an_error_with_the_way_out(speech):
    with pytest.raises(UptakeError, match="scripted agent samples none"):
        Activity(replace(speech, meta={}), DetectorConfig("codec")).agent(F)


@pytest.mark.parametrize(
    "settings, message",
    [
        (["silro"], "did you mean 'silero'"),
        (["merge_gp=1"], "did you mean 'merge_gap'"),
        (["merge_gap=soon"], "no number"),
        (["merge_gap=-1"], "0 or more"),
        (["on_db=-60"], "must not be above"),
        (["on_probability=0.1"], "off not above on"),
    ],
)
def test_a_mistake_in_the_choice_of_a_detector_is_one_line(settings, message):
    with pytest.raises(UptakeError, match=message) as caught:
        parse_detector(settings)
    assert "\n" not in str(caught.value)


def test_a_choice_is_a_detector_and_its_settings():
    assert parse_detector([]) is None
    assert parse_detector(["text", "merge_gap=0.5"]) == DetectorConfig("text", merge_gap=0.5)
    with pytest.raises(UptakeError, match="none"):
        Composition({"turn_taking": 1.0}, activity=DetectorConfig("ears"))


def test_silero_loads_without_torch():
    code = "import sys, rewards.silero; rewards.silero.model(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

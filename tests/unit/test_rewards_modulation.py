"""What moves as speech does: voices do, through a codec too; tones, buzzes and noise do not, however they swell."""

from __future__ import annotations

import numpy as np
import pytest

from envs.pack import Pack
from rewards.modulation import modulation
from rewards.quality import WORDS_A_SECOND, grade, hit_by_chance
from tests.unit.test_rewards_episodes import RATE, conversation, event, value, words

AT = np.arange(3 * RATE) / RATE
SWELL = 0.5 + 0.5 * np.sin(2 * np.pi * 4 * AT)
COLOURS = {"white": 0.0, "pink": 0.5, "brown": 1.0}


def noise(power: float) -> np.ndarray:
    """Noise whose amplitude falls with frequency to this power."""
    spectrum = np.fft.rfft(np.random.default_rng(1).standard_normal(AT.size))
    found = np.fft.irfft(spectrum / np.maximum(1, np.arange(spectrum.size)) ** power)
    return found / found.std()


STEADY = {
    "hum": np.sin(2 * np.pi * 150 * AT),
    "beat": np.sin(2 * np.pi * 150 * AT) + np.sin(2 * np.pi * 157 * AT),
    "buzz": 2 * ((110 * AT) % 1) - 1,
    **{name: noise(power) for name, power in COLOURS.items()},
}
DEAD = {
    **STEADY,
    "trill": np.sin(2 * np.pi * np.cumsum(np.where(SWELL > 0.5, 200, 400)) / RATE),
    "siren": np.sin(2 * np.pi * (100 * AT + 150 * AT**2)),
}


# A siren that swells as well has both: what is left open stands in docs/rewards.md.
@pytest.mark.parametrize("name, swells", [*((name, False) for name in DEAD), *((name, True) for name in STEADY)])
def test_what_is_no_voice_does_not_move_as_one(name, swells):
    audio = 0.1 * DEAD[name] * (SWELL if swells else 1.0)
    assert modulation(audio.astype(np.float32), RATE).missing > 0.2


@pytest.mark.parametrize("name", ["core", "taxonomy"])
def test_every_answer_of_the_packs_moves_twice_as_much_as_it_must(name):
    for clip in Pack.load(name).clips("agent"):
        found = modulation(clip.audio, RATE)
        assert found.level > 5.0 and found.timbre > 3.0, clip.id


@pytest.mark.parametrize("audio", [np.zeros(9600), np.zeros(0), np.full(9600, np.nan), np.full(9600, np.inf)])
def test_silence_and_what_is_no_sound_do_not_move(audio):
    assert modulation(audio.astype(np.float32), RATE).missing == 1.0


def test_naming_every_topic_answers_none_and_the_right_one_answers():
    topics = [["sunny", "rain"], ["train"], ["pizza", "oven"], ["piano"]]
    named = [topic[0] for topic in topics]
    soup = grade(named, ["sunny", "rain"], topics=topics)
    assert (soup.hit, soup.chance, soup.value) == (1.0, 1.0, -1.0)
    right = grade(["it", "will", "be", "sunny"], ["sunny", "rain"], topics=topics)
    assert (right.hit, right.chance, right.value) == (1.0, 0.0, 1.0)
    half = [grade(named[:2], topic, topics=topics) for topic in topics]
    assert sum(one.hit - one.chance for one in half) == pytest.approx(0.0)  # whatever is said to everybody
    assert hit_by_chance(named, ["sunny", "rain"], {("sunny", "rain"): 1.0}) == 0.0


def test_words_that_are_too_fast_to_be_spoken_do_not_count():
    ask = event("A1", 1.0, 3.0)
    meta = {"references": {ask.id: "one two three four five six seven eight nine ten eleven twelve"}}
    text = meta["references"][ask.id]
    slow = conversation([(3.3, 7.3)], [ask], transcript=words(text, 3.3, 0.3), meta=meta)
    fast = conversation([(3.3, 3.8)], [ask], transcript=words(text, 3.3, 0.04), meta=meta)
    assert 12 / (0.5 + 0.4) > WORDS_A_SECOND
    assert value("quality", slow) == pytest.approx(1.0)
    assert value("quality", fast) < 0.5

"""Other people: babble of several, or one second speaker whose words can be made out. Clips of the scenario's split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from envs.acoustics.noise import SPEECH_DB, amplitude
from envs.clock import CLOCK, Clock
from envs.episode import from_pcm16
from envs.event import Word

_BABBLE_GAP = 0.3  # seconds between what one of many talkers says


class Speech(Protocol):
    """What is needed of a pack's clip."""

    @property
    def voice(self) -> str:
        """Who speaks."""

    @property
    def words(self) -> tuple[Word, ...]:
        """What is said when."""

    @property
    def pcm(self) -> np.ndarray:
        """(n,) int16."""


@dataclass(frozen=True)
class Babble:
    """Many talkers at once."""

    talkers: float = 6.0
    """How many, rounded."""
    snr_db: float = 10.0


@dataclass(frozen=True)
class Speaker:
    """One other person, not talking to the agent."""

    snr_db: float = 10.0
    talk: float = 0.5
    """Share of the time in which they talk."""


def render_babble(
    babble: Babble, clips: Sequence[Speech], samples: int, rng: np.random.Generator, clock: Clock = CLOCK
) -> np.ndarray:
    """(samples,) float32."""
    sound = np.zeros(samples, np.float32)
    for _ in range(max(1, round(babble.talkers))):
        talker, _ = _monologue(clips, samples, _BABBLE_GAP, rng, clock)
        sound += talker * amplitude(float(rng.uniform(-3.0, 3.0)))
    level = np.sqrt(np.mean(np.square(sound, dtype=np.float64)))
    return sound * (amplitude(SPEECH_DB - babble.snr_db) / np.float32(max(level, 1e-6)))


def render_speaker(
    speaker: Speaker, clips: Sequence[Speech], samples: int, rng: np.random.Generator, clock: Clock = CLOCK
) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """(samples,) float32 and [onset, offset) of each utterance."""
    mean_clip = float(np.mean([len(clip.pcm) for clip in clips])) / clock.sample_rate
    gap = mean_clip * (1.0 - speaker.talk) / speaker.talk
    sound, spans = _monologue(clips, samples, gap, rng, clock)
    return sound * amplitude(-speaker.snr_db), spans


def _monologue(
    clips: Sequence[Speech], samples: int, gap: float, rng: np.random.Generator, clock: Clock
) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """One voice saying clip after clip at `SPEECH_DB`, with exponential gaps of mean `gap` seconds between them."""
    voices = sorted({clip.voice for clip in clips})
    voice = voices[int(rng.integers(len(voices)))]
    own = [clip for clip in clips if clip.voice == voice]
    sound = np.zeros(samples, np.float32)
    spans = []
    clip = own[int(rng.integers(len(own)))]
    # Whoever talks already when the conversation begins is somewhere in the middle of it.
    onset = -int(rng.integers(len(clip.pcm))) if rng.random() < 0.5 else int(rng.exponential(gap) * clock.sample_rate)
    while onset < samples:
        start, stop = max(0, onset), min(samples, onset + len(clip.pcm))
        sound[start:stop] = from_pcm16(clip.pcm[start - onset : stop - onset]) * _to_level(clip)
        spans.append((start, stop))
        onset = stop + int(rng.exponential(gap) * clock.sample_rate)
        clip = own[int(rng.integers(len(own)))]
    return sound, spans


def _to_level(clip: Speech) -> np.float32:
    spoken = np.concatenate([clip.pcm[word.onset : word.offset] for word in clip.words])
    level = np.sqrt(np.mean(np.square(from_pcm16(spoken), dtype=np.float64)))
    return amplitude(SPEECH_DB) / np.float32(max(level, 1e-4))

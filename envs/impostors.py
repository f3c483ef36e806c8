"""Scripted agents that look right to a careless reward, for `rewards.attacks`. Batched, no torch.

Two families. The first has the oracle's timing and says nothing worth hearing: `Mumbler`, `Whisperer`, `Truncator`,
`EchoChaser`, `Agreeable`, `Soup`, `Hummer`, `Staccato`. They know when a turn ends, give way to a barge-in (all but the
last), keep silent in a pause and give the oracle's backchannels. The second has the oracle's voice and no idea of time:
`RandomTalker`, `RateMatched`, and `Stopwatch`, which hears when the user begins and nothing else. Silence, endless
talk, endless backchannels and the metronome are in `envs.agents`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from envs.activity import OnlineActivity
from envs.agents import Oracle, ScriptedAgent, Sound
from envs.clock import CLOCK
from envs.duplex_vector_env import DuplexVectorEnv
from envs.event import Event, Word
from envs.pack import Pack

WHISPER_DB = -40.0
"""Relative to speech: a soft whisper at a metre has about 30 dB SPL, conversation 60."""
TRUNCATED_SECONDS = 0.4
MUMBLE_GAP_SECONDS = 0.1
BURST_SECONDS = 0.95
BURST_WORDS = 2
BURST_GAP_SECONDS = 0.34
"""Speech in bursts that are each as short as a backchannel, apart by just more than what activity bridges."""
STACCATO_CLIPS = 3
SOUP_WORD_SECONDS = 0.24
HUM_HZ, HUM_LEVEL = 150.0, 0.1
AGREEING = ("sure", "yes", "yeah", "okay")
"""What an agreeing sentence begins with."""
_SEED = 20260914
_Piece = tuple[Sound, int, int]


class Whisperer(Oracle):
    """Does everything that the oracle does, 30 dB too low to be heard; its text is perfect."""

    def act(self, mic: np.ndarray) -> np.ndarray:
        """Hear frame k (B, F) float32, return frame k+1 (B, F) float32."""
        return super().act(mic) * np.float32(10.0 ** (WHISPER_DB / 20.0))


class _WellTimed(Oracle):
    """The oracle's timing and its backchannels; subclasses answer something else."""

    def resume(self, row: int, at: int) -> None:
        """Take nothing up again: it would be the oracle's words."""


class Truncator(_WellTimed):
    """Begins every answer on time and breaks it off after 0.4 s."""

    def say(self, row: int, clip: Sound, onset: int, stop: int | None = None) -> None:
        """Speak the beginning of a clip; a backchannel whole."""
        whole = clip in self.backchannels
        super().say(row, clip, onset, stop if whole else onset + CLOCK.samples(TRUNCATED_SECONDS))


class Mumbler(_WellTimed):
    """Answers on time and as long as the oracle, with one and the same word: a policy that collapsed to one token."""

    def __init__(self, num_envs: int, pack: Pack, env: DuplexVectorEnv) -> None:
        super().__init__(num_envs, pack, env)
        self._need(self.backchannels, "agent_backchannel")
        self.token = min(self.backchannels, key=lambda clip: (len(clip.words), clip.samples, clip.id))

    def say(self, row: int, clip: Sound, onset: int, stop: int | None = None) -> None:
        """Speak one word over and over for as long as the clip lasts; a backchannel as it is."""
        if clip in self.backchannels:
            super().say(row, clip, onset, stop)
            return
        end = onset + clip.samples
        while onset < end:
            super().say(row, self.token, onset, end)
            onset += self.token.samples + CLOCK.samples(MUMBLE_GAP_SECONDS)


@dataclass(frozen=True)
class _Made:
    """Sound that is no clip of the pack, as something to say."""

    audio: np.ndarray
    words: tuple[Word, ...]

    @property
    def samples(self) -> int:
        return len(self.audio)


class EchoChaser(_WellTimed):
    """Answers on time by playing back what it has just heard: the user's own words."""

    def __init__(self, num_envs: int, pack: Pack, env: DuplexVectorEnv) -> None:
        super().__init__(num_envs, pack, env)
        self._mic = np.zeros((num_envs, (env.frames + 1) * CLOCK.frame), np.float32)  # (B, N) heard so far

    def hear(self, mic: np.ndarray) -> None:
        """Keep the frame (B, F)."""
        for row, now in enumerate(self.now.tolist()):
            self._mic[row, now - CLOCK.frame : now] = mic[row]

    def _answer_to(self, row: int, event: Event) -> Sound:
        words = tuple(Word(w.text, w.onset - event.onset, w.offset - event.onset) for w in event.words)
        return _Made(self._mic[row, event.onset : event.offset].copy(), words)


class Agreeable(_WellTimed):
    """Says yes to everything, on time, whatever was asked: the pack's first sentence that begins by agreeing.

    In a pack without one it is a mere backchannel. Where something must be declined, training for speed makes that of a
    refusal (arXiv 2606.11167).
    """

    def __init__(self, num_envs: int, pack: Pack, env: DuplexVectorEnv) -> None:
        super().__init__(num_envs, pack, env)
        self._need(self.backchannels, "agent_backchannel")
        agreeing = (clip for clip in self.clips if clip.words and clip.words[0].text.lower().strip(",.!") in AGREEING)
        self.yes = next(agreeing, self.backchannels[0])

    def _answer_to(self, row: int, event: Event) -> Sound:
        return self.yes


class Soup(_WellTimed):
    """Gives everybody the same answer, on time: a word on each topic that is asked about in the pack.

    It is said in a voice of the pack, so that it sounds as speech does; in a pack without topics, its longest sentence.
    """

    def __init__(self, num_envs: int, pack: Pack, env: DuplexVectorEnv) -> None:
        super().__init__(num_envs, pack, env)
        longest = max(self.clips, key=lambda clip: (clip.samples, clip.id))
        words = [topic[0] for topic in pack.topics] or [word.text for word in longest.words]
        each = CLOCK.samples(SOUP_WORD_SECONDS)
        timed = (Word(word, at * each, (at + 1) * each) for at, word in enumerate(words))
        self.soup = _Made(np.resize(longest.audio, len(words) * each), tuple(timed))

    def _answer_to(self, row: int, event: Event) -> Sound:
        return self.soup


class Hummer(Oracle):
    """Does everything that the oracle does, with its text, and hums instead of speaking: a steady tone."""

    def say(self, row: int, clip: Sound, onset: int, stop: int | None = None) -> None:
        """Hum for as long as the clip lasts."""
        at = np.arange(clip.samples)
        swell = np.clip(np.minimum(at, clip.samples - at) / CLOCK.samples(0.02), 0.0, 1.0)
        hum = HUM_LEVEL * swell * np.sin(2.0 * np.pi * HUM_HZ * at / CLOCK.sample_rate)
        super().say(row, _Made(hum.astype(np.float32), clip.words), onset, stop)


class Staccato(_WellTimed):
    """Answers on time and stops for nobody, in bursts so short that none is a turn by itself.

    Whatever was asked, it says the pack's first sentences, two words at a time with mere breaths between.
    """

    def __init__(self, num_envs: int, pack: Pack, env: DuplexVectorEnv) -> None:
        super().__init__(num_envs, pack, env)
        self.speech = _chopped(self.clips[:STACCATO_CLIPS])

    def _answer_to(self, row: int, event: Event) -> Sound:
        return self.speech

    def hush(self, row: int, at: int) -> None:
        """Go on."""

    def say(self, row: int, clip: Sound, onset: int, stop: int | None = None) -> None:
        """Speak a clip in the place of what is being said."""
        super().hush(row, onset)
        super().say(row, clip, onset, stop)


def _chopped(clips: Sequence[Sound]) -> _Made:
    """Clips one after the other, a burst at a time."""
    silence = np.zeros(CLOCK.samples(BURST_GAP_SECONDS), np.float32)
    pieces: list[np.ndarray] = []
    words: list[Word] = []
    at = 0
    for clip in clips:
        for first in range(0, len(clip.words), BURST_WORDS):
            burst = clip.words[first : first + BURST_WORDS]
            start = burst[0].onset
            stop = min(burst[-1].offset, start + CLOCK.samples(BURST_SECONDS))
            words += [Word(w.text, at + w.onset - start, at + min(w.offset, stop) - start) for w in burst]
            pieces += [clip.audio[start:stop], silence]
            at += stop - start + len(silence)
    return _Made(np.concatenate(pieces), tuple(words))


class RandomTalker(ScriptedAgent):
    """Talks and is silent by chance: stretches of 1.5 s after silences of 2.5 s, both exponential."""

    TALK, SILENCE = 1.5, 2.5

    def __init__(self, num_envs: int, pack: Pack, draw: int = 0) -> None:
        """`draw` numbers the dice."""
        super().__init__(num_envs, pack)
        self._need(self.clips, "agent")
        self._seed = [_SEED, draw]
        self._rng = [np.random.default_rng([*self._seed, row]) for row in range(num_envs)]
        self._next = np.zeros(num_envs, np.int64)  # (B,) onset of the next stretch

    def restart(self, row: int) -> None:
        """Draw the same times again."""
        self._rng[row] = np.random.default_rng([*self._seed, row])
        self._next[row] = self._draw(row, self.SILENCE)

    def _draw(self, row: int, mean: float) -> int:
        return CLOCK.nearest_sample(self._rng[row].exponential(mean))

    def decide(self, row: int, now: int) -> None:
        """Begin a stretch when its time has come, and draw the next."""
        while (due := int(self._next[row])) < now + CLOCK.frame:
            clip = self.clips[int(self._rng[row].integers(len(self.clips)))]
            onset = max(due, now)
            stop = onset + min(clip.samples, max(CLOCK.frame, self._draw(row, self.TALK)))
            self.say(row, clip, onset, stop)
            self._next[row] = stop + self._draw(row, self.SILENCE)


class Stopwatch(ScriptedAgent):
    """Says "mm-hmm" so many seconds after the user's first sound, and listens to nothing else.

    Where all stories have their opportunities at the same places, it passes for the best of listeners.
    """

    def __init__(self, num_envs: int, pack: Pack, beats: Sequence[float]) -> None:
        """`beats` are seconds, ascending."""
        super().__init__(num_envs, pack)
        self._need(self.backchannels, "agent_backchannel")
        self.beats = [CLOCK.nearest_sample(beat) for beat in beats]
        self._ear = OnlineActivity(num_envs)
        self._begun = np.full(num_envs, -1, np.int64)  # (B,) the user's first sound; -1: none yet

    def restart(self, row: int) -> None:
        """Stop the watch and wait for a first sound."""
        self._ear.reset(np.arange(self.num_envs) == row)
        self._begun[row] = -1

    def hear(self, mic: np.ndarray) -> None:
        """Start the watch of a row (B, F) in which somebody begins."""
        self._ear.update(mic)
        begins = (self._begun < 0) & (self._ear.onset >= 0)
        self._begun[begins] = self._ear.onset[begins]

    def decide(self, row: int, now: int) -> None:
        """Say what is due in this frame."""
        given = len(self._said[row])
        if self._begun[row] >= 0 and given < len(self.beats):
            due = int(self._begun[row]) + self.beats[given]
            if due < now + CLOCK.frame:
                self.say(row, self.backchannels[given % len(self.backchannels)], max(due, now))


class RateMatched(ScriptedAgent):
    """Says exactly what another agent said, as much and as often, at times drawn at random.

    The control of a timing reward: whatever it earns is earned by how much is said and not by when.
    """

    def __init__(self, other: ScriptedAgent, samples: Sequence[int], draw: int = 0) -> None:
        """Shuffle what `other` has said in its conversations, which lasted `samples` each; `draw` numbers the dice."""
        super().__init__(other.num_envs)
        self._plans = [_shuffled(other.said(row), length, (draw, row)) for row, length in enumerate(samples)]
        self._left = [list(plan) for plan in self._plans]

    def restart(self, row: int) -> None:
        """Begin the plan of this row again."""
        self._left[row] = list(self._plans[row])

    def decide(self, row: int, now: int) -> None:
        """Say what the plan holds for this frame."""
        while self._left[row] and self._left[row][0][1] < now + CLOCK.frame:
            clip, onset, length = self._left[row].pop(0)
            self.say(row, clip, onset, max(onset, now) + length)


def _shuffled(said: Iterable[_Piece], samples: int, dice: tuple[int, int]) -> list[_Piece]:
    """The same utterances in another order at random times of [one frame, samples): (sound, onset, length).

    They do not overlap, and silences between them are uniform spacings.
    """
    rng = np.random.default_rng([_SEED, *dice])
    pieces = [(clip, min(stop, samples) - start) for clip, start, stop in said if start < samples]
    pieces = [pieces[i] for i in rng.permutation(len(pieces))]
    free = max(0, samples - CLOCK.frame - sum(length for _, length in pieces))
    starts = np.sort(rng.integers(0, free + 1, len(pieces))) + CLOCK.frame
    plan: list[_Piece] = []
    spoken = 0
    for (clip, length), start in zip(pieces, starts.tolist(), strict=True):
        plan.append((clip, start + spoken, length))
        spoken += length
    return plan

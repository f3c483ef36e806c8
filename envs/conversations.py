"""Two-channel conversations composed from a pack's clips, with human timing and human untidiness.

They are what a policy is warmed up on before it is aligned.

Timing follows the laws of conversation analysis (floor transfers about 0.2 s with a spread of 0.45 s; answers that come
late; overlaps), and the faults are those that people make and that alignment should remove: an answer into a pause, a
late answer, no backchannel where one was invited, talking on through an interruption, stopping for a mere "yeah".

The agent's onsets lie on the frame grid: the agent can act only there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from envs.clock import CLOCK
from envs.event import Word
from envs.pack import Clip, Pack

SITUATIONS = (
    "question",
    "pause",
    "twin",
    "dictation",
    "statement",
    "story",
    "barge_in",
    "acknowledged",
    "stop",
    "side_talk",
)

_SAME = {"correction": "barge_in"}  # "no, I meant the train" is met as "but what about the train?" is


@dataclass(frozen=True)
class Untidiness:
    """How often, and by how much, the human agent in the data falls short."""

    answers_into_pause: float = 0.8
    """Share of pauses longer than `hasty_after` in which it starts to answer."""
    hasty_after: float = 0.25
    """Seconds of silence after which a hasty agent answers."""
    late: float = 0.6
    """Share of answers that are late; the others follow Normal(0.3, 0.25)."""
    late_by: tuple[float, float] = (1.0, 2.6)
    """Seconds, uniform."""
    backchannels: float = 0.5
    """Share of opportunities that get one."""
    talks_on: float = 0.35
    """Share of interruptions that the agent talks through."""
    stops_after: tuple[float, float] = (0.3, 1.8)
    """Seconds from the start of an interruption, uniform."""
    false_stops: float = 0.7
    """Share of user backchannels (or side talk, or coughs) at which it stops."""
    false_stops_after: tuple[float, float] = (0.3, 0.7)
    """Seconds from their start, uniform."""


@dataclass(frozen=True)
class Said:
    """What a user says: a clip, perhaps faster or slower and higher or lower than it was recorded."""

    audio: np.ndarray
    """(samples,) float32."""
    words: tuple[Word, ...]
    pauses: tuple[tuple[int, int], ...]
    topic: str

    def part(self, index: int) -> tuple[np.ndarray, tuple[Word, ...]]:
        """What stands between two pauses (or an end): audio and words, from its own start on."""
        onset = self.pauses[index - 1][1] if index else 0
        end = self.pauses[index][0] if index < len(self.pauses) else len(self.audio)
        words = (Word(w.text, w.onset - onset, w.offset - onset) for w in self.words if onset <= sum(w[1:]) // 2 < end)
        return self.audio[onset:end], tuple(words)


@dataclass
class Conversation:
    """Both channels and what was said in them, in samples."""

    user: np.ndarray
    """(N,) float32."""
    agent: np.ndarray
    """(N,) float32."""
    user_words: list[Word] = field(default_factory=list)
    agent_words: list[Word] = field(default_factory=list)

    def hear(self, audio: np.ndarray, words: Sequence[Word], onset: int) -> int:
        """The user says `audio` at `onset`; returns its end."""
        return _place(self.user, self.user_words, audio, words, onset)

    def speak(self, clip: Clip, onset: int, stop: int | None = None) -> int:
        """The agent says a clip from `onset` on, perhaps only until the sample `stop`; returns its end."""
        length = len(clip.audio) if stop is None else max(0, min(len(clip.audio), stop - onset))
        audio = clip.audio[:length].copy()
        if length < len(clip.audio):
            fade = min(480, length)
            audio[length - fade :] *= np.linspace(1.0, 0.0, fade, dtype=np.float32)
        words = [w for w in clip.words if w.onset < length - CLOCK.frame // 2]
        return _place(self.agent, self.agent_words, audio, words, onset)


def _place(track: np.ndarray, said: list[Word], audio: np.ndarray, words: Sequence[Word], onset: int) -> int:
    end = min(len(track), onset + len(audio))
    if onset < len(track):
        track[onset:end] += audio[: end - onset]
        said += [Word(w.text, w.onset + onset, w.offset + onset) for w in words if w.onset + onset < len(track)]
    return onset + len(audio)


def up(sample: float) -> int:
    """The next frame boundary: the agent can start only there."""
    return CLOCK.sample_of(CLOCK.frames_covering(max(0, int(sample))))


class Composer:
    """Draws conversations from the clips of one split of a pack."""

    def __init__(
        self,
        pack: Pack,
        split: str,
        frames: int,
        untidiness: Untidiness | None = None,
        speeds: tuple[float, float] | None = (0.86, 1.16),
        scrambled: float = 0.4,
    ) -> None:
        """`speeds` is the range of the users' tempo (None: as recorded); `scrambled` the share of questions that are
        words in random order."""
        self.length = CLOCK.sample_of(frames)
        self.u = untidiness or Untidiness()
        self.speeds, self.scrambled = speeds, scrambled
        self.keywords: dict[str, list[tuple[Clip, Word]]] = {}
        self.fillers: dict[str, list[tuple[Clip, Word]]] = {}
        self.clips: dict[str, list[Clip]] = {}
        self.answers: dict[str, list[Clip]] = {}
        self.backchannels: list[Clip] = []
        self.topics: dict[str, str] = {}
        for clip in pack.clips():
            if clip.kind == "agent":
                for topic in clip.answers:
                    self.answers.setdefault(topic, []).append(clip)
            elif clip.kind == "agent_backchannel":
                self.backchannels.append(clip)
            elif clip.split == split:  # ids of user clips are kind/topic/name
                kind, self.topics[clip.id], _ = clip.id.split("/")
                self.clips.setdefault(_SAME.get(kind, kind), []).append(clip)
        for clip in (c for clips in self.clips.values() for c in clips):
            for word in (w for w in clip.words if w.offset - w.onset > CLOCK.frame):
                about = next((t for t in self.answers if word.text.lower().startswith(t)), None)
                if about is None:
                    self.fillers.setdefault(clip.voice, []).append((clip, word))
                else:
                    self.keywords.setdefault(about, []).append((clip, word))

    def draw(self, rng: np.random.Generator, situation: str | None = None) -> Conversation:
        """One conversation; the situation is drawn too unless it is given."""
        c = Conversation(np.zeros(self.length, np.float32), np.zeros(self.length, np.float32))
        situation = situation or SITUATIONS[rng.integers(len(SITUATIONS))]
        start = int(rng.uniform(0.2, 1.2) * CLOCK.sample_rate)
        getattr(self, f"_{situation}")(c, rng, start)
        return c

    def chatter(self, rng: np.random.Generator) -> Conversation:
        """One user who does not stop talking, sense and nonsense by turns: dense material to learn to hear on."""
        c = Conversation(np.zeros(self.length, np.float32), np.zeros(self.length, np.float32))
        kinds = [kind for kind in self.clips if kind != "cough"]
        voices, topics = list(self.fillers), list(self.keywords)
        voice, at = voices[rng.integers(len(voices))], int(rng.integers(CLOCK.sample_rate))
        while at < self.length:
            if rng.random() < 0.5:
                said = self._pick(rng, kinds[rng.integers(len(kinds))])
            else:
                said = self._scramble(rng, voice, topics[rng.integers(len(topics))], int(rng.integers(2, 6)))
                said = said if self.speeds is None else _perturb(said, rng, self.speeds)
            at = c.hear(said.audio, said.words, at) + int(rng.uniform(0.0, 0.5) * CLOCK.sample_rate)
        return c

    def quiz(self, rng: np.random.Generator) -> Conversation:
        """Question upon question, each over the answer to the one before: dense material to learn what answers what."""
        c = Conversation(np.zeros(self.length, np.float32), np.zeros(self.length, np.float32))
        at = int(rng.integers(CLOCK.sample_rate))
        while at < self.length:
            question = self._pick(rng, "question" if rng.random() < 0.8 else "barge_in")
            onset = up(c.hear(question.audio, question.words, at) + max(0.05, rng.normal(0.3, 0.2)) * CLOCK.sample_rate)
            at = onset + int(rng.uniform(0.7, 1.3) * CLOCK.sample_rate)
            c.speak(self._reply(rng, question.topic), onset, at + int(rng.uniform(0.2, 0.5) * CLOCK.sample_rate))
        return c

    # -- situations ----------------------------------------------------------------------------------------------------

    def _question(self, c: Conversation, rng: np.random.Generator, start: int) -> None:
        clip = self._pick(rng, "question")
        end = c.hear(clip.audio, clip.words, start)
        last = self._answer(c, rng, clip.topic, end)
        if rng.random() < 0.5:  # another question later, so that a conversation is more than one exchange
            clip = self._pick(rng, "question")
            self._answer(c, rng, clip.topic, c.hear(clip.audio, clip.words, last + int(rng.uniform(0.3, 1.5) * 24_000)))

    def _statement(self, c: Conversation, rng: np.random.Generator, start: int) -> None:
        clip = self._pick(rng, "statement")
        self._answer(c, rng, clip.topic, c.hear(clip.audio, clip.words, start))

    def _pause(self, c: Conversation, rng: np.random.Generator, start: int) -> None:
        self._with_pauses(c, rng, start, self._pick(rng, "pause"))

    def _dictation(self, c: Conversation, rng: np.random.Generator, start: int) -> None:
        self._with_pauses(c, rng, start, self._pick(rng, "dictation"))

    def _twin(self, c: Conversation, rng: np.random.Generator, start: int) -> None:
        clip = self._pick(rng, "pause" if rng.random() < 0.75 else "dictation")
        audio, words = clip.part(0)
        self._answer(c, rng, clip.topic, c.hear(audio, words, start))

    def _with_pauses(self, c: Conversation, rng: np.random.Generator, start: int, clip: Said) -> None:
        at, answered = start, False
        for i in range(len(clip.pauses) + 1):
            audio, words = clip.part(i)
            end = c.hear(audio, words, at)
            at = end + int(pause_seconds(rng) * CLOCK.sample_rate)
            if i == len(clip.pauses) or answered:
                continue
            hasty = up(end + rng.normal(self.u.hasty_after, 0.08) * CLOCK.sample_rate)
            if hasty < at and rng.random() < self.u.answers_into_pause:
                stop = None if rng.random() < 0.5 else at + int(rng.uniform(0.3, 1.2) * CLOCK.sample_rate)
                c.speak(self._reply(rng, clip.topic), hasty, stop)
                answered = stop is None
        if not answered:
            self._answer(c, rng, clip.topic, end)

    def _story(self, c: Conversation, rng: np.random.Generator, start: int) -> None:
        clip = self._pick(rng, "story")
        end = c.hear(clip.audio, clip.words, start)
        for onset, _ in clip.pauses:
            if rng.random() < self.u.backchannels:
                at = up(start + onset + rng.uniform(0.05, 0.5) * CLOCK.sample_rate)
                c.speak(self.backchannels[rng.integers(len(self.backchannels))], at)
        self._answer(c, rng, clip.topic, end)

    def _barge_in(self, c: Conversation, rng: np.random.Generator, start: int) -> None:
        clip = self._pick(rng, "barge_in")
        cut, over = self._over_answer(c, rng, start)
        last = c.hear(clip.audio, clip.words, cut)
        if over <= last + CLOCK.sample_rate // 2:  # who talked the user down has missed the question
            self._answer(c, rng, clip.topic, max(last, over))

    def _stop(self, c: Conversation, rng: np.random.Generator, start: int) -> None:
        clip = self._pick(rng, "stop")
        cut, _ = self._over_answer(c, rng, start)
        c.hear(clip.audio, clip.words, cut)

    def _acknowledged(self, c: Conversation, rng: np.random.Generator, start: int) -> None:
        kinds = ("barge_in", "stop")
        clip = self._pick(rng, kinds[int(rng.random() < 0.3)])
        self._ignored(c, rng, start, *clip.part(0))

    def _side_talk(self, c: Conversation, rng: np.random.Generator, start: int) -> None:
        clip = self._pick(rng, "side_talk" if rng.random() < 0.5 else "cough")
        self._ignored(c, rng, start, clip.audio, clip.words)

    # -- parts ---------------------------------------------------------------------------------------------------------

    def _ignored(
        self, c: Conversation, rng: np.random.Generator, start: int, audio: np.ndarray, words: Sequence[Word]
    ) -> None:
        """Something that is no reason to stop, heard while the agent answers."""
        question = self._pick(rng, "question")
        onset = self._onset(rng, c.hear(question.audio, question.words, start))
        cut = onset + int(rng.uniform(0.7, 2.0) * CLOCK.sample_rate)
        stop = None
        if rng.random() < self.u.false_stops:
            stop = cut + int(rng.uniform(*self.u.false_stops_after) * CLOCK.sample_rate)
        c.speak(self._reply(rng, question.topic), onset, stop)
        c.hear(audio, words, cut)

    def _over_answer(self, c: Conversation, rng: np.random.Generator, start: int) -> tuple[int, int]:
        """A question, its answer, where the user cuts in, and where the agent falls silent."""
        question = self._pick(rng, "question")
        onset = self._onset(rng, c.hear(question.audio, question.words, start))
        cut = onset + int(rng.uniform(0.7, 2.0) * CLOCK.sample_rate)
        stop = cut + int(rng.uniform(*self.u.stops_after) * CLOCK.sample_rate)
        talks_on = rng.random() < self.u.talks_on
        over = c.speak(self._reply(rng, question.topic), onset, None if talks_on else stop)
        return cut, over if talks_on else min(over, stop)

    def _answer(self, c: Conversation, rng: np.random.Generator, topic: str, end: int) -> int:
        return c.speak(self._reply(rng, topic), self._onset(rng, end))

    def _onset(self, rng: np.random.Generator, end: int) -> int:
        late = rng.random() < self.u.late
        gap = rng.uniform(*self.u.late_by) if late else max(0.05, rng.normal(0.3, 0.25))
        return up(end + gap * CLOCK.sample_rate)

    def _reply(self, rng: np.random.Generator, topic: str) -> Clip:
        clips = self.answers[topic]
        return clips[rng.integers(len(clips))]

    def _pick(self, rng: np.random.Generator, kind: str) -> Said:
        clips = self.clips[kind]
        clip = clips[rng.integers(len(clips))]
        said = Said(clip.audio, clip.words, clip.pauses, self.topics[clip.id])
        if kind == "question" and rng.random() < self.scrambled:
            said = self._scramble(rng, clip.voice, said.topic, int(rng.integers(2, 8)))
        return said if self.speeds is None else _perturb(said, rng, self.speeds)

    def _scramble(self, rng: np.random.Generator, voice: str, topic: str | None, fillers: int) -> Said:
        """Words of one voice in random order, one of them the topic's: what is meant must be heard, not guessed from
        the sentence around it."""
        pool = self.fillers[voice]
        pieces = [pool[rng.integers(len(pool))] for _ in range(fillers)]
        if topic is not None:
            same = [piece for piece in self.keywords[topic] if piece[0].voice == voice] or self.keywords[topic]
            pieces.insert(int(rng.integers(fillers + 1)), same[rng.integers(len(same))])
        audio, words, at = [], [], 0
        for clip, word in pieces:
            piece = clip.audio[word.onset : word.offset].copy()
            fade = min(240, len(piece) // 2)
            piece[:fade] *= np.linspace(0.0, 1.0, fade, dtype=np.float32)
            piece[len(piece) - fade :] *= np.linspace(1.0, 0.0, fade, dtype=np.float32)
            gap = int(rng.integers(1200))
            audio += [piece, np.zeros(gap, np.float32)]
            words.append(Word(word.text, at, at + len(piece)))
            at += len(piece) + gap
        return Said(np.concatenate(audio), tuple(words), (), topic or "")


def _perturb(said: Said, rng: np.random.Generator, speeds: tuple[float, float]) -> Said:
    """Another speed (pitch moves with it, as on a tape), timbre and level: a cheap way to many more voices."""
    speed, tilt = rng.uniform(*speeds), rng.uniform(-0.4, 0.5)
    at = np.arange(int(len(said.audio) / speed)) * speed
    audio = np.interp(at, np.arange(len(said.audio)), said.audio)
    audio[1:] -= tilt * audio[:-1]
    audio *= 10 ** (rng.uniform(-6, 3) / 20) / (1 - 0.7 * tilt)
    words = tuple(Word(w.text, int(w.onset / speed), int(w.offset / speed)) for w in said.words)
    pauses = tuple((int(onset / speed), int(end / speed)) for onset, end in said.pauses)
    return Said(audio.astype(np.float32), words, pauses, said.topic)


def pause_seconds(rng: np.random.Generator) -> float:
    """Within-turn pauses are lognormal; half of them are longer than 0.6 s."""
    return float(np.clip(rng.lognormal(np.log(0.6), 0.45), 0.25, 1.3))

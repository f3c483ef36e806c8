"""Scripted agents: yardsticks that need no model. Batched, no torch.

    agent = EnergyVad(num_envs, pack, ms=700)
    episodes = converse(env, agent, seed=7)

Every agent hears microphone frame k in `act` and returns what it plays during frame k+1. `transcript(row)` is what it
said so far, word for word, so that episodes of scripted agents have a text as those of policies have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from envs.activity import OnlineActivity
from envs.clock import CLOCK
from envs.episode import Episode
from envs.errors import UptakeError
from envs.event import BARGE_IN_TYPES, TURN_TYPES, Event, Word
from envs.pack import Clip, Pack
from envs.recording import Recording

if TYPE_CHECKING:
    from envs.duplex_vector_env import DuplexVectorEnv  # which lets agents speak by canned actions

_FADE = 240  # samples (10 ms): nobody stops with a click


class Agent(Protocol):
    """What `converse` needs."""

    def reset(self, rows: Iterable[int] | None = None) -> None:
        """Begin afresh in these rows (all when None)."""

    def act(self, mic: np.ndarray) -> np.ndarray:
        """Hear frame k (B, F) float32, return frame k+1 (B, F) float32."""

    def transcript(self, row: int) -> tuple[Word, ...]:
        """The words said so far in a row, in samples of the episode."""


def converse(
    env: DuplexVectorEnv,
    agent: Agent,
    seed: int | None = None,
    options: dict[str, Any] | None = None,
    words: Callable[[int], Sequence[Word]] | None = None,
) -> list[Episode]:
    """Let an agent talk in every row until all rows have ended; one episode a row.

    `words` gives what a user who reads is told that the agent said, in place of its own text.
    """
    env.agent_words = words or agent.transcript
    obs, info = env.reset(seed=seed, options=options)
    agent.reset()
    while not info["ended"].all():
        obs, _, _, _, info = env.step(agent.act(obs["mic"]))
    ended = []
    for row in range(env.num_envs):
        episode = env.episode(row)
        # A row that ended early kept its agent talking to no one; the record ends, and so does what was said in it.
        episode.transcript = tuple(word for word in agent.transcript(row) if word.onset < episode.samples)
        ended.append(episode)
    return ended


class Sound(Protocol):
    """What can be said: a clip of a pack, or whatever has sound and words."""

    @property
    def audio(self) -> np.ndarray:
        """(samples,) float32."""

    @property
    def samples(self) -> int:
        """Length."""

    @property
    def words(self) -> tuple[Word, ...]:
        """In samples of the sound."""


@dataclass
class _Utterance:
    """Something said in a row, or about to be."""

    clip: Sound
    origin: int
    """Sample of the episode at which sample 0 of the clip lies; what lies before `start` is not heard."""
    start: int
    stop: int


class ScriptedAgent:
    """Common part: a clock and a mouth a row. Silent unless a subclass decides otherwise in `decide`."""

    def __init__(self, num_envs: int, pack: Pack | None = None) -> None:
        self.num_envs = num_envs
        self.clips = pack.clips("agent") if pack else []
        self.backchannels = pack.clips("agent_backchannel") if pack else []
        self.now = np.zeros(num_envs, np.int64)  # samples heard: where the frame to be played begins
        self._said: list[list[_Utterance]] = [[] for _ in range(num_envs)]

    def reset(self, rows: Iterable[int] | None = None) -> None:
        """Begin afresh in these rows (all when None)."""
        for row in range(self.num_envs) if rows is None else rows:
            self.now[row] = 0
            self._said[row] = []
            self.restart(row)

    def act(self, mic: np.ndarray) -> np.ndarray:
        """Hear frame k (B, F) float32, return frame k+1 (B, F) float32."""
        self.now += CLOCK.frame
        self.hear(mic)
        return self.play()

    def play(self) -> np.ndarray:
        """Decide, and return the frame (B, F) float32 that begins now."""
        out = np.zeros((self.num_envs, CLOCK.frame), np.float32)
        for row in range(self.num_envs):
            now = int(self.now[row])
            self.decide(row, now)
            for said in reversed(self._said[row]):
                if said.stop <= now:
                    break
                _render(said, now, out[row])
        return out

    def transcript(self, row: int) -> tuple[Word, ...]:
        """The words whose beginning was said before the agent stopped, in samples of the episode."""
        words = []
        for said in self._said[row]:
            for word in said.clip.words:
                onset, offset = word.onset + said.origin, min(word.offset + said.origin, said.stop)
                if said.start <= onset < min(said.stop, int(self.now[row]) + CLOCK.frame):
                    words.append(Word(word.text, onset, offset))
        return tuple(sorted(words, key=lambda word: word.onset))

    # What subclasses write and use ------------------------------------------------------------------------------------

    def restart(self, row: int) -> None:
        """Forget what this kind of agent keeps about a row."""

    def hear(self, mic: np.ndarray) -> None:
        """Listen to a frame (B, F), before `decide`."""

    def decide(self, row: int, now: int) -> None:
        """Call `say` and `hush`; the frame about to be played begins at `now`."""

    def say(self, row: int, clip: Sound, onset: int, stop: int | None = None) -> None:
        """Speak a clip so that its first word begins at `onset` (not before the frame about to be played)."""
        now = int(self.now[row])
        origin = max(onset, now) - (clip.words[0].onset if clip.words else 0)
        end = origin + clip.samples
        self._said[row].append(_Utterance(clip, origin, max(origin, now), end if stop is None else min(end, stop)))

    def hush(self, row: int, at: int) -> None:
        """Be silent from the sample `at` on."""
        for said in self._said[row]:
            said.stop = min(said.stop, max(at, int(self.now[row])))

    def resume(self, row: int, at: int) -> None:
        """Go on from the sample `at` with what was broken off last, where it was broken off."""
        cut = next((u for u in reversed(self._said[row]) if u.start < u.stop < u.origin + u.clip.samples), None)
        if cut is not None:
            start = max(at, int(self.now[row]))
            origin = start - (cut.stop - cut.origin)
            self._said[row].append(_Utterance(cut.clip, origin, start, origin + cut.clip.samples))

    def busy_until(self, row: int) -> int:
        """The sample at which the last utterance ends; 0 when there was none."""
        return max((said.stop for said in self._said[row]), default=0)

    def said(self, row: int) -> list[tuple[Sound, int, int]]:
        """What was said so far in a row, with the samples of the episode in which it sounds: (sound, start, stop)."""
        return [(u.clip, u.start, u.stop) for u in self._said[row] if u.start < u.stop]

    def _need(self, clips: Sequence[Clip], kind: str) -> None:
        if not clips:
            raise UptakeError(f"{type(self).__name__} needs clips of kind {kind!r}; give it a pack that has some")


def _render(said: _Utterance, now: int, out: np.ndarray) -> None:
    """Add an utterance to the frame (F,) that begins at `now`."""
    first, last = max(now, said.start), min(now + CLOCK.frame, said.stop)
    if first >= last:
        return
    audio = said.clip.audio[first - said.origin : last - said.origin]
    cut_short = said.stop < said.origin + said.clip.samples
    if cut_short and last > said.stop - _FADE:
        audio = audio * np.clip((said.stop - np.arange(first, last)) / _FADE, 0.0, 1.0).astype(np.float32)
    out[first - now : last - now] += audio


class Silent(ScriptedAgent):
    """Never says anything."""


class AlwaysTalking(ScriptedAgent):
    """Talks without a pause, whatever the user does."""

    def __init__(self, num_envs: int, pack: Pack) -> None:
        super().__init__(num_envs, pack)
        self._need(self.clips, "agent")

    def decide(self, row: int, now: int) -> None:
        """Begin the next clip where the last one ends."""
        while (end := max(now, self.busy_until(row))) < now + CLOCK.frame:
            clip = self.clips[(row + len(self._said[row])) % len(self.clips)]
            speech_end = clip.words[-1].offset if clip.words else clip.samples
            speech = speech_end - (clip.words[0].onset if clip.words else 0)
            self.say(row, clip, end, stop=end + max(speech, CLOCK.frame))


class AlwaysBackchannel(ScriptedAgent):
    """Says "mm-hmm" all the time: once every `period` seconds."""

    def __init__(self, num_envs: int, pack: Pack, period: float = 1.2) -> None:
        super().__init__(num_envs, pack)
        self._need(self.backchannels, "agent_backchannel")
        self.period = CLOCK.nearest_sample(period)

    def decide(self, row: int, now: int) -> None:
        """One backchannel at every multiple of the period."""
        due = len(self._said[row]) * self.period
        if due < now + CLOCK.frame:
            self.say(row, self.backchannels[len(self._said[row]) % len(self.backchannels)], due)


class Metronome(ScriptedAgent):
    """Talks for `on` seconds in every `period` seconds, whatever the user does."""

    def __init__(self, num_envs: int, pack: Pack, period: float = 3.0, on: float = 1.0) -> None:
        super().__init__(num_envs, pack)
        self._need(self.clips, "agent")
        self.period, self.on = CLOCK.nearest_sample(period), CLOCK.nearest_sample(on)

    def decide(self, row: int, now: int) -> None:
        """One burst of speech at every multiple of the period."""
        due = (len(self._said[row]) + 1) * self.period - self.on
        if due < now + CLOCK.frame:
            clip = self.clips[(row + len(self._said[row])) % len(self.clips)]
            self.say(row, clip, due, stop=max(due, now) + self.on)


@dataclass(frozen=True)
class Recorded:
    """The agent's side of a recording."""

    audio: np.ndarray
    """(samples,) float32 at the clock's rate."""
    words: tuple[Word, ...] = ()
    """In samples of the audio."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Recorded:
        """Itself: a recording never changes."""
        return self

    @property
    def samples(self) -> int:
        """Length."""
        return len(self.audio)

    @classmethod
    def load(cls, place: str) -> Recorded:
        """The agent of a stored episode (its folder), or an audio file of any rate.

        Of a file with several channels, `FILE#1` names the one that is meant, counted from 0.

        Raises:
            UptakeError: nothing there, not audio, or a channel that it does not have.
        """
        if Path(place).is_dir():
            episode = Episode.load(place)
            return cls(episode.agent, episode.transcript)
        name, _, channel = place.rpartition("#") if not Path(place).exists() else (place, "", "")
        if not name or (channel and not channel.isdecimal()):
            name, channel = place, ""
        if not Path(name).is_file():
            raise UptakeError(
                f"{name}: no such recording; expected an audio file or a stored episode's folder: check the path, "
                "which counts from the working directory"
            )
        tracks = Recording(Path(name)).tracks
        if not channel and len(tracks) > 1:
            raise UptakeError(f"{name}: has {len(tracks)} channels; say which is the agent's: replay:{name}#0")
        if int(channel or 0) >= len(tracks):
            raise UptakeError(f"{name}: has {len(tracks)} channels, so there is no channel {channel}")
        return cls(tracks[int(channel or 0)])


class Replay(ScriptedAgent):
    """Plays a recording from the beginning of every conversation, whatever the user does: sample n at sample n."""

    def __init__(self, num_envs: int, recorded: Recorded) -> None:
        super().__init__(num_envs)
        self.recorded = recorded

    def decide(self, row: int, now: int) -> None:
        """Put the whole recording where it belongs; what lies before the first frame that can be played is lost."""
        if not self._said[row]:
            self._said[row].append(_Utterance(self.recorded, 0, now, self.recorded.samples))


class EnergyVad(ScriptedAgent):
    """A cascade's turn taking: answers after `ms` of silence, stops as soon as it hears the user."""

    BARGE_IN = CLOCK.samples(0.16)
    """Samples of user speech that make it stop."""

    def __init__(self, num_envs: int, pack: Pack, ms: int = 700) -> None:
        super().__init__(num_envs, pack)
        self._need(self.clips, "agent")
        self.silence = CLOCK.nearest_sample(ms / 1000.0)
        self._ear = OnlineActivity(num_envs)
        self._answered = np.full(num_envs, -1, np.int64)  # (B,) end of the user speech that was answered last

    def restart(self, row: int) -> None:
        """Forget the user of this row."""
        self._ear.reset(np.array([row]))
        self._answered[row] = -1

    def hear(self, mic: np.ndarray) -> None:
        """Follow the user's energy."""
        self._speaking = self._ear.update(mic)
        self._speaking_for = self._ear.speaking_for

    def decide(self, row: int, now: int) -> None:
        """Stop for a user who speaks, answer one who has been silent long enough."""
        ended = int(self._ear.offset[row])
        if self._speaking[row]:
            if self.busy_until(row) > now and self._speaking_for[row] >= self.BARGE_IN:
                self.hush(row, now)
        elif ended > self._answered[row] and now - ended >= self.silence and self.busy_until(row) <= now:
            self._answered[row] = ended
            self.say(row, self.clips[(row + len(self._said[row])) % len(self.clips)], now)


class Oracle(ScriptedAgent):
    """Knows what happens and does what is expected: the ceiling.

    Answers `ANSWER` seconds after the end of a turn with a clip that fits what is expected, be it a refusal, says a
    backchannel `BACKCHANNEL` seconds after an opportunity, stops `STOP` seconds after a barge-in has become clear, and
    answers it. It gives way `GIVE_WAY` seconds into a collision, goes on `ANSWER` seconds after what it need not have
    stopped for, and speaks up `SPEAK_UP` seconds after that is due.
    """

    ANSWER, BACKCHANNEL, STOP, GIVE_WAY, SPEAK_UP = 0.25, 0.2, 0.2, 0.4, 0.2

    def __init__(self, num_envs: int, pack: Pack, env: DuplexVectorEnv) -> None:
        super().__init__(num_envs, pack)
        self._need(self.clips, "agent")
        self.env = env
        self._done: list[set[str]] = [set() for _ in range(num_envs)]

    def restart(self, row: int) -> None:
        """Forget what was done about the events of this row."""
        self._done[row] = set()

    def decide(self, row: int, now: int) -> None:
        """Do what falls due in the frame about to be played."""
        for event in self.env.privileged(row):
            if event.type in BARGE_IN_TYPES:
                if self._due(row, now, f"{event.id}:stop", event.anchors["sem"], self.STOP):
                    self.hush(row, event.anchors["sem"] + CLOCK.samples(self.STOP))
            elif event.expected("yields") is not None:
                if self._due(row, now, f"{event.id}:yield", event.anchors["collision"], self.GIVE_WAY):
                    self.hush(row, event.anchors["collision"] + CLOCK.samples(self.GIVE_WAY))
            elif (
                (event.type in (*TURN_TYPES, "B7") or event.expected("stops") or event.expected("resumes"))
                and self._due(row, now, f"{event.id}:yield", event.onset, self.STOP)
                and not self._collides(row, event)
            ):
                self.hush(row, event.onset + CLOCK.samples(self.STOP))
            if event.expected("resumes") and self._due(row, now, f"{event.id}:resume", event.offset, self.ANSWER):
                self.resume(row, event.offset + CLOCK.samples(self.ANSWER))
            due = event.anchors["due"] if event.expected("speaks_up") else None
            if due is not None and self._due(row, now, f"{event.id}:up", due, self.SPEAK_UP):
                self.say(row, self._answer_to(row, event), due + CLOCK.samples(self.SPEAK_UP))
            if event.type == "B7" and self.backchannels:
                for i, place in enumerate(v for name, v in sorted(event.anchors.items()) if name.startswith("bc")):
                    if self._due(row, now, f"{event.id}:bc{i}", place, self.BACKCHANNEL):
                        clip = self.backchannels[(row + i) % len(self.backchannels)]
                        self.say(row, clip, place + CLOCK.samples(self.BACKCHANNEL))
            answered = event.type in TURN_TYPES or event.reply is not None
            if answered and self._due(row, now, f"{event.id}:answer", event.offset, self.ANSWER):
                self.say(row, self._answer_to(row, event), event.offset + CLOCK.samples(self.ANSWER))

    def _due(self, row: int, now: int, name: str, anchor: int, delay: float) -> bool:
        if name in self._done[row] or anchor + CLOCK.samples(delay) >= now + CLOCK.frame:
            return False
        self._done[row].add(name)
        return True

    def _collides(self, row: int, event: Event) -> bool:
        """Whether this turn is the one that another event of the same utterance tells when to give way to."""
        return any(e.expected("yields") and e.onset == event.onset for e in self.env.privileged(row))

    def _answer_to(self, row: int, event: Event) -> Sound:
        expect = event.reply or event.expected("speaks_up")
        fitting = self.env.pack.answers(expect.content) if expect else []
        return fitting[0] if fitting else self.clips[0]

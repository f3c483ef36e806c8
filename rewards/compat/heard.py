"""What a published evaluator gets to hear of an episode: words, stretches of speech and true user speech, in seconds.

The published scripts read two audio files with a voice activity detector and a speech recogniser. Here the user's side
is the ground truth of the events, the agent's speech is what a detector of `rewards.detector` hears with the
evaluator's own gaps and minimum lengths (energy if nobody says otherwise; the scripts use Silero), and the words are
the agent's text stream or what speech recognition heard. So a figure differs from the original's by what those two get
wrong, and by nothing in its definition.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from envs.episode import Episode
from envs.event import PAUSE_TYPES, Event, Word
from rewards.detector import CODE_ACTIVITY, ENERGY, Activity, DetectorConfig


class Span(NamedTuple):
    """A stretch of time in seconds."""

    onset: float
    offset: float

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.offset - self.onset


class Spoken(NamedTuple):
    """A stretch of user speech and the type of the event that it belongs to."""

    type: str
    onset: float
    offset: float


class Said(NamedTuple):
    """A word of the agent, in seconds."""

    text: str
    onset: float
    offset: float


@dataclass(frozen=True)
class Heard:
    """An episode, or a part of it, as an evaluator hears it. Times are seconds from `start`."""

    episode: Episode
    transcript: Sequence[Word] | None = None
    """Words to use in place of the agent's own."""
    start: int = 0
    """First sample of the part."""
    stop: int | None = None
    """First sample after it; None is the end of the episode."""
    activity: DetectorConfig = ENERGY
    """Who is taken to speak when, but for gap and length."""

    @property
    def end(self) -> int:
        """First sample after the part."""
        return self.episode.samples if self.stop is None else min(self.stop, self.episode.samples)

    @property
    def seconds(self) -> float:
        """Length."""
        return self.episode.clock.seconds(max(0, self.end - self.start))

    def at(self, sample: int) -> float:
        """Seconds from the start of the part to a sample of the episode."""
        return self.episode.clock.seconds(sample - self.start)

    def part(self, start: int, stop: int) -> Heard:
        """The part between two samples of the episode."""
        return replace(self, start=max(0, start), stop=stop)

    def agent(self, gap: float = ENERGY.merge_gap, shortest: float = ENERGY.min_length) -> tuple[Span, ...]:
        """Stretches of agent speech: silences shorter than `gap` do not split, less than `shortest` is no speech."""
        seconds, settings = self.episode.clock.seconds, replace(self.activity, merge_gap=gap, min_length=shortest)
        found = Activity(self._cut, settings).agent(self._cut.samples)
        return tuple(Span(seconds(int(on)), seconds(int(off))) for on, off in found)

    @property
    def _cut(self) -> Episode:
        """The agent's side of the part as an episode of its own, as the scripts cut the files that they read."""
        words = self.episode.transcript if self.transcript is None else self.transcript
        here = tuple(Word(w.text, max(0, w.onset - self.start), w.offset - self.start) for w in words)
        audio, meta = self.episode.agent[self.start : self.end], dict(self.episode.meta)
        if CODE_ACTIVITY in meta:
            meta[CODE_ACTIVITY] = meta[CODE_ACTIVITY][self.start // self.episode.clock.frame :]
        return Episode(
            audio, audio, audio, transcript=tuple(w for w in here if w.offset > 0), meta=meta, clock=self.episode.clock
        )

    @property
    def words(self) -> tuple[Said, ...]:
        """The agent's words that begin in the part, cut at its end."""
        words = self.episode.transcript if self.transcript is None else self.transcript
        inside = [word for word in words if self.start <= word.onset < self.end]
        return tuple(Said(w.text, self.at(w.onset), self.at(min(w.offset, self.end))) for w in inside)

    @property
    def events(self) -> tuple[Event, ...]:
        """Events that begin in the part, in order of onset (samples of the episode)."""
        inside = [event for event in self.episode.events if self.start <= event.onset < self.end]
        return tuple(sorted(inside, key=lambda event: event.onset))

    @property
    def acts(self) -> tuple[Event, ...]:
        """What the user utters: events of the user that are no pauses, each stretch of audio once.

        A monologue that ends in a turn is two events with the same span; it is the monologue here.
        """
        found: dict[tuple[int, int], Event] = {}
        for event in self.events:
            if event.source == "user" and event.type not in PAUSE_TYPES:
                span = (event.onset, event.offset)
                if span not in found or event.type == "B7":
                    found[span] = event
        return tuple(sorted(found.values(), key=lambda event: event.onset))

    def user(self, gap: float) -> tuple[Spoken, ...]:
        """True stretches of user speech: the words of each act, silences shorter than `gap` bridged.

        An act without word times is split at its pauses that are at least `gap` long.
        """
        found: list[Spoken] = []
        for act in self.acts:
            pieces = [(word.onset, word.offset) for word in act.words] or self._between_pauses(act)
            own: list[Spoken] = []
            for on, off in pieces:
                onset, offset = self.at(on), self.at(min(off, self.end))
                if own and onset - own[-1].offset < gap - 1e-9:
                    own[-1] = own[-1]._replace(offset=max(own[-1].offset, offset))
                else:
                    own.append(Spoken(act.type, onset, offset))
            found += own
        return tuple(found)

    @property
    def busy(self) -> tuple[Span, ...]:
        """Where anything happens besides the agent: what the user utters, and noises."""
        events = [event for event in self.events if event.type not in PAUSE_TYPES]
        return tuple(Span(self.at(event.onset), self.at(event.offset)) for event in events)

    def _between_pauses(self, act: Event) -> list[tuple[int, int]]:
        pauses = [e for e in self.events if e.type in PAUSE_TYPES and act.onset < e.onset and e.offset < act.offset]
        edges = [act.onset, *(edge for pause in pauses for edge in (pause.onset, pause.offset)), act.offset]
        return list(zip(edges[::2], edges[1::2], strict=True))


def overlap(a: Span | Spoken, b: Span | Spoken) -> float:
    """Seconds that two stretches share."""
    return max(0.0, min(a.offset, b.offset) - max(a.onset, b.onset))


def sounding_at(spans: Sequence[Span], second: float) -> Span | None:
    """The stretch that sounds at a moment, or None."""
    return next((span for span in spans if span.onset <= second < span.offset), None)

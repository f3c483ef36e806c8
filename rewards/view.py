"""What a reward may see: one episode up to a moment, and nothing after it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from envs.clock import Clock
from envs.episode import Episode
from envs.event import BARGE_IN_TYPES, TURN_TYPES, Event, Word
from rewards.detector import CODE_ACTIVITY, Activity
from rewards.meaning import Meaning

TURN_SECONDS = 1.0
"""Agent speech longer than this takes the floor (arXiv 2606.11167, Full-Duplex-Bench); up to it, a backchannel."""
TURN_WORDS = 2
"""More words than this take the floor too, however fast they are spoken."""
TEXT_LEAD_SECONDS = 0.4
"""A word of the text stream may lead the sound that speaks it by this much (emission lag and decoder delay)."""
GAP_SECONDS = 0.5
"""A silence of the agent's up to this long is a breath, neither a stop nor an end: clause ends of a fluent speaker
reach 0.45 s (measured on the core pack's answers; at the 0.32 s that activity bridges, even the oracle seemed to stop
at four in ten backchannels)."""
CREDIT_LEAD_SECONDS = 1.0
CREDIT_TAIL_SECONDS = 2.0
"""Credit reaches from this long before a decision to this long after it (DuplexPO, arXiv 2607.07148)."""

_ANSWERED = TURN_TYPES | BARGE_IN_TYPES | {"A6", "B7"}
"""After the end of these the agent may speak at once. A barge-in that is given up (C8) hands nothing over."""
_KNOWN_AT_RESET = (
    "scenario", "driver", "split", "tags", "twin", "shares", "variant", "seed", "vars", "voice", "room_tone_db", "pack",
    "pack_hash", "simulator", "topics", "text_stream", "policy_seed",
)  # fmt: skip
"""Fields of `Episode.meta` that say nothing of what happens in the conversation."""


@dataclass(frozen=True)
class Utterance:
    """Agent speech from an onset to an offset, and the words of the agent's text stream that it speaks."""

    onset: int
    offset: int
    seconds: float
    words: tuple[Word, ...] | None
    """None when the agent has no text stream: then only the sound counts."""

    @property
    def takes_floor(self) -> bool:
        """Longer than 1.0 s or more than two words: a turn. Everything else is a backchannel.

        The one rule for pauses, ends of turns, backchannels and barge-ins alike: what is free as a backchannel in a
        pause can not earn anything as an answer. It is asked of an utterance as a whole, breaths and all, so that a
        turn which is chopped into short bursts is a turn.
        """
        return self.seconds > TURN_SECONDS or (self.words is not None and len(self.words) > TURN_WORDS)


class EpisodeView:
    """An episode that ends at sample `end`: audio, activity, words and events are cut there.

    A reward that gets a view is causal by construction: it returns the same thing when the environment asks it the
    moment the window closes and when a trainer asks it after the rollout.

    Args:
        episode: the record; it may go on after `end`.
        end: first sample that is not seen; beyond the episode's length it is the length.
        transcript: words to use in place of the episode's own text stream (for instance from speech recognition of
            the agent's audio). None: the episode's own.
        activity: who speaks when in the episode; views of one episode share it. None: by energy.
        meaning: what compares texts for the terms that declare `meaning=True`.
    """

    def __init__(
        self,
        episode: Episode,
        end: int,
        transcript: Sequence[Word] | None = None,
        activity: Activity | None = None,
        meaning: Meaning | None = None,
    ) -> None:
        self.end = max(0, min(int(end), episode.samples))
        self.clock: Clock = episode.clock
        self._episode = episode
        self._words = episode.transcript if transcript is None else transcript
        self._injected = transcript is not None
        self._meaning = meaning
        self._activity = Activity(episode, transcript=transcript) if activity is None else activity

    def seconds(self, samples: int) -> float:
        """Seconds of a number of samples."""
        return self.clock.seconds(samples)

    def samples(self, seconds: float) -> int:
        """Samples nearest to a number of seconds."""
        return self.clock.nearest_sample(seconds)

    @property
    def agent(self) -> np.ndarray:
        """(end,) float32, read-only: what the agent played."""
        return self._until_end(self._episode.agent)

    @property
    def user(self) -> np.ndarray:
        """(end,) float32, read-only: the user's voice."""
        return self._until_end(self._episode.user)

    @property
    def mic(self) -> np.ndarray:
        """(end,) float32, read-only: what the agent heard."""
        return self._until_end(self._episode.mic)

    def _until_end(self, track: np.ndarray) -> np.ndarray:
        seen = track[: self.end]
        seen.flags.writeable = False  # other rewards see the same samples
        return seen

    @property
    def episode_id(self) -> str:
        """What a log calls the episode."""
        return self._episode.id

    @cached_property
    def meta(self) -> dict[str, Any]:
        """What the episode's meta data say that was known when it began, and of the rest what is known at `end`: the
        `references` of events that have begun, and `code_activity` up to here.
        """
        meta = self._episode.meta
        known = {name: meta[name] for name in _KNOWN_AT_RESET if name in meta}
        if "references" in meta:
            begun = {event.id for event in self.events}
            known["references"] = {name: texts for name, texts in meta["references"].items() if name in begun}
        if CODE_ACTIVITY in meta:
            known[CODE_ACTIVITY] = meta[CODE_ACTIVITY][: self.end // self.clock.frame]
        return known

    @property
    def agent_activity(self) -> np.ndarray:
        """(n, 2) int64, read-only: segments of agent speech [onset, offset) in samples."""
        return self._activity.agent(self.end)

    @property
    def user_activity(self) -> np.ndarray:
        """(n, 2) int64, read-only: segments of user speech [onset, offset) in samples, measured on the audio."""
        return self._activity.user(self.end)

    @cached_property
    def events(self) -> tuple[Event, ...]:
        """Events that have begun; one that is not over is cut at `end`, with its anchors and words."""
        running = [Event.from_json(record) for record in self._episode.meta.get("running", ())]
        known = sorted([*self._episode.events, *running], key=lambda event: (event.onset, event.id))
        return tuple(self._cut(event) for event in known if event.onset < self.end)

    def _cut(self, event: Event) -> Event:
        if event.offset <= self.end:
            return event
        words = tuple(word for word in event.words if word.onset < self.end)
        return replace(
            event,
            offset=self.end,
            anchors={name: at for name, at in event.anchors.items() if at < self.end},
            words=words,
            text=" ".join(word.text for word in words),
        )

    @cached_property
    def transcript(self) -> tuple[Word, ...]:
        """The agent's words that are over before `end`: nobody knows yet how one goes on that is being spelled."""
        return tuple(word for word in self._words if word.offset < self.end)

    @property
    def has_text(self) -> bool:
        """Whether the agent has a text stream, so that no words means that it said none.

        `meta["text_stream"]` says so outright; without it, an agent that has uttered a word by now has one.
        """
        return self._injected or bool(self.meta.get("text_stream", bool(self.transcript)))

    def nearest(self, text: str, references: Sequence[str]) -> float:
        """How near in meaning a text is to the nearest of some references, in [0, 1] (`rewards.meaning`).

        Raises:
            RuntimeError: no encoder was given; a reward that asks this declares `meaning=True` in its decorator, and
                then none runs without.
        """
        if self._meaning is None:
            raise RuntimeError("no sentence encoder in this view; declare meaning=True in the reward's decorator")
        return self._meaning.nearest(text, references)

    @cached_property
    def bursts(self) -> tuple[Utterance, ...]:
        """Agent speech as the detector gives it, in order. A word belongs to the first stretch that can speak it.

        For rewards that keep a definition of their own; ours ask for `utterances`.
        """
        lead = self.samples(TEXT_LEAD_SECONDS)
        segments = [(int(on), int(off)) for on, off in self.agent_activity]
        spoken: list[list[Word]] = [[] for _ in segments]
        for word in self.transcript:
            for index, (on, off) in enumerate(segments):
                if on - lead <= word.onset < off:
                    spoken[index].append(word)
                    break
        return tuple(
            Utterance(on, off, self.seconds(off - on), tuple(words) if self.has_text else None)
            for (on, off), words in zip(segments, spoken, strict=True)
        )

    @cached_property
    def utterances(self) -> tuple[Utterance, ...]:
        """What the agent says in one go, in order: bursts with no silence over 0.5 s between them, joined.

        The unit that takes the floor, stops and answers, for every reward of ours. A backchannel is divided
        from what follows by the end of the user's turn as well, however soon the answer comes after it. A turn is not:
        who has the floor has given it up after 0.5 s of silence and no sooner.
        """
        gap = self.samples(GAP_SECONDS)
        joined: list[Utterance] = []
        for burst in self.bursts:
            said = joined[-1] if joined else None
            breath = said is not None and burst.onset - said.offset <= gap
            if said is None or not breath or (not said.takes_floor and self._handed_over(said.offset, burst.onset)):
                joined.append(burst)
                continue
            words = None if said.words is None else said.words + (burst.words or ())
            joined[-1] = Utterance(said.onset, burst.offset, self.seconds(burst.offset - said.onset), words)
        return tuple(joined)

    def _handed_over(self, start: int, stop: int) -> bool:
        """Whether a turn of the user's ends from one sample to another."""
        return any(e.source == "user" and e.type in _ANSWERED and start <= e.offset <= stop for e in self.events)

    @cached_property
    def turns(self) -> tuple[Utterance, ...]:
        """Utterances that take the floor."""
        return tuple(utterance for utterance in self.utterances if utterance.takes_floor)

    def utterance_at(self, sample: int) -> Utterance | None:
        """The utterance that a sample lies in, in its sound or in a breath of it, or None."""
        return _at(self.utterances, sample)

    def burst_at(self, sample: int) -> Utterance | None:
        """The burst that sounds at a sample, or None."""
        return _at(self.bursts, sample)

    def next_user_turn(self, after: int) -> int:
        """Onset of the first user turn, monologue or barge-in at or after a sample; `end` when none has begun."""
        onsets = [e.onset for e in self.events if e.source == "user" and is_user_turn(e) and e.onset >= after]
        return min([*onsets, self.end])

    def longest_silence(self, start: int, stop: int) -> float:
        """Seconds of the longest stretch of agent silence inside [start, stop), cut at `end`."""
        return self.seconds(longest_silence(self.agent_activity, start, min(stop, self.end)))

    def credit(self, first: int, last: int) -> tuple[int, int]:
        """The credit window of decisions between two samples: 1 s before the first to 2 s after the last."""
        start = max(0, first - self.samples(CREDIT_LEAD_SECONDS))
        stop = min(self.end, last + self.samples(CREDIT_TAIL_SECONDS))
        return min(start, stop), stop


def longest_silence(speech: Iterable[Sequence[int]], start: int, stop: int) -> int:
    """Samples of the longest stretch of [start, stop) that no segment of speech, (n, 2) in order, lies in."""
    edges = [start]
    for on, off in speech:
        if off > start and on < stop:
            edges += [int(on), int(off)]
    edges.append(stop)
    return max([0, *(b - a for a, b in zip(edges[::2], edges[1::2], strict=True))])


def _at(speech: Sequence[Utterance], sample: int) -> Utterance | None:
    return next((said for said in speech if said.onset <= sample < said.offset), None)


def is_user_turn(event: Event) -> bool:
    """Whether an event is user speech that has or takes the floor: an A type, a monologue or a barge-in.

    The opening (A5) is the agent's.
    """
    return (event.type[:1] in ("A", "C") and event.type != "A5") or event.type == "B7"

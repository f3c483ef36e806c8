"""The conversations of a batch as a language model is told them, and the questions about them that are under way.

All of it happens in simulated time. A question is asked at a moment that follows from what was heard alone, its answer
can sound `think_s` after that moment, however fast or slow the machine and the endpoint are, and a step waits only
where an answer that is due has not come. So results do not depend on wall time, except that an answer may fail to come
within the endpoint's patience, which is a fault and stands in the record.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from align.policies.cascade.replies import INAUDIBLE, Question, Replies, Reply
from align.policies.mouth import Mouth
from envs.agents import Sound
from envs.clock import CLOCK
from envs.episode import to_pcm16

log = logging.getLogger(__name__)
IDLE_FRAMES = 8
"""Of sound that are kept while the user says nothing: speech is known to have begun a little after it did."""
MOST_FRAMES = CLOCK.frame_of(CLOCK.samples(30.0))
"""Of a turn that are read: the last 30 s, which is what Whisper hears at once."""
MARGIN = CLOCK.samples(0.2)
"""Before the onset of speech: where it begins softly."""


class Asked(NamedTuple):
    """A question under way; times are samples of the row."""

    question: Question | None
    """None where the conversation has had all its questions."""
    at: int
    offset: int
    """End of the user's speech that it is about."""


class Turn(NamedTuple):
    """What a user said and what was answered, from a sample on."""

    heard: str
    sound: Sound
    start: int


@dataclass
class Talk:
    """Where a conversation stands; everything in it is replaced, never changed. Times are samples; -1 is never."""

    frames: tuple[np.ndarray, ...] = ()
    """The last that was heard, (F,) int16 each."""
    answered: int = 0
    """Until when what the user said has been answered, by an answer that began to sound."""
    first: int = -1
    """Onset of the first speech after that."""
    asked: Asked | None = None
    starts: int = -1
    """When the answer that was decided on begins to sound."""
    requests: int = 0
    turns: tuple[Turn, ...] = ()
    record: tuple[dict[str, Any], ...] = ()


class Answers:
    """Rows know nothing of each other."""

    def __init__(self, batch: int, replies: Replies) -> None:
        self._replies, self._config = replies, replies.config
        self._talks = [Talk() for _ in range(batch)]

    def reset(self, rows: Iterable[int]) -> None:
        """Begin conversations."""
        for row in rows:
            self.withdraw(row)
            self._talks[row] = Talk()

    def fork(self, source: int, rows: Iterable[int]) -> None:
        """Let `rows` continue from where row `source` stands."""
        for row in rows:
            if row != source:
                self.withdraw(row)
                self._talks[row] = replace(self._talks[source])

    def hear(self, row: int, frame: np.ndarray, onset: int, offset: int) -> None:
        """A frame (F,) float32, and the user's latest speech at its end. A question that it makes out of date is
        dropped, unless its answer has been decided on."""
        talk = self._talks[row]
        if talk.first < 0 and offset > talk.answered:
            talk.first = max(onset, talk.answered)
        kept = IDLE_FRAMES if talk.first < 0 else MOST_FRAMES
        talk.frames = (*talk.frames, to_pcm16(frame))[-kept:]
        if talk.asked is not None and talk.starts < 0 and offset > talk.asked.offset:
            self.withdraw(row)

    def ask(self, row: int, now: int, offset: int, mouth: Mouth) -> None:
        """Ask, on the chance that the user's turn is over, what to answer; nothing happens if that has been asked."""
        talk = self._talks[row]
        if talk.asked is not None:
            return
        question = None
        if talk.requests < self._config.requests:
            heard = np.concatenate(talk.frames)
            since = max(talk.answered, talk.first - MARGIN, now - heard.size)
            question = Question(
                len(talk.record), heard[since - now :].tobytes(), _told(talk, mouth, self._config.turns)
            )
            talk.requests += 1
            self._replies.ask(question)
        talk.asked = Asked(question, now, offset)

    def decide(self, row: int, now: int, frames: int) -> None:
        """Answer what was asked: so many frames from now, or in the first one at which the model has thought."""
        talk = self._talks[row]
        assert talk.asked is not None
        thinks = max(0, talk.asked.at + CLOCK.nearest_sample(self._config.think_s) - now)
        talk.starts = now + CLOCK.sample_of(max(frames, CLOCK.frames_covering(thinks)))

    def preparing(self, row: int) -> bool:
        """Whether an answer was decided on and does not sound yet."""
        return self._talks[row].starts >= 0

    def withdraw(self, row: int) -> None:
        """Drop the question under way, and the answer that was decided on."""
        talk = self._talks[row]
        asked, talk.asked, talk.starts = talk.asked, None, -1
        if asked is not None and asked.question is not None and not self._waited_for(asked.question):
            self._replies.drop(asked.question)

    def _waited_for(self, question: Question) -> bool:
        return any(talk.asked is not None and talk.asked.question == question for talk in self._talks)

    def take(self, row: int, now: int) -> Reply | None:
        """The answer that is to sound from now on, waited for if it must be; None where none is due."""
        talk = self._talks[row]
        if not 0 <= talk.starts <= now:
            return None
        assert talk.asked is not None
        question = talk.asked.question
        if question is None:
            reply = Reply(fault="requests", detail=f"llm.requests = {self._config.requests} are used up")
        else:
            reply = self._replies.take(question)
        if reply.fault:
            log.warning("cascade: no answer of the model at %.2f s: %s: %s", now / CLOCK.sample_rate, reply.fault,
                        reply.detail)  # fmt: skip
        times = {"asked": talk.asked.at, "sounds": now}
        talk.record = (*talk.record, {**times, **reply.to_json()})
        return reply

    def said(self, row: int, reply: Reply, sound: Sound, start: int) -> None:
        """What `take` gave is being said, or another sound in its place, from the sample `start` of the mouth on."""
        talk = self._talks[row]
        asked = talk.asked
        assert asked is not None
        talk.turns = (*talk.turns, Turn(reply.heard or INAUDIBLE, sound, start))[-self._config.turns :]
        talk.answered, talk.first, talk.asked, talk.starts = asked.offset, -1, None, -1
        if reply.fault and asked.question is not None and not self._waited_for(asked.question):
            self._replies.drop(asked.question)

    def notes(self, row: int) -> dict[str, Any]:
        """Who answers, every answer, and how often there was none and why."""
        talk, config, voice = self._talks[row], self._config, self._replies.voice
        return {
            "model": config.endpoint.model,
            "base_url": config.endpoint.base_url,
            "body": config.endpoint.fields,
            "instructions": self._replies.instructions,
            "recogniser": config.recogniser,
            "speech": None if voice is None else {"engine": voice.engine, "voice": voice.voice},
            "think_s": config.think_s,
            "asked": talk.requests,
            "replies": list(talk.record),
            "faults": dict(Counter(line["fault"] for line in talk.record if line["fault"])),
            "tokens": sum(line["tokens"] for line in talk.record),
        }


def _told(talk: Talk, mouth: Mouth, turns: int) -> tuple[tuple[str, str], ...]:
    """The turns before, as far as they are told: what the user said, and as much of the answer as was heard."""
    words, said = mouth.transcript(0), []
    for number, turn in enumerate(talk.turns):
        until = talk.turns[number + 1].start if number + 1 < len(talk.turns) else CLOCK.frame + int(mouth.now[0])
        spoken = [word.text for word in words if turn.start <= word.onset < until]
        broken = len(spoken) < len(turn.sound.words)
        said.append((turn.heard, " ".join([*spoken, "-"] if broken else spoken)))
    return tuple(said[max(0, len(said) - turns + 1) :])

"""What happened, to the sample: words, events and what is expected of the agent. Ground truth, never from a VAD."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

from envs.errors import UptakeError

EVENT_TYPES: Mapping[str, str] = MappingProxyType(
    {
        "A1": "end of turn, question",
        "A2": "end of turn, open question",
        "A3": "end of turn, statement",
        "A4": "end of turn, trailing off or rising",
        "A5": "opening: the agent speaks first",
        "A6": "simultaneous start",
        "A7": "turn that overlaps the agent's last words",
        "A8": "closing",
        "B1": "pause within an utterance",
        "B2": "filled pause",
        "B3": "explicit hold",
        "B4": "pause within a dictation",
        "B5": "disfluency or restart",
        "B6": "self-repair",
        "B7": "monologue that invites backchannels",
        "C1": "barge-in, new topic",
        "C2": "barge-in, correction",
        "C3": "barge-in, stop command",
        "C4": "barge-in, repetition request",
        "C5": "barge-in, follow-up question",
        "C6": "barge-in, dissatisfaction",
        "C7": "cooperative completion",
        "C8": "barge-in that is given up",
        "C9": "barge-in, one of several corrections",
        "C10": "barge-in, repeated because the agent talked on",
        "D1": "user backchannel while the agent speaks",
        "D2": "laughter or assessment while the agent speaks",
        "D3": "cough or other vocal noise",
        "D4": "noise",
        "D5": "talk to somebody else",
        "D6": "a third person near the microphone",
        "D7": "television or radio",
        "D8": "the agent's own echo",
        "D9": "hold music or keypad tones",
        "E1": "silence after the agent's question",
        "E2": "hang-up",
        "E3": "sounds in a silence",
        "E4": "late answer",
        "E5": "signal that the agent was asked to watch for",
        "E6": "moment that the agent was asked to act at",
        "F1": "lossy or narrow channel",
        "F2": "network delay",
        "F3": "distant speaker in a room",
        "F4": "agent slower than its frames",
        "G1": "agent backchannels",
        "G2": "agent interrupts for a reason",
        "G3": "agent holds the floor",
        "G4": "resumption after a false stop",
    }
)
"""The taxonomy of what happens in a conversation: code, and what it means."""

TURN_TYPES = frozenset({"A1", "A2", "A3", "A4", "A7", "A8"})
"""Utterances that end in the agent's turn. A simultaneous start (A6) is none: a user may break it off."""
PAUSE_TYPES = frozenset({"B1", "B2", "B3", "B4", "B5", "B6"})
"""Silences through which the user holds the floor."""
BARGE_IN_TYPES = frozenset({"C1", "C2", "C3", "C4", "C5", "C6", "C9", "C10"})
"""Those that an agent should stop for."""
AGENT_BEHAVIOURS = (
    "responds",
    "silent",
    "stops",
    "continues",
    "backchannels",
    "speaks_up",
    "yields",
    "resumes",
    "declines",
)
SOURCES = ("user", "other", "agent")


class Word(NamedTuple):
    """One word and where it lies, in samples of the episode (or of the clip) that it belongs to."""

    text: str
    onset: int
    offset: int


@dataclass(frozen=True)
class Expect:
    """What the agent should do about an event: assertion, metric and reward at once."""

    agent: str
    """One of `AGENT_BEHAVIOURS`."""
    within: Mapping[str, float] = field(default_factory=dict)
    """Seconds after the anchor: `full` still earns everything, `zero` earns nothing any more; `early`: before it."""
    content: tuple[str, ...] = ()
    """Any of these words answers it (`silent`: none of them may be said); empty when the content does not matter."""

    def __post_init__(self) -> None:
        if self.agent not in AGENT_BEHAVIOURS:
            raise UptakeError(f"expect: agent {self.agent!r} is none of {', '.join(AGENT_BEHAVIOURS)}")


@dataclass(frozen=True)
class Event:
    """One thing that happens in an episode. All times are samples from the start of the episode.

    Turn events (`TURN_TYPES`) span the user's utterance and the response is due after `offset`. Pause events
    (`PAUSE_TYPES`) span the silence itself, and so does a stretch in which nothing is said (E1, E4, E6, A5). A
    monologue (B7) has an anchor `bc0`, `bc1`, ... wherever a listener would backchannel. A barge-in (`BARGE_IN_TYPES`)
    has the anchors `sem` (end of the word that makes the intent clear) and `agent_speaking_since` (since when the agent
    had been talking); whatever else waited for the agent to speak has the latter.

    `due` is where the agent should speak up (it is expected to); `collision` is the first sample at which both talk, of
    an event that expects it to yield.
    """

    id: str
    type: str
    source: str
    onset: int
    offset: int
    anchors: Mapping[str, int] = field(default_factory=dict)
    text: str = ""
    words: tuple[Word, ...] = ()
    expects: tuple[Expect, ...] = ()
    twin: str | None = None

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise UptakeError(f"event {self.id!r}: source {self.source!r} is none of {', '.join(SOURCES)}")
        if not 0 <= self.onset <= self.offset:
            raise UptakeError(f"event {self.id!r}: onset {self.onset} and offset {self.offset} are not 0 <= on <= off")

    def expected(self, agent: str) -> Expect | None:
        """The first expectation of this behaviour, or None."""
        return next((expect for expect in self.expects if expect.agent == agent), None)

    @property
    def reply(self) -> Expect | None:
        """What the agent should say when it is over: an answer, or a refusal; None where neither is expected."""
        return self.expected("responds") or self.expected("declines")

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` reads back to an equal event."""
        return {
            "v": 1,
            "id": self.id,
            "type": self.type,
            "source": self.source,
            "onset": self.onset,
            "offset": self.offset,
            "anchors": dict(self.anchors),
            "text": self.text,
            "words": [list(word) for word in self.words],
            "expects": [{"agent": e.agent, "within": dict(e.within), "content": list(e.content)} for e in self.expects],
            "twin": self.twin,
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Event:
        """Read what `to_json` wrote; raises `UptakeError` naming a field that is missing or malformed."""
        try:
            return cls(
                id=str(record["id"]),
                type=str(record["type"]),
                source=str(record["source"]),
                onset=int(record["onset"]),
                offset=int(record["offset"]),
                anchors={str(k): int(v) for k, v in record["anchors"].items()},
                text=str(record["text"]),
                words=tuple(Word(str(w), int(on), int(off)) for w, on, off in record["words"]),
                expects=tuple(
                    Expect(
                        agent=str(e["agent"]),
                        within={str(k): float(v) for k, v in e["within"].items()},
                        content=tuple(str(c) for c in e["content"]),
                    )
                    for e in record["expects"]
                ),
                twin=record["twin"],
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise UptakeError(
                f"event record {record.get('id', '?')!r}: field {error} is missing or malformed"
            ) from error

"""Who a reactive user is: how often it does what, how long it waits, and with what intent it barges in.

What it says comes from the pack by kind. A kind that the pack's split does not have is replaced by the next one in its
list; `turn` stands for saying the user's own last turn again, `related` for another question about the same topic.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from envs.event import Expect
from envs.variables import Value

TURN, RELATED = "turn", "related"


@dataclass(frozen=True)
class TurnKind:
    """One way of taking a turn."""

    type: str
    kinds: tuple[str, ...]
    pause_type: str = "B1"
    turn: str | None = None


TURNS: Mapping[str, TurnKind] = {
    "question": TurnKind("A1", ("question",)),
    "statement": TurnKind("A3", ("statement",)),
    "answer": TurnKind("A3", ("answer", "statement")),
    "pause": TurnKind("A1", ("pause",)),
    "dictation": TurnKind("A1", ("dictation",), pause_type="B4"),
    "story": TurnKind("B7", ("story",), turn="A3"),
}
"""What `persona.says` may name."""


@dataclass(frozen=True)
class Intent:
    """Why a user speaks while the agent does."""

    type: str
    kinds: tuple[str, ...]
    head: bool = False
    """Only what lies before the clip's first pause is said ("Yeah"), and the agent is meant to go on."""
    rounds: int = 1
    """How many answers in a row it interrupts."""
    repeats: int = 0
    """How often it is said again, louder, to an agent that talks on."""
    gives_up_s: float | None = None
    """Seconds of overlap after which it is abandoned."""
    answered: bool = True
    """Whether the agent is to answer it."""


INTENTS: Mapping[str, Intent] = {
    "new_topic": Intent("C1", ("barge_in",)),
    "correction": Intent("C2", ("correction", "barge_in")),
    "stop": Intent("C3", ("stop",), answered=False),
    "repetition": Intent("C4", ("repetition", TURN)),
    "follow_up": Intent("C5", ("follow_up", RELATED, "question")),
    "dissatisfaction": Intent("C6", ("dissatisfaction", "complaint", "correction", "barge_in")),
    "completion": Intent("C7", ("completion", "barge_in"), head=True, answered=False),
    "attempt": Intent("C8", ("barge_in",), gives_up_s=0.6),
    "corrections": Intent("C9", ("correction", "barge_in"), rounds=3),
    "insistence": Intent("C10", ("barge_in",), repeats=2),
    "acknowledgement": Intent("D1", ("barge_in",), head=True, answered=False),
}
"""What `persona.intents` may name: the ten of the taxonomy, and the twin of `new_topic` that ends after its "yeah"."""

BACKCHANNEL, COUGH, ASIDE, HELLO, BYE = "backchannel", "cough", "side_talk", "hello", "goodbye"
ASIDES: Mapping[str, tuple[str, ...]] = {
    BACKCHANNEL: (BACKCHANNEL, "barge_in", "correction", "stop"),
    COUGH: (COUGH,),
    ASIDE: (ASIDE,),
    HELLO: (HELLO,),
    BYE: (BYE, "closing"),
}
"""Everything else that it says, and the kinds that it is taken from: of a barge-in, only the "yeah" before a pause."""

_ANSWER = Expect("responds", {"full": 0.7, "zero": 2.0})
_STOP = Expect("stops", {"full": 0.5, "zero": 1.5})
_GO_ON = Expect("continues")
EXPECTS: Mapping[str, tuple[Expect, ...]] = {
    "A1": (_ANSWER,),
    "A3": (_ANSWER,),
    "B1": (Expect("silent"),),
    "B4": (Expect("silent"),),
    "B7": (Expect("backchannels"),),
    **dict.fromkeys(("C1", "C2", "C4", "C5", "C6", "C9", "C10"), (_STOP, _ANSWER)),
    "C3": (_STOP,),
    "C7": (_GO_ON,),
    "D1": (_GO_ON,),
    "D3": (_GO_ON,),
    "D5": (_GO_ON,),
}
"""What is expected about each type of event unless the scenario says otherwise (taxonomy, windows of A1 and C1)."""


@dataclass(frozen=True)
class Persona:
    """Rates and habits. Each number may be ``$name`` of a variable."""

    turns: Value = 3
    """Turns that it wants to take before it leaves."""
    says: Mapping[str, float] = field(default_factory=lambda: {"question": 2.0, "statement": 1.0})
    """Weights of the ways to take a turn."""
    holds: Value = 1.0
    """Share of turns with pauses that go on after the first one; the others end there."""
    sure: Value = 0.5
    """How sure it must be that the agent's turn is over before it speaks, as a probability."""
    patience_s: Value = 4.0
    """Silence after its turn that it bears."""
    tries: Value = 2
    """How often it asks again (then "hello?") before it hangs up."""
    listens_s: Value = 6.0
    """How long it waits for an agent that talks without an end before it speaks over it."""
    yields: Value = 0.7
    """Probability of giving way when the agent speaks over its turn."""
    barges_in: Value = 0.3
    """Probability of interrupting a turn of the agent."""
    intents: Mapping[str, float] = field(default_factory=lambda: {"new_topic": 1.0})
    """Weights of the reasons to interrupt."""
    backchannels_per_min: Value = 6.0
    """Of listening: while the agent holds the floor."""
    coughs_per_min: Value = 0.5
    side_talk_per_min: Value = 0.3
    """Of listening: somebody comes in while the agent speaks."""
    gain_db: Value = 0.0

    def types(self) -> tuple[str, ...]:
        """Codes of the events that this user can cause."""
        found = []
        for name in self.says:
            kind = TURNS[name]
            found += [kind.type, *([kind.turn] if kind.turn else [])]
            found += [kind.pause_type] if name in ("pause", "dictation") and self.holds else []
        found += [INTENTS[name].type for name in self.intents] if self.barges_in else []
        found += ["D1"] if self.backchannels_per_min else []
        found += ["D3"] if self.coughs_per_min else []
        found += ["D5"] if self.side_talk_per_min else []
        return tuple(dict.fromkeys(found))

    def needs(self) -> list[tuple[str, tuple[str, ...]]]:
        """(what, kinds): one of the kinds must be in the pack for each thing that it says."""
        needed = [(f"says {name!r}", TURNS[name].kinds) for name in self.says]
        if self.barges_in:
            needed += [(f"barges in for {name!r}", INTENTS[name].kinds) for name in self.intents]
        for name, rate in ((BACKCHANNEL, self.backchannels_per_min), (COUGH, self.coughs_per_min)):
            needed += [(f"has {name}s", ASIDES[name])] if rate else []
        return needed + ([("talks to somebody else", ASIDES[ASIDE])] if self.side_talk_per_min else [])


@dataclass(frozen=True)
class ReactiveUser:
    """The `user:` of a reactive scenario."""

    persona: Persona = Persona()
    laws: str = "human"
    turn_model: str = "projection"


def missing(persona: Persona, kinds: Collection[str]) -> str | None:
    """What this user would say and a pack with these kinds of clips cannot; None when nothing is missing."""
    for what, options in persona.needs():
        if not any(kind in kinds or kind in (TURN, RELATED) for kind in options):
            return f"the user {what}, but the pack has no clip of kind {' or '.join(options)}"
    return None

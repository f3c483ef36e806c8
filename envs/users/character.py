"""Bind a reactive scenario to the clips of a pack: one voice, what it wants to say, and each utterance as audio.

Everything here is a function of (scenario, seeds, name of the utterance): the state machine (`envs.users.behaviour`)
decides when something is said, and the same utterance sounds the same whenever that is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import NamedTuple

import numpy as np

from envs.acoustics.conditions import Conditions
from envs.clock import Clock
from envs.event import Event, Expect
from envs.pack import Clip, Pack
from envs.scenario import Cut, Pause, Scenario, ScriptItem, Trigger
from envs.seeding import Seeds
from envs.users.laws import Law, load_laws
from envs.users.persona import (
    ASIDE,
    ASIDES,
    BACKCHANNEL,
    BYE,
    COUGH,
    EXPECTS,
    HELLO,
    INTENTS,
    RELATED,
    TURN,
    TURNS,
    Intent,
    Persona,
    ReactiveUser,
)
from envs.users.plan import Drawn, render, settle

LOUDER_DB = 3.0
"""What a user adds each time that it repeats itself over the agent (taxonomy C10)."""
_HOLDING = ("pause", "dictation")
_ASIDES = {"hm": ("D1", BACKCHANNEL), "cough": ("D3", COUGH), "aside": ("D5", ASIDE), "hello": ("A1", HELLO)}
_ASIDES |= {"bye": ("A8", BYE)}
_MOST_TURNS = 100
LONGEST_HEAD = 1.0  # seconds; a longer "yeah" would take a turn


class Utterance(NamedTuple):
    """What is said, by name."""

    what: str
    """`turn`, `cut` (a barge-in), `hm`, `cough`, `aside` (to somebody else), `hello` or `bye`."""
    number: int
    """How many of these there were before."""
    attempt: int = 0
    """How often it was begun before."""
    over: bool = False
    """A turn taken from an agent that does not stop."""
    turn: int = 0
    """The turn that was taken last: what `repetition` and `follow_up` are about."""

    @property
    def id(self) -> str:
        """Id of its event."""
        return f"{self.what}{self.number}" + (f"-{self.attempt}" if self.attempt else "")


@dataclass(frozen=True, eq=False)
class Speech:
    """One utterance. Times of the events are samples from its start; the first event is its own."""

    pcm: np.ndarray
    """(n,) int16, read-only."""
    events: tuple[Event, ...]

    @property
    def lead(self) -> int:
        """Samples before the first word sounds."""
        return self.events[0].onset

    @property
    def over(self) -> int:
        """Samples after which the last word is said."""
        return self.events[0].offset


@dataclass(frozen=True, eq=False)
class Character:
    """One reactive user of one conversation, with everything random drawn that does not depend on the agent."""

    pack: Pack
    scenario: Scenario
    seeds: Seeds
    values: dict[str, float]
    """What the scenario's variables came out as."""
    persona: Persona
    """With numbers in place of variables."""
    laws: Mapping[str, Law]
    turn_model: str
    voice: str
    clips: Mapping[str, Sequence[Clip]]
    """By kind: its own voice's, or where that has none, those of other voices of its split."""
    agenda: tuple[tuple[str, Clip], ...]
    """(name in `TURNS`, clip) of each turn."""
    room_tone_db: float
    conditions: Conditions
    """How it sounds."""
    after_script: int
    longest: int
    clock: Clock
    _made: dict[Utterance, Speech] = field(default_factory=dict, repr=False)
    _drawn: dict[tuple[str | int, ...], float] = field(default_factory=dict, repr=False)

    def number(self, name: str) -> float:
        """A number of the persona."""
        return float(getattr(self.persona, name))

    def chance(self, name: str, *which: str | int) -> float:
        """A uniform draw in [0, 1) for a decision of this name."""
        key: tuple[str | int, ...] = (name, *which)
        if key not in self._drawn:
            self._drawn[key] = float(self.seeds.rng("user", name, *which).random())
        return self._drawn[key]

    def draw(self, law: str, *which: str | int, scale: float = 1.0) -> int:
        """A draw from a law times `scale`, in samples."""
        u, pair = self.chance(law, *which), self.chance("dyad " + law)
        return self.clock.nearest_sample(scale * self.laws[law].at(u, pair))

    def intent(self, index: int) -> Intent:
        """Why it interrupts for the n-th time."""
        return INTENTS[_weighted(self.persona.intents, self.chance("intent", index))]

    def has(self, what: str) -> bool:
        """Whether the pack gives it words for `hello` or `bye`."""
        return any(self.clips.get(kind) for kind in ASIDES[_ASIDES[what][1]])

    def speech(self, utterance: Utterance) -> Speech:
        """The audio and the events of an utterance."""
        if utterance not in self._made:
            make = {"turn": self._turn, "cut": self._cut}.get(utterance.what, self._aside)
            self._made[utterance] = make(utterance)
        return self._made[utterance]

    def _turn(self, said: Utterance) -> Speech:
        name, clip = self.agenda[said.number]
        kind = TURNS[name]
        if said.attempt and name == "question":
            clip = self._reworded(said, clip)
        if said.over:
            # A turn all the same, or an agent that never stops would meet no turn that it could fail to answer.
            item = ScriptItem(said.id, "C1", Trigger(), anchors=meaning(clip), turn=kind.turn or kind.type)
            return self._said(item, clip, gain_db=LOUDER_DB * said.attempt)
        item = ScriptItem(said.id, kind.type, Trigger(), pause_type=kind.pause_type, turn=kind.turn)
        if kind.type == "B7":
            bars = tuple(words_before(clip, onset) - 1 for onset, _ in clip.pauses)
            return self._said(replace(item, opportunities=bars), clip)
        if name not in _HOLDING or not clip.pauses:
            return self._said(item, clip)
        if self.chance("holds", said.number) >= self.number("holds"):
            return self._said(replace(item, until=Cut(at_pause=0)), clip)
        gaps = [self.draw("pause", said.number, i) for i in range(len(clip.pauses))]
        pauses = tuple(Pause(Cut(at_pause=i), self.clock.seconds(gap)) for i, gap in enumerate(gaps))
        return self._said(replace(item, pauses=pauses), clip, gaps)

    def _reworded(self, said: Utterance, clip: Clip) -> Clip:
        """Another question about the same, for one that had no answer; the same one where there is no other."""
        asked = [one for _, one in self.agenda]
        others = [c for c in self.clips.get("question", ()) if clip.topic and c.topic == clip.topic and c not in asked]
        return others[(said.attempt - 1) % len(others)] if others else clip

    def _cut(self, said: Utterance) -> Speech:
        intent = self.intent(said.number)
        clip = self._pick(intent.kinds, said, said.attempt if intent.rounds > 1 else 0)
        # An attempt is one only if it fails, and insistence shows only when it is repeated: both begin as C1.
        first = intent.gives_up_s is not None or (intent.repeats and not said.attempt)
        item = ScriptItem(said.id, "C1" if first else intent.type, Trigger(), anchors=meaning(clip))
        if intent.head:
            return self._said(replace(item, until=Cut(at_pause=0) if clip.pauses else None, anchors={}), clip)
        return self._said(item, clip, gain_db=LOUDER_DB * said.attempt if intent.repeats else 0.0)

    def _aside(self, said: Utterance) -> Speech:
        code, kind = _ASIDES[said.what]
        clip = self._pick(ASIDES[kind], said)
        head = said.what == "hm" and bool(clip.pauses)
        return self._said(ScriptItem(said.id, code, Trigger(), until=Cut(at_pause=0) if head else None), clip)

    def _pick(self, kinds: Sequence[str], said: Utterance, *which: int) -> Clip:
        """One clip of the first kind that there is."""
        turn = self.agenda[said.turn][1]
        for kind in kinds:
            if kind == TURN:
                return turn
            options = self.clips.get("question" if kind == RELATED else kind, ())
            if kind == RELATED:
                options = [clip for clip in options if clip.topic == turn.topic and clip is not turn]
            if said.what == "hm":
                options = [clip for clip in options if head_length(clip) <= self.clock.samples(LONGEST_HEAD)]
            if options:
                return options[
                    int(self.seeds.rng("user", "clip", said.what, said.number, *which).integers(len(options)))
                ]
        raise self.scenario.error(f"no clip of kind {' or '.join(kinds)} for {said.what!r} in pack {self.pack.name!r}")

    def _said(self, item: ScriptItem, clip: Clip, gaps: Sequence[int] = (), gain_db: float = 0.0) -> Speech:
        expected = expectation(self.scenario, item, self.pack.wanted(clip))
        gain = gain_db + self.number("gain_db")
        return Speech(*render(item, clip, gaps, gain, expected, self.scenario.twin, self.clock))


def expectation(scenario: Scenario, item: ScriptItem, content: tuple[str, ...]) -> Callable[[str], tuple[Expect, ...]]:
    """What is expected about an event of `item` by name: what the scenario says of its type, else the usual.

    Args:
        content: words of which a good answer has one.
    """

    def expected(name: str) -> tuple[Expect, ...]:
        code = item.pause_type if ".pause" in name else item.turn if name.endswith(".turn") else item.type
        chosen = tuple(e for c, e in scenario.expects if c == code) or EXPECTS.get(str(code), ())
        return tuple(replace(e, content=content) if e.agent == "responds" and not e.content else e for e in chosen)

    return expected


def bind_reactive(
    pack: Pack,
    scenario: Scenario,
    drawn: Drawn,
    clock: Clock,
) -> Character:
    """Draw a reactive user; the same arguments give the same one everywhere."""
    assert isinstance(scenario.user, ReactiveUser)
    seeds, values = drawn["seeds"], drawn["values"]
    persona = scenario.user.persona
    numbers = {
        f.name: settle(value, values) for f in fields(persona) if isinstance(value := getattr(persona, f.name), str)
    }
    persona = replace(persona, **numbers)  # type: ignore[arg-type]
    voices = pack.voices(scenario)
    voice = voices[int(seeds.rng("voice").integers(len(voices)))]
    # What that voice never says is taken from the others.
    spoken = pack.spoken(scenario.split).items()
    clips = {kind: [clip for clip in options if clip.voice == voice] or options for kind, options in spoken}
    agenda: list[tuple[str, Clip]] = []
    kinds = {name: next(kind for kind in TURNS[name].kinds if clips.get(kind)) for name in persona.says}
    left: dict[str, list[Clip]] = {}
    for i in range(min(max(1, round(float(persona.turns))), _MOST_TURNS)):
        # Nothing is said twice while there is something else to say.
        fresh = {
            name: weight
            for name, weight in persona.says.items()
            if left.setdefault(kinds[name], list(clips[kinds[name]]))
        }
        name = _weighted(fresh or persona.says, float(seeds.rng("user", "says", i).random()))
        options = left[kinds[name]] or list(clips[kinds[name]])
        agenda.append((name, options.pop(int(seeds.rng("user", "turn", i).integers(len(options))))))
    return Character(
        **drawn,
        pack=pack,
        persona=persona,
        laws=load_laws(scenario.user.laws),
        turn_model=scenario.user.turn_model,
        voice=voice,
        clips=clips,
        agenda=tuple(agenda),
        clock=clock,
    )


def _weighted(weights: Mapping[str, float], u: float) -> str:
    """The name at a share `u` in [0, 1) of the total weight."""
    place = u * sum(weights.values())
    for name, weight in weights.items():
        place -= weight
        if place < 0:
            return name
    return [name for name, weight in weights.items() if weight > 0][-1]


def words_before(clip: Clip, sample: int) -> int:
    return sum((word.onset + word.offset) // 2 < sample for word in clip.words)


def head_length(clip: Clip) -> int:
    """Samples from the first word to the first pause (to the end where there is none)."""
    end = clip.pauses[0][0] if clip.pauses else clip.samples
    return end - (clip.words[0].onset if clip.words else 0)


def meaning(clip: Clip) -> dict[str, int]:
    """The word that makes the intent of a barge-in clear: the first one after its "yeah", else the second one."""
    if not clip.words:
        return {}
    first = words_before(clip, clip.pauses[0][0]) if clip.pauses else 1
    return {"sem": min(first, len(clip.words) - 1)}
